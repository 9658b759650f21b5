"""How a relay learns at once that something was published.

Nothing depends on it: a relay that hears nothing looks by itself within ``POLL_SECONDS``. So
a wake-up may be left out, and none is ever waited for.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from typing import Protocol

from django.db import connections

#: PostgreSQL channel on which publishers tell relays that there is something to send.
CHANNEL = "domain_event_broker_outbox"

#: Seconds for which a process says nothing after it has notified, if its commits follow each other
#: closely (see ``CLOSE_SECONDS``). A relay that was woken looks again several times within this time,
#: so what is published meanwhile is seen by that.
NOTIFY_INTERVAL = 0.05

#: Seconds after the last commit with events from which on the next one is told of at once, whatever
#: ``NOTIFY_INTERVAL`` says: a relay may look more seldom by then. One that was woken looks by itself 5 and
#: 15 milliseconds later, so at most about 10 milliseconds are lost on a commit within this time; and a
#: process notifies no more than some 66 times a second, however it commits.
CLOSE_SECONDS = 0.015


class Sleeper(Protocol):
    """Something in this process that waits for events of one database."""

    def wake(self) -> None:
        """Make it look."""


_sleepers: dict[str, weakref.WeakSet[Sleeper]] = {}
_lock = threading.Lock()
_notified_at: dict[str, float] = {}
_committed_at: dict[str, float] = {}


def add_sleeper(alias: str, sleeper: Sleeper) -> None:
    """Wake ``sleeper`` from now on when this process publishes on the database ``alias``."""
    with _lock:
        _sleepers.setdefault(alias, weakref.WeakSet()).add(sleeper)


def remove_sleeper(alias: str, sleeper: Sleeper) -> None:
    """Leave ``sleeper`` alone from now on."""
    with _lock:
        _sleepers.get(alias, weakref.WeakSet()).discard(sleeper)


def announce(alias: str) -> None:
    """Tell relays that committed events wait in the database ``alias``.

    Called after the commit, never within the business transaction: ``NOTIFY`` takes a lock
    there that all committing transactions share, and halves the commits per second.
    """
    with _lock:
        sleepers = list(_sleepers.get(alias, ()))
    for sleeper in sleepers:
        sleeper.wake()
    if connections[alias].vendor == "postgresql" and _is_time(alias):
        notify(alias)


def _is_time(alias: str) -> bool:
    now = time.monotonic()
    is_close = now - _committed_at.get(alias, -math.inf) < CLOSE_SECONDS
    _committed_at[alias] = now
    if is_close and now - _notified_at.get(alias, -math.inf) < NOTIFY_INTERVAL:
        return False
    _notified_at[alias] = now
    return True


def notify(alias: str) -> None:
    """Wake the relays that listen in PostgreSQL.

    In a statement of its own, which need not wait for the disk: it stores nothing.
    """
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT set_config('synchronous_commit', 'off', true), pg_notify(%s, '')", [CHANNEL])
