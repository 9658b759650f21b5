"""The quickstart, followed from its first line to its last."""

from __future__ import annotations

from tests.docs.pages import DOCS, Page
from tests.docs.reader import Reader


def test_the_quickstart_leads_from_an_empty_directory_to_rabbitmq(broker_reader: Reader) -> None:
    broker_reader.follow(Page(DOCS / "quickstart.rst"))
    assert "amqp://" in broker_reader.run("python manage.py broker_status", ["billing-charge  ..."])
