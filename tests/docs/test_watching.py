"""The page on watching lists the metrics that there are."""

from __future__ import annotations

from domain_event_broker.monitoring.metrics import COMMON, PREFIX, RELAY, SUBSCRIBER
from tests.docs.pages import DOCS, Page

PAGE = Page(DOCS / "how-to/watch.rst")


def test_each_metric_is_listed_with_kind_labels_and_meaning() -> None:
    expected = [
        [each.name, each.kind, ", ".join(each.labels), each.help] for each in (*RELAY, *SUBSCRIBER, *COMMON)
    ]
    assert PAGE.tables()[0] == expected
    assert PREFIX in PAGE.text


def test_the_values_of_labels_are_told() -> None:
    from domain_event_broker.monitoring import metrics, recorder

    known = {*recorder.OUTCOMES, *recorder.SENT_OUTCOMES, *metrics.QUEUE_KINDS, *metrics.HELD_STATES}
    assert known - set(PAGE.literals()) == set()
