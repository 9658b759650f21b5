"""Progress bars, colours and tables."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest
from django.core.management.base import OutputWrapper

from domain_event_broker.django import terminal
from domain_event_broker.django.terminal import Bar, Progress, may_colour, table


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_in_a_pipe_there_is_no_bar() -> None:
    pipe = io.StringIO()
    progress = Progress(pipe, "sent", 3)
    progress.update(1)
    progress.finish(3)
    assert pipe.getvalue() == ""


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("total", [3, None, 0])
def test_on_a_terminal_rich_draws_the_bar(wrapped: bool, total: int | None) -> None:
    screen = Terminal()
    progress = Progress(OutputWrapper(screen) if wrapped else screen, "[red] sent", total)
    progress.update(1)
    progress.finish(3)
    progress.finish(3)
    shown = screen.getvalue()
    assert "[red] sent" in shown
    assert "3/" in shown
    assert shown.endswith(("\x1b[?25h", "\n"))


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def imported(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("rich"):
            raise ModuleNotFoundError(name, name=name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", imported)


def test_without_rich_the_bar_is_made_of_plain_characters(without_rich: None) -> None:
    screen = Terminal()
    progress = Progress(screen, "sent", 4)
    progress.update(1)
    progress.finish(2)
    last = screen.getvalue().rpartition("\x1b[K")[2]
    assert last.startswith("sent [###############               ] 2/4  50% (")
    assert last.endswith("/s)\n")


def test_a_bar_is_drawn_no_more_often_than_an_eye_can_follow(without_rich: None) -> None:
    screen = Terminal()
    progress = Progress(screen, "sent", 1000)
    for done in range(1000):
        progress.update(done)
    assert screen.getvalue().count("\r") < 50


def test_a_line_that_is_too_long_for_the_terminal_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_width", lambda: 20)
    screen = Terminal()
    Bar(screen, "a long label", 3).draw(1)
    assert len(screen.getvalue().partition("\x1b[K")[2]) == 19


def test_without_a_total_the_bar_counts() -> None:
    assert Bar(io.StringIO(), "sent", None).line(1234).startswith("sent 1,234 (")


@pytest.mark.parametrize(("value", "welcome"), [(None, True), ("", True), ("1", False)])
def test_no_color_is_heard(monkeypatch: pytest.MonkeyPatch, value: str | None, welcome: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert may_colour(Terminal()) is welcome
    assert not may_colour(io.StringIO())


def test_a_table_is_aligned_and_painted_without_shifting() -> None:
    shown = table(
        ("NAME", "DEAD"),
        [("a", 1_000), ("longer", None)],
        lambda column, value, text: f"<{text}>" if column == "DEAD" and value else text,
    )
    assert shown.splitlines() == ["NAME     DEAD", "a       <1,000>".replace("<", "<"), "longer      -"]
