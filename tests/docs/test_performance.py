"""What the page on performance says of the code, and of the commands that measure it."""

from __future__ import annotations

import re

from benchmarks import c_client
from domain_event_broker.django import waiting, wakeups
from tests.docs.pages import DOCS, Page

PAGE = Page(DOCS / "explanation/performance.rst")


def _text() -> str:
    return " ".join(PAGE.text.split())


def test_wake_ups_are_as_often_as_the_page_says() -> None:
    close = re.search(r"within (\d+) milliseconds do so (\d+) times a second", _text())
    assert close is not None
    assert (int(close[1]), int(close[2])) == (
        round(wakeups.CLOSE_SECONDS * 1000),
        round(1 / wakeups.NOTIFY_INTERVAL),
    )


def test_relays_look_again_as_soon_as_the_page_says() -> None:
    looks = re.search(r"themselves after ([\d, ]+) milliseconds", _text())
    assert looks is not None
    first = round(waiting.SHORTEST_POLL * 1000)
    assert [int(each) for each in re.findall(r"\d+", looks[1])] == [first, 2 * first, 4 * first]


def test_what_is_compared_with_needs_what_the_page_says() -> None:
    assert "librabbitmq-dev" in c_client.PACKAGES
    assert "librabbitmq-dev" in PAGE.literals()
