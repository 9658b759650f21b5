"""Figures in shared memory, verdicts over them, and how they are read over HTTP."""

from __future__ import annotations

import builtins
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from domain_event_broker.config import MonitoringSettings
from domain_event_broker.errors import BrokerUnavailable, ConfigurationError, OutboxUnavailable
from domain_event_broker.monitoring.board import Board
from domain_event_broker.monitoring.health import Health
from domain_event_broker.monitoring.metrics import (
    Exporter,
    OutboxFigures,
    RelaySource,
    SubscriberSource,
)
from domain_event_broker.monitoring.monitor import RelayMonitor, SubscriberMonitor
from domain_event_broker.monitoring.recorder import (
    BOUNDS,
    OUTCOMES,
    RelayRecorder,
    SubscriberRecorder,
    ended,
    relay_columns,
    subscriber_columns,
)
from domain_event_broker.monitoring.sampler import Sampler
from domain_event_broker.monitoring.server import Answer, Server
from domain_event_broker.ports import Action, Delivery, QueueStats, Settlement
from tests.harness.waiting import wait_until
from tests.runner import ROOT
from tests.unit.clock import Clock

HANDLERS = ["billing", "mail"]
FIGURES = OutboxFigures(3, 12.5, {"parked": 2}, 4.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settled(queue: str, outcome: str, seconds: float = 0.0) -> Settlement:
    return Settlement(Delivery(queue, b"", "a.b"), Action.ACK, outcome=outcome, seconds=seconds)


# --- the board --------------------------------------------------------------------------


FORKING = """
import os, signal
from domain_event_broker.monitoring.board import Board

board = Board([("one",), ("two", "x")], rows=2)
pid = os.fork()
if not pid:
    board.rows[1].add(2.5, "two", "x")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
board.rows[0].add(1, "two", "x")
print([row.get("two", "x") for row in board.rows], board.total("two", "x"), board.total("one"))
"""


def test_what_a_process_wrote_stays_when_it_is_killed() -> None:
    # In a program of its own: to fork one that has threads, as this one has, is asking for trouble.
    told = subprocess.run(
        [sys.executable, "-c", FORKING], cwd=ROOT, timeout=60, capture_output=True, text=True, check=False
    )
    assert told.stdout == "[1.0, 2.5] 3.5 0.0\n", told.stderr


# --- recording --------------------------------------------------------------------------


def test_durations_of_a_handler_go_into_their_classes() -> None:
    board = Board(subscriber_columns(HANDLERS))
    recorder = SubscriberRecorder(board.rows[0], HANDLERS)
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 0.001, 1e6):
        recorder.settled([settled("mail", "handled", seconds)])
    recorder.settled([settled("mail", "duplicate", 1.0)])  # no handler was called: no duration
    counts = [board.total("duration", "mail", str(number)) for number in range(len(BOUNDS) + 1)]
    assert counts == [2, 1, *[0] * (len(BOUNDS) - 2), 1]
    assert board.total("duration", "billing", "0") == 0
    assert board.total("settled", "mail", "duplicate") == 1


def test_in_flight_is_what_came_and_was_not_settled_over_this_connection() -> None:
    board = Board(subscriber_columns(HANDLERS))
    recorder = SubscriberRecorder(board.rows[0], HANDLERS)
    recorder.connected()
    recorder.received([Delivery("mail", b"", "a.b")] * 3)
    recorder.settled([settled("mail", "requeued")])
    assert board.total("in flight", "mail") == 2
    recorder.away(BrokerUnavailable("gone"))
    assert board.total("in flight", "mail") == 0


def test_every_outcome_of_the_library_can_be_counted() -> None:
    board = Board(subscriber_columns(HANDLERS))
    recorder = SubscriberRecorder(board.rows[0], HANDLERS)
    recorder.settled([settled("billing", outcome) for outcome in OUTCOMES])
    assert [board.total("settled", "billing", outcome) for outcome in OUTCOMES] == [1] * len(OUTCOMES)


def test_the_first_connection_is_no_reconnect() -> None:
    board = Board(relay_columns())
    recorder = RelayRecorder(board.rows[0])
    for expected in (0, 1, 2):
        recorder.connected()
        assert board.total("reconnects") == expected


def test_of_a_dead_process_counters_stay_and_the_rest_goes() -> None:
    board = Board(subscriber_columns(HANDLERS))
    recorder = SubscriberRecorder(board.rows[0], HANDLERS)
    recorder.connected()
    recorder.received([Delivery("mail", b"", "a.b")] * 2)
    recorder.settled([settled("mail", "handled", 0.2)])
    ended(board.rows[0], HANDLERS)
    assert board.total("settled", "mail", "handled") == 1
    assert board.total("duration", "mail", "sum") == 0.2
    assert (board.total("in flight", "mail"), board.total("at work")) == (0, 0)


# --- health -----------------------------------------------------------------------------


def relay_health(clock: Clock, lag: float | None = None) -> tuple[RelayRecorder, Health]:
    board = Board(relay_columns())
    settings = MonitoringSettings(stuck_seconds=100, away_seconds=10, lag_seconds=50)
    return RelayRecorder(board.rows[0], clock), Health("relay", board, settings, lambda: lag, clock)


def test_a_relay_is_ready_when_it_has_come_to_its_work(clock: Clock) -> None:
    recorder, health = relay_health(clock)
    assert health.ready().reasons == ("the relay is being started",)
    recorder.leased(64)
    assert health.ready().is_well
    assert health.live().is_well


def test_a_worker_that_does_not_go_on_is_stuck_and_one_that_waits_is_not(clock: Clock) -> None:
    recorder, health = relay_health(clock)
    recorder.leased(64)
    recorder.alive(500)
    clock.now += 599
    assert health.live().is_well
    clock.now += 2
    assert health.live().reasons == (
        "the relay should have gone on 101 s ago: it is stuck, or cannot be started",
    )
    assert not health.ready().is_well
    recorder.alive()
    assert health.live().is_well


@pytest.mark.parametrize(
    ("error", "peer"), [(BrokerUnavailable("x"), "broker"), (OutboxUnavailable("x"), "database")]
)
def test_what_is_away_for_too_long_makes_unready_and_not_dead(
    clock: Clock, error: Exception, peer: str
) -> None:
    recorder, health = relay_health(clock)
    recorder.leased(64)
    recorder.away(error)
    clock.now += 9
    recorder.away(error)  # tried again: it is away since the first time
    recorder.alive()
    assert health.ready().is_well
    clock.now += 2
    assert health.ready().reasons == (f"the relay: the {peer} has been away for 11 s",)
    assert health.live().is_well
    clock.now += 1000  # for so long: a new start would not help
    recorder.away(error)
    assert health.live().is_well
    recorder.back()
    assert health.ready().is_well


def test_a_broker_that_is_away_means_that_the_database_has_answered(clock: Clock) -> None:
    recorder, health = relay_health(clock)
    recorder.leased(64)
    recorder.away(OutboxUnavailable("x"))
    clock.now += 11
    recorder.away(BrokerUnavailable("x"))
    assert health.ready().is_well


@pytest.mark.parametrize(("lag", "ready"), [(None, True), (0.0, True), (50.0, True), (51.0, False)])
def test_events_that_wait_for_too_long_make_a_relay_unready(
    clock: Clock, lag: float | None, ready: bool
) -> None:
    recorder, health = relay_health(clock, lag)
    recorder.leased(64)
    assert health.ready().is_well is ready
    assert health.live().is_well


def test_one_of_several_subscribers_is_named(clock: Clock) -> None:
    board = Board(subscriber_columns(HANDLERS), rows=2)
    health = Health("subscriber", board, MonitoringSettings(), clock=clock)
    SubscriberRecorder(board.rows[0], HANDLERS, clock).connected()
    assert health.ready().reasons == ("subscriber 2 of 2 is being started",)
    SubscriberRecorder(board.rows[1], HANDLERS, clock).connected()
    assert health.ready().is_well
    clock.now += 181
    assert [reason[:17] for reason in health.live().reasons] == ["subscriber 1 of 2", "subscriber 2 of 2"]


# --- sampling ---------------------------------------------------------------------------


def test_a_question_that_is_not_answered_keeps_nobody_waiting_and_is_not_asked_twice() -> None:
    release, asked = threading.Event(), []

    def ask() -> int:
        asked.append(1)
        release.wait(60)
        return 7

    sampler = Sampler("it", ask, fresh=0.0, patience=0.05)
    assert sampler.latest() == (None, False)
    assert sampler.latest() == (None, False)
    assert len(asked) == 1
    release.set()
    wait_until(lambda: sampler.latest() == (7, True), 30)


def test_the_last_answer_is_kept_while_there_is_no_other_and_the_log_tells_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: Iterator[Any] = iter([1, OSError("amqp://me:secret-word@host is gone"), OSError("still"), 2])

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    sampler = Sampler("it", ask, fresh=0.0, patience=30.0)
    with caplog.at_level(logging.WARNING, "domain_event_broker.monitoring"):
        assert [sampler.latest() for _ in range(4)] == [(1, True), (1, False), (1, False), (2, True)]
    (record,) = caplog.records
    assert "it cannot be asked" in record.getMessage()
    assert "secret-word" not in record.getMessage()


def test_a_question_that_asks_the_program_to_end_is_asked_again() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        if len(asked) == 1:
            raise SystemExit(3)
        return 7

    sampler = Sampler("it", ask, fresh=0.0, patience=30.0)
    assert [sampler.latest() for _ in range(2)] == [(None, False), (7, True)]


def test_it_is_asked_again_after_no_thread_could_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sampler = Sampler("it", lambda: 7, fresh=0.0, patience=30.0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert sampler.latest() == (None, False)
    assert sampler.latest() == (7, True)


def test_a_fresh_answer_is_not_asked_for_again() -> None:
    asked: list[int] = []
    sampler = Sampler("it", lambda: asked.append(1), fresh=60.0, patience=30.0)
    for _ in range(3):
        sampler.latest()
    assert len(asked) == 1


# --- metrics ----------------------------------------------------------------------------


def relay_exporter(others: list[Any] | None = None) -> Exporter:
    board = Board(relay_columns())
    RelayRecorder(board.rows[0]).relayed(0.2, 5, 1, 2, 0)
    return Exporter(RelaySource(board, Sampler("it", lambda: FIGURES, patience=30.0)).read, others or [])


def parsed(exporter: Exporter, accept: str, parse: Callable[[str], Any]) -> dict[str, float]:
    body, _ = exporter.render(accept)
    return {
        f"{sample.name}{','.join(sample.labels.values())}": sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "parse"),
    [
        ("", text_string_to_metric_families),
        ("application/openmetrics-text; version=1.0.0", open_families),
    ],
    ids=["text", "openmetrics"],
)
def test_both_formats_of_prometheus_can_be_read(accept: str, parse: Callable[[str], Any]) -> None:
    found = parsed(relay_exporter(), accept, parse)
    assert found["domain_event_broker_relay_events_totalconfirmed"] == 5
    assert found["domain_event_broker_relay_batch_seconds_bucket0.1"] == 0
    assert found["domain_event_broker_relay_batch_seconds_bucket0.25"] == 1
    assert found["domain_event_broker_relay_batch_seconds_bucket+Inf"] == 1
    assert found["domain_event_broker_outbox_oldest_seconds"] == 12.5
    assert found["domain_event_broker_outbox_held_eventsparked"] == 2


def test_depths_that_a_broker_cannot_tell_are_left_out() -> None:
    board = Board(subscriber_columns(HANDLERS))
    stats: Mapping[str, QueueStats] = {
        "billing": QueueStats(True, ready=4, dead=1),
        "mail": QueueStats(False),
    }
    source = SubscriberSource(board, HANDLERS, Sampler("it", lambda: stats, patience=30.0))
    found = parsed(Exporter(source.read), "", text_string_to_metric_families)
    assert found["domain_event_broker_queue_eventsbilling,ready"] == 4
    assert found["domain_event_broker_queues_up"] == 1
    assert not [name for name in found if "queue_" in name and ("mail" in name or "in_flight" in name)]
    assert "domain_event_broker_queue_consumersbilling" not in found


def test_a_collector_of_the_program_that_fails_does_not_hide_ours(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("broken")

    found = parsed(relay_exporter([Broken()]), "", text_string_to_metric_families)
    assert found["domain_event_broker_outbox_up"] == 1
    assert "metrics of the program cannot be read" in caplog.text


def test_without_the_client_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigurationError, match=r"django-domain-event-broker\[metrics\]"):
        RelayMonitor(MonitoringSettings(), lambda: FIGURES, 0, None)
    RelayMonitor(MonitoringSettings(), lambda: FIGURES, None, 0).close()  # health needs none


# --- the server -------------------------------------------------------------------------


@pytest.fixture
def monitor() -> Iterator[SubscriberMonitor]:
    monitor = SubscriberMonitor(MonitoringSettings(), HANDLERS, 1, dict, 0, None)
    monitor.start()
    yield monitor
    monitor.stop()


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_pages_are_answered_and_others_are_not_found(monitor: SubscriberMonitor) -> None:
    port = monitor.servers[0].port
    status, kind, body = ask(port, "/readyz?verbose=1")
    assert (status, kind) == (503, "application/json")
    assert json.loads(body) == {"status": "failing", "reasons": ["the subscriber is being started"]}
    monitor.observer().connected()
    assert ask(port, "/readyz")[0] == 200
    assert ask(port, "/livez", "HEAD")[::2] == (200, b"")
    status, kind, body = ask(port, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert b"domain_event_broker_processes 1.0" in body
    assert ask(port, "/admin")[0] == 404
    assert ask(port, "/metrics", "POST")[0] == 501


def test_a_client_that_says_nothing_keeps_no_other_waiting(monitor: SubscriberMonitor) -> None:
    port = monitor.servers[0].port
    with socket.create_connection(("127.0.0.1", port)):
        assert ask(port, "/livez")[0] == 200


def test_a_page_that_fails_is_an_error_of_the_server_with_nothing_of_it_in_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(accept: str) -> Answer:
        raise RuntimeError("secret-word")

    server = Server("127.0.0.1", 0, {"/metrics": fail})
    server.start()
    try:
        status, _, body = ask(server.port, "/metrics")
    finally:
        server.stop()
    assert status == 500
    assert b"secret-word" not in body
    assert "the page /metrics could not be made" in caplog.text


def test_an_address_of_version_six_is_written_in_brackets() -> None:
    try:
        server = Server("::1", 0, {"/livez": lambda accept: Answer(b"", "text/plain")})
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    assert server.url == f"http://[::1]:{server.port}"
    server.close()


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on .*ADDRESS"):
        Server("203.0.113.1", 0, {})
