"""``manage.py broker_status``: the table, the check for cron, and the watch."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from domain_event_broker import DomainEvent, handlers, subscribe
from domain_event_broker.django.management.commands import broker_status
from domain_event_broker.django.models import OutboxEvent, RelayHeartbeat
from domain_event_broker.errors import OutboxUnavailable
from domain_event_broker.transports import memory
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db


@pytest.fixture
def handler(
    settings: Any, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A handler of the project, whose queue does not exist yet; return its name."""
    broker, name = fresh_name("status"), fresh_name("billing-charge")
    settings.DOMAIN_EVENT_BROKER = f"memory://{broker}"
    monkeypatch.setattr(handlers.registry, "_handlers", {})
    subscribe("order.*", name=name)(lambda event: None)
    yield name
    memory.forget(broker)


def run(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code and what was written to both streams."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("broker_status", *arguments, stdout=out, stderr=err)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def bury(handler: str, count: int) -> None:
    stage.bury(handler, *[DomainEvent("order.placed", {"n": n}) for n in range(count)])


def relay(seen_seconds_ago: float) -> None:
    now = time.time()
    RelayHeartbeat.objects.create(
        relay="r", host="web-1", pid=7, started_at=now - 900, seen_at=now - seen_seconds_ago
    )


def test_what_is_wrong_stands_below_the_tables_with_what_to_do(handler: str) -> None:
    bury(handler, 2)
    code, out, _ = run()
    assert code == 0
    assert f"{handler}      0          0        0     2          0" in out
    assert f"WARNING: 2 dead letters in {handler}. " in out
    assert f"replay_dlq {handler} --dry-run" in out
    assert "NOTE: No relay is running" in out
    assert "\x1b[" not in out


def test_all_is_well(handler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_status, "alerts", lambda outbox, broker: [])
    assert run()[1].endswith("\nAll is well.\n")


def test_json_has_the_alerts(handler: str) -> None:
    bury(handler, 1)
    state = json.loads(run("--json")[1])
    assert set(state) == {"outbox", "broker", "alerts"}
    (dead,) = [each for each in state["alerts"] if each["kind"] == "dead-letters"]
    assert (dead["level"], dead["subject"], dead["count"]) == ("warning", handler, 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--fail-if-lag", "100"), [r"^the oldest event has been waiting .* \(--fail-if-lag 100\)$"]),
        (("--fail-if-lag", "1000"), []),
        (("--fail-if-dead", "2"), [r"2 dead letters \(--fail-if-dead 2\)"]),
        (("--fail-if-dead", "3"), []),
        (("--fail-if-silent",), ["No relay is running", "Nobody consumes"]),
        (("--fail-if-lag", "100.5", "--fail-if-dead", "1"), ["--fail-if-lag 100.5", "--fail-if-dead 1"]),
    ],
)
def test_as_a_check_it_exits_with_1_and_says_why(
    handler: str, arguments: tuple[str, ...], told: list[str]
) -> None:
    event = stage.waiting()
    OutboxEvent.objects.filter(pk=event.pk).update(created_at=timezone.now() - timedelta(seconds=180.2))
    bury(handler, 2)
    code, _, err = run(*arguments)
    assert code == (1 if told else 0)
    assert len(err.splitlines()) == len(told)
    assert all(re.search(each, line) for each, line in zip(told, err.splitlines(), strict=True))


def test_a_relay_that_is_alive_is_not_silent(handler: str) -> None:
    relay(1)
    assert "No relay" not in run("--fail-if-silent")[2]


def test_a_handler_without_a_queue_is_silent(handler: str) -> None:
    relay(1)
    code, _, err = run("--fail-if-silent")
    assert code == 1
    assert err.startswith(f"{handler} has no queue yet")
    assert err.endswith("(--fail-if-silent)\n")


def test_a_broker_that_is_away_is_exit_code_3(handler: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "amqp://shop:sesame@127.0.0.1:9/%2F?connection_attempts=1"
    for arguments in ((), ("--json",), ("--fail-if-dead", "1")):
        code, out, err = run(*arguments)
        assert code == 3
        assert "The broker cannot be asked" in out
        assert err.startswith("the broker cannot be asked: ")
        assert len(err.splitlines()) == 1
        assert "sesame" not in out + err


def test_on_a_terminal_a_broker_that_is_away_is_told_once_unless_it_is_a_check(
    handler: str, settings: Any
) -> None:
    settings.DOMAIN_EVENT_BROKER = "amqp://127.0.0.1:9/%2F?connection_attempts=1"
    for arguments, lines in (((), 0), (("--fail-if-lag", "60"), 1)):
        terminal, err = Terminal(-1), io.StringIO()
        with pytest.raises(SystemExit, match="3"):
            call_command("broker_status", *arguments, stdout=terminal, stderr=err)
        assert "The broker cannot be asked" in terminal.getvalue()
        assert len(err.getvalue().splitlines()) == lines


class Terminal(io.StringIO):
    """A terminal at which somebody presses Ctrl-C after some screens."""

    def __init__(self, screens: int) -> None:
        super().__init__()
        self._screens = screens

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self._screens -= 1
        if self._screens == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C be heard: whoever started the tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "signals are what they were"
    signal.signal(signal.SIGINT, before)


def watch(stream: io.StringIO, *arguments: str) -> str:
    call_command("broker_status", "--watch", "0.01", *arguments, stdout=stream)
    return stream.getvalue()


def test_the_watch_draws_the_screen_anew_until_ctrl_c(handler: str, ctrl_c: None) -> None:
    text = watch(Terminal(3))
    assert text.count("\x1b[H\x1b[2J") == 3
    assert text.count("every 0.01 s. Ctrl-C stops.") == 3
    assert text.count(handler) >= 3


def test_the_watch_writes_a_line_of_json_for_each_look(handler: str, ctrl_c: None) -> None:
    lines = watch(Terminal(3), "--json").splitlines()
    assert len(lines) == 3
    assert all("alerts" in json.loads(line) for line in lines)


def test_the_watch_goes_on_while_the_database_is_away(
    handler: str, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(alias: str) -> Any:
        raise OutboxUnavailable("the database is away")

    monkeypatch.setattr(broker_status, "outbox_status", away)
    assert watch(Terminal(2)) == "the database is away\n" * 2
    assert watch(Terminal(2), "--json") == '{"problem": "the database is away"}\n' * 2


def test_colours_are_for_terminals_and_not_for_those_who_want_none(
    handler: str, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(handler, 1)
    monkeypatch.setattr(sys, "stdout", Terminal(-1))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "DJANGO_COLORS", "ANSICON", "WT_SESSION"):
        monkeypatch.delenv(name, raising=False)
    assert "\x1b[" in watch(Terminal(1)).replace("\x1b[H\x1b[2J", "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in watch(Terminal(1)).replace("\x1b[H\x1b[2J", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--watch", "0"), "'0' is no number of seconds above 0"),
        (("--watch", "soon"), "'soon' is no number of seconds above 0"),
        (("--fail-if-lag", "-1"), "is no number of seconds above 0"),
        (("--fail-if-dead", "0"), "integer of 1 or more"),
        (("--watch", "--fail-if-dead", "1"), "--watch goes on"),
    ],
)
def test_wrong_arguments_are_told(handler: str, arguments: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        run(*arguments)
