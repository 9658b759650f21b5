"""Publishers: change a row and tell of it, in one transaction; what the database said goes to a file."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from django.db import Error, connection, transaction

from domain_event_broker import publish_domain_event
from domain_event_broker.errors import OutboxUnavailable
from domain_event_broker.events import new_event_id
from tests.faults.project.fates import fate_of
from tests.faults.project.models import Counter, Deed

KEYS = 12
#: Share of transactions that roll back after having published.
ROLLBACKS = 0.08


def publish_for_ever(log: Path, seed: int, pause: float) -> None:
    """Publish until killed; after each transaction write what is known of it: done, undone or unknown."""
    dice = random.Random(seed)
    while True:
        event_id = _any_event_id()
        try:
            committed = _publish(event_id, f"key-{dice.randrange(KEYS)}", dice.random() < ROLLBACKS, dice)
            _note(log, "done" if committed else "undone", event_id)
        except (Error, OutboxUnavailable):
            connection.close()
            _note(log, "unknown", event_id)
            time.sleep(0.1)
        time.sleep(pause * dice.random() * 2)


def publish_some(count: int, routing_key: str = "faults.done", event_ids: tuple[str, ...] = ()) -> None:
    """Publish so many events, one transaction each."""
    for number in range(count):
        event_id = event_ids[number] if event_ids else _any_event_id()
        _publish(event_id, f"key-{number % KEYS}", False, random.Random(number), routing_key)


def _any_event_id() -> str:
    """Return a new identity, of any fate but those that this process is told to spare."""
    spared = os.environ.get("FAULTS_SPARE", "").split()
    candidates = iter(new_event_id, None)
    return next(each for each in candidates if fate_of(each) not in spared)


def _publish(
    event_id: str, key: str, roll_back: bool, dice: random.Random, routing_key: str = "faults.done"
) -> bool:
    with transaction.atomic():
        Counter.objects.get_or_create(key=key)
        counter = Counter.objects.select_for_update().get(key=key)
        counter.total += 1
        counter.save()
        Deed.objects.create(event_id=event_id, key=key, number=counter.total)
        data = {"number": counter.total, "seconds": float(os.environ.get("FAULTS_SECONDS", "0"))}
        publish_domain_event(routing_key, data, key, uuid_string=event_id)
        if dice.random() < 0.05:
            time.sleep(0.02)  # others commit meanwhile, with higher ids
        if roll_back:
            transaction.set_rollback(True)
    return not roll_back


def _note(log: Path, outcome: str, event_id: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{outcome} {event_id}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)
