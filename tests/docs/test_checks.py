"""The page on system checks lists those that there are, each where it belongs."""

from __future__ import annotations

import re

from docutils import nodes

from tests.docs.pages import DOCS, ROOT, Page
from tests.docs.reader import Reader

PAGE = Page(DOCS / "reference" / "checks.rst")
SOURCES = ("checks.py", "database_checks.py", "security_checks.py")


def listed() -> list[str]:
    """The ids of the page."""
    return [
        row[0].astext()
        for _, section in PAGE.sections()
        for table in section.findall(nodes.tbody)
        for row in table.findall(nodes.row)
    ]


def test_each_check_has_a_row_and_each_row_a_check() -> None:
    text = "".join((ROOT / "domain_event_broker/django" / name).read_text() for name in SOURCES)
    declared = set(re.findall(r'id=f"\{TAG\}\.([EW]\d{3})"', text))
    assert len(declared) > 15
    assert sorted(set(listed())) == sorted(declared)


def test_errors_are_among_the_errors_and_warnings_are_not() -> None:
    sections = dict(PAGE.sections())
    ids = {
        title: [row[0].astext() for row in sections[title].findall(nodes.row)][1:]
        for title in ("Errors", "Warnings", "With --deploy")
    }
    assert all(each.startswith("E") for each in ids["Errors"])
    assert all(each.startswith("W") for each in ids["Warnings"] + ids["With --deploy"])


def test_the_page_can_be_followed(reader: Reader) -> None:
    reader.start_project("orders")
    reader.write("mysite/settings.py", "INSTALLED_APPS += ['domain_event_broker']", append=True)
    reader.write("mysite/settings.py", "DOMAIN_EVENT_BROKER = 'database:'", append=True)
    reader.follow(PAGE)
    reader.run("python manage.py check", ["System check identified no issues (... silenced)."])
