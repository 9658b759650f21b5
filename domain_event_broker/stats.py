"""What a publisher or a subscriber did so far, in figures: cheap to count, ready for JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

#: Ways in which a delivery ends well; of a duplicate, and of what a filter leaves out, no handler hears.
_WELL = frozenset({"handled", "duplicate", "filtered"})

#: Reasons for which deliveries end in the dead letters without their handler: what is in them is no event for
#: it, or they have taken down too many processes.
_NOT_CALLED = frozenset({"malformed", "not-opened", "invalid-data", "newer-version", "too-large", "crashed"})

#: Fields that hold Unix time in seconds, shown as ISO 8601 in UTC.
_TIMES = ("last_publish_at", "last_consume_at", "last_error_at", "connected_at")


@dataclass(slots=True)
class Stats:
    """Counters of one object, from its making on; they start anew with :meth:`reset`.

    Each is counted by one thread; reading them from another shows figures of a moment ago.

    :param events_published: events handed to the broker and answered for.
    :param publish_confirms: those that a queue holds.
    :param publish_returns: those that no queue is bound for.
    :param events_consumed: deliveries received.
    :param events_processed_success: deliveries that ended handled.
    :param events_processed_failed: deliveries that ended otherwise: retried, or dead-lettered.
    :param handlers_invoked: times that a handler was given an event.
    :param handler_errors: failures of handlers, retries included.
    :param messages_sent_to_dlq: deliveries that ended in the dead letters.
    :param batch_publishes: batches published.
    :param batch_events_published: events of those batches that were published.
    :param batch_partial_failures: batches of which a part was published.
    :param background_tasks_created: batches left to a background thread.
    :param background_tasks_completed: those of them that are done with.
    :param reconnections: connections made after the first.
    :param last_publish_at: Unix time of the last event published, in seconds; 0: never. So are
        ``last_consume_at``, ``last_error_at``, and ``connected_at``.
    """

    events_published: int = 0
    publish_confirms: int = 0
    publish_returns: int = 0
    events_consumed: int = 0
    events_processed_success: int = 0
    events_processed_failed: int = 0
    handlers_invoked: int = 0
    handler_errors: int = 0
    messages_sent_to_dlq: int = 0
    batch_publishes: int = 0
    batch_events_published: int = 0
    batch_partial_failures: int = 0
    background_tasks_created: int = 0
    background_tasks_completed: int = 0
    reconnections: int = 0
    last_publish_at: float = 0.0
    last_consume_at: float = 0.0
    last_error_at: float = 0.0
    connected_at: float = 0.0

    def published(self, confirmed: int, returned: int) -> None:
        """Count events that the broker answered for.

        :param confirmed: those that it holds.
        :param returned: those that nobody subscribes to.
        """
        self.events_published += confirmed + returned
        self.publish_confirms += confirmed
        self.publish_returns += returned
        self.last_publish_at = time.time()

    def batch(self, total: int, published: int) -> None:
        """Count a batch, and say whether only a part of it was published."""
        self.batch_publishes += 1
        self.batch_events_published += published
        self.batch_partial_failures += 0 < published < total

    def consumed(self, events: int) -> None:
        """Count deliveries received."""
        self.events_consumed += events
        self.last_consume_at = time.time()

    def settled(self, outcomes: Iterable[tuple[str, str]]) -> None:
        """Count deliveries by the outcomes of their settlements, each with the reason of its failure."""
        for outcome, reason in outcomes:
            if outcome in _WELL:
                self.events_processed_success += 1
                self.handlers_invoked += outcome == "handled"
            elif outcome != "requeued":
                was_called = reason not in _NOT_CALLED
                self.handlers_invoked += was_called
                self.handler_errors += was_called
                self.events_processed_failed += 1
                self.messages_sent_to_dlq += outcome == "dead-lettered"
                self.last_error_at = time.time()

    def add(self, other: Stats) -> None:
        """Add what another object counted; of times the latest stays, of connections the first."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name == "connected_at":
                setattr(self, item.name, min(mine or theirs, theirs or mine))
            else:
                setattr(self, item.name, max(mine, theirs) if item.name in _TIMES else mine + theirs)

    def connected(self) -> None:
        """Count a connection."""
        self.reconnections += self.connected_at > 0
        self.connected_at = time.time()

    def reset(self) -> None:
        """Begin anew with zeros; the time of the connection stays."""
        connected_at = self.connected_at
        for item in fields(self):
            setattr(self, item.name, item.default)
        self.connected_at = connected_at

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as what ``json.dumps`` takes; times in ISO 8601, ``None``: never."""
        figures: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in _TIMES:
            figures[name] = _iso(figures[name])
        figures["uptime_seconds"] = max(0.0, time.time() - self.connected_at) if self.connected_at else 0.0
        return figures


def _iso(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else None
