"""A relay hears of new events at once, and finds them soon where it hears nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections, transaction

from domain_event_broker.django import waiting, wakeups
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from tests.djangoapp.databases import run_in_thread
from tests.harness.waiting import wait_until
from tests.integration.outbox.content import number, publish, stored

MakeRelay = Callable[..., DjangoRelayOutbox]

#: Longer than a test may take: whoever waits so long was not woken.
FOR_EVER = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relays look by themselves so seldom that only a wake-up explains an early return."""
    monkeypatch.setattr(waiting, "SHORTEST_POLL", FOR_EVER)


class Waiting:
    """A wait in a thread of its own."""

    def __init__(self, relay: DjangoRelayOutbox) -> None:
        self.returned = threading.Event()
        self._relay = relay
        self._thread = run_in_thread(self._wait, relay.alias)

    def _wait(self) -> None:
        self._relay.wait(FOR_EVER)
        self.returned.set()

    def ends(self, within: float = 5.0) -> bool:
        """Tell whether the wait ends in time."""
        return self.returned.wait(within)


def listening(relay: DjangoRelayOutbox) -> Waiting:
    """Start a wait on PostgreSQL; return it when the server would tell of new events."""

    def is_listening() -> bool:
        relay.wait(0)  # it notices here, too, that the server has ended the connection
        return relay.is_listening

    wait_until(is_listening, 5.0, "listening")
    return Waiting(relay)


def elsewhere(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make publishers of this process look like those of another: no relay in here hears them."""
    monkeypatch.setattr(wakeups, "_sleepers", {})
    monkeypatch.setattr(wakeups, "_notified_at", {})


def few_notifications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one notification be enough for all that is published from now on."""
    monkeypatch.setattr(wakeups, "NOTIFY_INTERVAL", FOR_EVER)
    monkeypatch.setattr(wakeups, "CLOSE_SECONDS", FOR_EVER)


def test_another_thread_ends_the_wait(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias, listen=False)
    wait = Waiting(relay)
    relay.wake()
    assert wait.ends()


def test_a_wake_up_before_the_wait_is_not_lost(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias, listen=False)
    relay.wake()
    relay.wait(FOR_EVER)


def test_a_wait_ends_by_itself(alias: str, make_relay: MakeRelay) -> None:
    start = time.monotonic()
    make_relay(alias, listen=False).wait(0.05)
    assert 0.04 <= time.monotonic() - start < 5.0


def test_publishing_in_the_same_process_ends_the_wait(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias, listen=False)
    relay.renew()
    wait = Waiting(relay)
    publish(alias, 1)
    assert wait.ends()


def test_the_wake_up_comes_with_the_commit_and_not_before(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias, listen=False)
    relay.renew()
    wait = Waiting(relay)
    with transaction.atomic(using=alias):
        publish(alias, 1)
        assert not wait.ends(0.2)
    assert wait.ends()


def test_a_rollback_wakes_nobody(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias, listen=False)
    relay.renew()
    wait = Waiting(relay)
    with transaction.atomic(using=alias):
        publish(alias, 1)
        transaction.set_rollback(True, using=alias)
    assert not wait.ends(0.2)
    relay.wake()
    assert wait.ends()


def test_a_transaction_announces_its_events_once(alias: str) -> None:
    with transaction.atomic(using=alias):
        for n in range(10):
            publish(alias, n)
        assert len(connections[alias].run_on_commit) == 1


def test_postgresql_tells_relays_of_other_processes(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = listening(make_relay(postgresql))
    elsewhere(postgresql, monkeypatch)
    publish(postgresql, 1)
    assert wait.ends()


def test_notifications_are_few(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One now and then is enough, and each costs the publisher a round trip."""
    elsewhere(postgresql, monkeypatch)
    few_notifications(monkeypatch)
    sent: list[str] = []
    monkeypatch.setattr(wakeups, "notify", sent.append)
    for n in range(10):
        publish(postgresql, n)
    assert sent == [postgresql]


def test_what_comes_after_a_silence_is_told_of_at_once(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(postgresql, monkeypatch)
    monkeypatch.setattr(wakeups, "NOTIFY_INTERVAL", FOR_EVER)
    monkeypatch.setattr(wakeups, "CLOSE_SECONDS", 0.0)
    sent: list[str] = []
    monkeypatch.setattr(wakeups, "notify", sent.append)
    for n in range(3):
        publish(postgresql, n)
    assert sent == [postgresql] * 3


def test_a_relay_that_was_woken_looks_again_soon_for_what_was_not_notified(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHORTEST_POLL", 0.02)
    relay = make_relay(postgresql)
    elsewhere(postgresql, monkeypatch)
    lease = relay.renew()
    wait_until(lambda: relay.wait(0) or relay.is_listening, 30, "listening")
    relay._waiter._interval = FOR_EVER  # as after a long silence
    wait = Waiting(relay)
    publish(postgresql, 1)
    assert wait.ends(30)
    assert [number(row) for row in relay.fetch(lease, 10)] == [1]
    few_notifications(monkeypatch)
    publish(postgresql, 2)
    assert Waiting(relay).ends(30), "it went back to looking seldom"
    assert [number(row) for row in relay.fetch(lease, 10)] == [1, 2]


def test_the_listener_comes_back_after_the_server_ended_its_connection(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make_relay(postgresql)
    wait = listening(relay)
    _terminate_listeners(postgresql)
    assert wait.ends(), "the loss itself ends the wait: something may have been missed"
    monkeypatch.setattr(waiting, "RECONNECT_SECONDS", (0.0, 0.0))
    relay._waiter._connect_at = 0.0
    wait = listening(relay)
    elsewhere(postgresql, monkeypatch)
    publish(postgresql, 1)
    assert wait.ends()


def test_a_server_that_answers_no_more_is_noticed(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that forgot the connection: nothing ever fails, nothing ever comes."""
    monkeypatch.setattr(waiting, "PING_SECONDS", 0.05)
    relay = make_relay(postgresql)
    relay.wait(0)
    assert relay.is_listening
    listener = relay._waiter._listener
    monkeypatch.setattr(listener, "read", lambda: False)  # what arrives is never seen
    wait_until(lambda: relay.wait(0.06) or not relay.is_listening, 5)


def test_an_answer_to_the_ping_keeps_the_listener(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PING_SECONDS", 0.02)
    relay = make_relay(postgresql)
    relay.wait(0)
    listener: Any = relay._waiter._listener
    pings = 0
    for _ in range(20):
        relay.wait(0.03)
        pings += listener._asked
    assert relay._waiter._listener is listener
    elsewhere(postgresql, monkeypatch)
    publish(postgresql, 1)
    wait_until(lambda: relay._waiter._has_news(relay._waiter._alarm, 1.0), 5)  # type: ignore[arg-type]


def test_listening_can_be_switched_off(postgresql: str, make_relay: MakeRelay) -> None:
    relay = make_relay(postgresql, listen=False)
    relay.wait(0)
    assert not relay.is_listening


def test_polling_finds_what_nobody_told_of(
    alias: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SHORTEST_POLL", 0.02)
    relay = make_relay(alias, listen=False)
    elsewhere(alias, monkeypatch)
    lease = relay.renew()
    publish(alias, 1)
    assert stored(alias) == [1]
    wait_until(lambda: relay.wait(0.1) or relay.fetch(lease, 10), 2)


def test_a_relay_that_nobody_can_listen_for_says_so_and_polls(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "CHANNEL", "no such; channel")
    relay = make_relay(postgresql)
    relay.wait(0.01)
    assert not relay.is_listening
    assert "polling" in caplog.text


def _terminate_listeners(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"
        )
        assert cursor.fetchall(), "somebody was listening"
