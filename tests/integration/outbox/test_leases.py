"""Several relays share one outbox: each bucket is with one of them, and moves on when that dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.models import F

from domain_event_broker.config import OutboxSettings
from domain_event_broker.django.lease_table import LeaseTable
from domain_event_broker.django.models import BUCKETS, RelayHeartbeat, RelayLease
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.ports import Lease, Sent
from tests.djangoapp.databases import run_in_thread
from tests.harness.waiting import wait_until
from tests.integration.outbox.content import number, publish, refuse, send_all, stored

MakeRelay = Callable[..., DjangoRelayOutbox]
fork = multiprocessing.get_context("fork")


def test_a_relay_alone_gets_all_buckets_at_once(alias: str, make_relay: MakeRelay) -> None:
    assert set(make_relay(alias).renew().epochs) == set(range(BUCKETS))


def test_a_newcomer_gets_its_half_after_two_rounds(alias: str, make_relay: MakeRelay) -> None:
    old, new = make_relay(alias), make_relay(alias)
    old.renew()
    assert not new.renew().epochs
    leases = [old.renew().epochs, new.renew().epochs]
    assert [len(lease) for lease in leases] == [32, 32]
    assert not set(leases[0]) & set(leases[1])


def test_three_relays_share_everything_and_nothing_twice(alias: str, make_relay: MakeRelay) -> None:
    relays = [make_relay(alias) for _ in range(3)]
    for _ in range(3):
        leases = [relay.renew() for relay in relays]
    assert sorted(len(lease.epochs) for lease in leases) == [21, 21, 22]
    assert set().union(*(lease.epochs for lease in leases)) == set(range(BUCKETS))


def test_a_relay_that_leaves_frees_its_buckets_at_once(alias: str, make_relay: MakeRelay) -> None:
    old, new = make_relay(alias), make_relay(alias)
    old.renew()
    old.leave()
    assert len(new.renew().epochs) == BUCKETS


def test_the_buckets_of_a_silent_relay_move_on_when_its_lease_ends(alias: str, make_relay: MakeRelay) -> None:
    silent, other = make_relay(alias, lease_seconds=1.0), make_relay(alias, lease_seconds=1.0)
    lease = silent.renew()
    taken = wait_until(lambda: _full(other), 5, interval=0.1)
    assert time.monotonic() > lease.deadline, "the silent one had stopped by itself before"
    assert all(taken[bucket] > epoch for bucket, epoch in lease.epochs.items())
    assert not silent.renew().epochs


def test_the_deadline_of_a_lease_comes_before_its_end_in_the_database(
    alias: str, make_relay: MakeRelay
) -> None:
    before = time.monotonic()
    lease = make_relay(alias, lease_seconds=10.0).renew()
    assert lease.deadline <= before + 10.0 * 0.8 + 0.5
    ends = set(RelayLease.objects.using(alias).values_list("lease_until", flat=True))
    assert all(abs(end - (time.time() + 10.0)) < 2.0 for end in ends)


def test_lost_leases_are_written_again(alias: str, make_relay: MakeRelay) -> None:
    relay = make_relay(alias)
    relay.renew()
    RelayLease.objects.using(alias).filter(bucket__gte=10).delete()
    assert len(relay.renew().epochs) == BUCKETS


def test_rebuilt_leases_are_not_taken_while_others_may_still_send(alias: str, make_relay: MakeRelay) -> None:
    """The others hold leases in memory that the table no longer knows of."""
    first, second = make_relay(alias, lease_seconds=1.0), make_relay(alias, lease_seconds=1.0)
    deadline = max(first.renew().deadline, second.renew().deadline)
    RelayLease.objects.using(alias).all().delete()
    assert not first.renew().epochs
    wait_until(lambda: first.renew().epochs, 5, interval=0.1)
    assert time.monotonic() > deadline


def test_leases_of_the_dead_from_before_a_clock_was_set_back_move_on(
    alias: str, make_relay: MakeRelay
) -> None:
    dead, relay = make_relay(alias), LeaseTable(alias, 10.0, clock := Clock())
    dead.renew()
    _set_back(alias, 3600.0)
    for at, buckets in ((0.0, 0), (19.0, 0), (20.0, BUCKETS)):
        clock.now = at
        assert len(relay.renew().epochs) == buckets, at
    assert all(epoch > 1 for epoch in relay.renew().epochs.values()), "the dead would notice"
    relay.leave()


def test_a_relay_that_lives_keeps_its_leases_when_a_clock_is_set_back(
    alias: str, make_relay: MakeRelay
) -> None:
    alive, other = LeaseTable(alias, 10.0, clock := Clock()), LeaseTable(alias, 10.0, clock)
    alive.renew()
    _set_back(alias, 3600.0)
    assert not other.renew().epochs
    for at in (10.0, 20.0, 30.0):
        clock.now = at
        leases = [alive.renew().epochs, other.renew().epochs]
    assert [len(lease) for lease in leases] == [32, 32]
    assert all(leases[0][bucket] == 1 for bucket in leases[0]), "they never changed hands"
    alive.leave()
    other.leave()


def test_a_relay_seen_in_the_future_is_not_counted(alias: str, make_relay: MakeRelay) -> None:
    RelayHeartbeat.objects.using(alias).create(
        relay="dead", host="h", pid=1, started_at=0, seen_at=time.time() + 3600
    )
    assert len(make_relay(alias).renew().epochs) == BUCKETS


class Clock:
    """A monotonic clock that moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _set_back(alias: str, seconds: float) -> None:
    """Move what is written instead of the clock: the difference is the same."""
    RelayLease.objects.using(alias).update(lease_until=F("lease_until") + seconds)
    RelayHeartbeat.objects.using(alias).update(seen_at=F("seen_at") + seconds)


def test_relays_that_were_killed_are_forgotten_at_last(alias: str, make_relay: MakeRelay) -> None:
    RelayHeartbeat.objects.using(alias).create(relay="dead", host="h", pid=1, started_at=0, seen_at=0)
    make_relay(alias).renew()
    assert RelayHeartbeat.objects.using(alias).count() == 1


def test_two_relays_keep_the_order_of_every_key_and_lose_nothing(alias: str, make_relay: MakeRelay) -> None:
    sent: list[tuple[str | None, int]] = []
    lock, stop = threading.Lock(), threading.Event()

    def relay_events() -> None:
        relay = DjangoRelayOutbox(alias, OutboxSettings(lease_seconds=2.0))
        renew_at = 0.0
        lease = Lease({}, 0.0)
        while not stop.is_set():
            if time.monotonic() >= renew_at:
                renew_at, lease = time.monotonic() + 0.3, relay.renew()
            rows = relay.fetch(lease, 20)
            with lock:
                sent.extend((row.message.ordering_key, number(row)) for row in rows)
            relay.settle(lease, [Sent(row) for row in rows], [])
            if not rows:
                relay.wait(0.05)
        relay.leave()

    threads = [run_in_thread(relay_events, alias) for _ in range(2)]
    for n in range(400):
        publish(alias, n, key=f"key-{n % 7}")
    try:
        wait_until(lambda: len(sent) >= 400, 30, lambda: f"{len(sent)} of 400 sent")
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert len(sent) == 400
    for key in {key for key, _ in sent}:
        numbers = [n for k, n in sent if k == key]
        assert numbers == sorted(numbers)


def test_many_relays_with_few_buckets_each_send_everything_in_order(
    alias: str, make_relay: MakeRelay
) -> None:
    relays = [make_relay(alias, lease_seconds=30.0) for _ in range(8)]
    for _ in range(3):
        leases = [relay.renew() for relay in relays]
    for n in range(200):
        publish(alias, n, key=f"key-{n % 20}")
    blocked = publish(alias, 200, key="key-0")
    sent: list[tuple[str | None, int]] = []
    for relay, lease in zip(relays, leases, strict=True):
        rows = relay.fetch(lease, 500)
        assert {row.bucket for row in rows} <= set(lease.epochs)
        first = [row for row in rows if row.message.ordering_key == "key-0"][:1]
        refuse(relay, lease, first, retry_in=None)
        rows = relay.fetch(lease, 500)
        relay.settle(lease, [Sent(row) for row in rows], [])
        sent.extend((row.message.ordering_key, number(row)) for row in rows)
    assert len(sent) == 190
    for n in range(1, 20):
        assert [each for key, each in sent if key == f"key-{n}"] == list(range(n, 200, 20))
    assert stored(alias) == [*range(20, 200, 20), blocked.data["number"]]


def test_a_killed_relay_loses_nothing(postgresql: str, make_relay: MakeRelay) -> None:
    """SIGKILL between sending and settling: the next relay sends the same rows again."""
    for n in range(5):
        publish(postgresql, n, key="k")
    connections[postgresql].close()  # a child must not share it
    fetched = fork.Event()
    child = fork.Process(target=_fetch_and_hang, args=(postgresql, fetched), daemon=True)
    child.start()
    assert fetched.wait(20)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    relay = make_relay(postgresql, lease_seconds=1.0)
    assert send_all(relay) == [], "the lease of the dead one still runs"
    sent: list[int] = []
    wait_until(lambda: sent.extend(send_all(relay)) or sent, 5, interval=0.1)
    assert sent == [0, 1, 2, 3, 4]


def _full(relay: DjangoRelayOutbox) -> dict[int, int] | None:
    epochs = dict(relay.renew().epochs)
    return epochs if len(epochs) == BUCKETS else None


def _fetch_and_hang(alias: str, fetched: Any) -> None:
    relay = DjangoRelayOutbox(alias, OutboxSettings(lease_seconds=1.0))
    assert len(relay.fetch(relay.renew(), 10)) == 5
    fetched.set()
    signal.pause()
