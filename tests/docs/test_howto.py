"""The how-to pages do what they say, in a project as the quickstart leaves it after two sections."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, Page
from tests.docs.reader import Reader

#: Files of the quickstart that the pages build on.
START = ("mysite/settings.py", "orders/models.py", "orders/services.py")


@pytest.fixture
def project(reader: Reader) -> Reader:
    """A reader who has followed the first two sections of the quickstart."""
    reader.start_project("orders")
    taken: set[str] = set()
    for block in Page(DOCS / "quickstart.rst").blocks("python"):
        if block.file and block.file[0] in START and block.file[0] not in taken:
            taken.add(block.file[0])
            reader.do(block)
    reader.run("python manage.py makemigrations orders")
    reader.run("python manage.py migrate")
    return reader


@pytest.mark.parametrize("page", [Page(path) for path in sorted((DOCS / "how-to").glob("*.rst"))], ids=str)
def test_a_how_to_can_be_followed(page: Page, project: Reader) -> None:
    project.follow(page)


def test_handlers_take_effect_once_however_often_the_event_comes(project: Reader) -> None:
    """What the page on subscribing shows by what is printed, counted in the database."""
    page = Page(DOCS / "how-to/subscribe.rst")
    project.follow(page)
    bonuses = "from orders.models import Order; print(Order.objects.filter(total=-1).count(), 'bonuses')"
    project.shell(bonuses)
    project.run(f'python manage.py shell -c "{bonuses}"', ["2 bonuses"])


def test_settings_of_the_reference_are_accepted(project: Reader) -> None:
    for block in Page(DOCS / "reference/settings.rst").blocks("python"):
        project.do(block)
        project.run("python manage.py check")
