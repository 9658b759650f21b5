"""Batches of events: how they are split where order matters, and the account of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from domain_event_broker.errors import BatchPublishError
from domain_event_broker.events import Message

Item = TypeVar("Item")

#: Failures that an account tells one by one; it counts all of them.
MAX_FAILURES = 1000


@dataclass(frozen=True, slots=True)
class PublishFailure:
    """An event of a batch that was not published, or is not known to be.

    :param event: what was given to be published.
    :param reason: why, in words of the broker or of this library.
    :param maybe_stored: whether the broker may have it all the same.
    """

    event: Any
    event_id: str
    routing_key: str
    reason: str
    maybe_stored: bool = False


@dataclass(frozen=True, slots=True)
class BatchAccount:
    """What became of a batch: ``total == published + failed``.

    :param published: events that the broker answered for, so that they need no further care.
    :param unroutable: those of them that no queue is bound for.
    :param failed: the others.
    :param failures: these, with reasons; the first 1,000.
    :param chunks: parts that it was sent in, each answered for before the next one went.
    """

    total: int = 0
    published: int = 0
    unroutable: int = 0
    failed: int = 0
    failures: tuple[PublishFailure, ...] = ()
    chunks: int = 0

    def check(self) -> None:
        """Return if all were published.

        :raises BatchPublishError: some were not; the error has this account.
        """
        if self.failed:
            first = self.failures[0]
            raise BatchPublishError(
                f"{self.failed} of {self.total} events were not published, first {first.routing_key!r} "
                f"({first.event_id}): {first.reason}",
                self,
            )


class Tally:
    """Counts what becomes of events until it is an account."""

    def __init__(self) -> None:
        self._published = 0
        self._unroutable = 0
        self._failed = 0
        self._failures: list[PublishFailure] = []
        self.chunks = 0

    def published(self, unroutable: bool) -> None:
        """Count an event that the broker answered for."""
        self._published += 1
        self._unroutable += unroutable

    def failed(self, event: Any, message: Message, reason: str, maybe_stored: bool = False) -> PublishFailure:
        """Count one that failed, and return how."""
        failure = PublishFailure(event, message.event_id, message.routing_key, reason, maybe_stored)
        self._failed += 1
        if len(self._failures) < MAX_FAILURES:
            self._failures.append(failure)
        return failure

    def account(self) -> BatchAccount:
        """Return what was counted so far."""
        return BatchAccount(
            self._published + self._failed,
            self._published,
            self._unroutable,
            self._failed,
            tuple(self._failures),
            self.chunks,
        )


def waves(items: Sequence[Item], key_of: Callable[[Item], str | None]) -> list[list[Item]]:
    """Split items so that no part holds two of one key; order within a key is kept.

    Parts are published one after the other, each as a whole: should the broker refuse an
    event, no later one of the same key is under way already, and their order can be kept.
    """
    result: list[list[Item]] = []
    seen: dict[str, int] = {}
    for item in items:
        key = key_of(item)
        index = 0 if key is None else seen.get(key, 0)
        if key is not None:
            seen[key] = index + 1
        if index == len(result):
            result.append([])
        result[index].append(item)
    return result


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Split items into parts of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]
