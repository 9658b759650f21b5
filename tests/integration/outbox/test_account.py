"""The account of the outbox, with relays killed while publishers are at work."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connections, transaction

from domain_event_broker import DomainEvent, publish_domain_event
from domain_event_broker.config import OutboxSettings
from domain_event_broker.django.models import HeldEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.errors import OutboxUnavailable
from domain_event_broker.ports import Held, OutboxRow, Sent
from tests.djangoapp.shop.models import Order
from tests.harness.waiting import wait_until

KEYS = 20
PUBLISH_SECONDS = 4.0
fork = multiprocessing.get_context("fork")


@pytest.mark.parametrize("vendor", ["postgresql", "mariadb"])
def test_killed_relays_lose_nothing_and_keep_the_order_of_every_key(
    vendor: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    alias: str = request.getfixturevalue(f"{vendor}_alias")
    for model in (Order, OutboxEvent, HeldEvent):
        model._default_manager.using(alias).all().delete()
    Order.objects.using(alias).bulk_create([Order(number=f"key-{n}") for n in range(KEYS)])
    connections[alias].close()  # children must not share it
    published, sent = tmp_path / "published", tmp_path / "sent"
    publishers = [_start(_publish, alias, published, seed) for seed in range(3)]
    relays = [_start(_relay, alias, sent, seed) for seed in range(3)]
    try:
        for victim in range(2):
            lines = _count(sent)
            wait_until(lambda lines=lines: _count(sent) > lines + 50, 30)  # type: ignore[misc]
            os.kill(relays[victim].pid or 0, signal.SIGKILL)
            relays.append(_start(_relay, alias, sent, 10 + victim))
        for publisher in publishers:
            publisher.join(60)
        wait_until(lambda: not _left(alias), 60, lambda: f"all sent; {_left(alias)} left")
    finally:
        for child in publishers + relays:
            child.kill()
            child.join()
        connections[alias].close()
    wanted, got = _read(published), _read(sent)
    assert set(got) == set(wanted)
    for key in {key for key, _ in got}:
        first_sends = list(dict.fromkeys(number for each, number in got if each == key))
        assert first_sends == sorted(first_sends), key


def _publish(alias: str, log: Path, seed: int) -> None:
    """Change a row and tell of it, again and again; some transactions are slow, some roll back."""
    dice, end = random.Random(seed), time.monotonic() + PUBLISH_SECONDS
    while time.monotonic() < end:
        key = f"key-{dice.randrange(KEYS)}"
        with transaction.atomic(using=alias):
            order = Order.objects.using(alias).select_for_update().get(number=key)
            order.total += 1
            order.save(using=alias)
            publish_domain_event("test.done", {"number": order.total}, key, using=alias)
            time.sleep(dice.choice((0, 0, 0, 0.02)))  # others commit meanwhile, with higher ids
            if dice.random() < 0.05:
                transaction.set_rollback(True, using=alias)
                continue
        _write(log, [(key, order.total)])


def _relay(alias: str, log: Path, seed: int) -> None:
    """Send to a file instead of a broker, which refuses an event now and then."""
    dice = random.Random(seed)
    relay = DjangoRelayOutbox(alias, OutboxSettings(lease_seconds=2.0))
    renew_at = 0.0
    while True:
        try:
            if time.monotonic() >= renew_at:
                renew_at, lease = time.monotonic() + 0.5, relay.renew()
            rows = relay.fetch(lease, 50)
            if time.monotonic() < lease.deadline:
                sent, held = _answers(rows, dice)
                _write(log, [(each.row.message.ordering_key, _number(each.row)) for each in sent])
                relay.settle(lease, sent, held)
        except OutboxUnavailable:
            renew_at = 0.0
        if not rows:
            relay.wait(0.1)


def _answers(rows: list[OutboxRow], dice: random.Random) -> tuple[list[Sent], list[Held]]:
    sent: list[Sent] = []
    held: dict[str | None, Held] = {}
    for row in rows:
        key = row.message.ordering_key
        if key in held:
            continue
        if dice.random() < 0.02:
            held[key] = Held(row, "not now", dice.random() * 0.3, block_key=True)
        else:
            sent.append(Sent(row))
    return sent, list(held.values())


def _number(row: OutboxRow) -> int:
    result: int = DomainEvent.from_json(row.message.body).data["number"]
    return result


def _start(work: Callable[[str, Path, int], None], *arguments: object) -> multiprocessing.process.BaseProcess:
    child = fork.Process(target=work, args=arguments, daemon=True)
    child.start()
    return child


def _write(log: Path, lines: list[tuple[str | None, int]]) -> None:
    """Append all lines or none: whoever is killed in the middle of it leaves no half of one."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _read(log: Path) -> list[tuple[str, int]]:
    return [(key, number) for key, number in map(json.loads, log.read_text().splitlines())]


def _count(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def _left(alias: str) -> int:
    return sum(model._default_manager.using(alias).count() for model in (OutboxEvent, HeldEvent))
