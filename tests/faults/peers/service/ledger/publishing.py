"""The publisher: a row and its event, as each library says that it should be done."""

import os
import random
import time
import uuid
from collections.abc import Callable

from django.db import close_old_connections, transaction

from ledger.models import Deed

#: Share of transactions that roll back after having published.
ROLLBACKS = 0.08


def publish_for_ever(publish: Callable[[str], None], log: str, seed: str, pause: str) -> None:
    """Publish until killed; note what is known of each transaction: done, undone or unknown."""
    dice = random.Random(int(seed))
    while True:
        event_id = str(uuid.uuid4())
        try:
            outcome = _transaction(publish, event_id, dice.random() < ROLLBACKS)
        except Exception:
            outcome = "unknown"
            time.sleep(0.1)
        _note(log, outcome, event_id)
        close_old_connections()
        time.sleep(float(pause) * dice.random() * 2)


def _transaction(publish: Callable[[str], None], event_id: str, roll_back: bool) -> str:
    with transaction.atomic():
        Deed.objects.create(event_id=event_id)
        publish(event_id)
        if roll_back:
            transaction.set_rollback(True)
    return "undone" if roll_back else "done"


def _note(log: str, outcome: str, event_id: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{outcome} {event_id}\n".encode())
    os.close(descriptor)
