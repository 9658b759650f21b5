"""Replay: from the dead letters of one handler back into the queue of that handler."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from domain_event_broker import config, redaction
from domain_event_broker.codecs import PLAIN_BODIES, Bodies, bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import MalformedEvent
from domain_event_broker.events import DomainEvent
from domain_event_broker.ports import DeadLetter, DeadLetters, Decision, SiftReport
from domain_event_broker.routing import matches
from domain_event_broker.transports import open_transport

#: Replays of one letter after which :func:`replay` leaves it where it is.
MAX_REPLAYS = 3

#: Put the event back to work.
RETRY = Decision.RETRY
#: Leave the event in the dead letters.
LEAVE = Decision.LEAVE
#: Delete the event.
DISCARD = Decision.DISCARD


def retry_event(event: DomainEvent) -> Decision:
    """Answer ``RETRY`` for every event: the default of :func:`replay_event` and :func:`replay_all`."""
    return RETRY


def replay_event(
    queue_name: str,
    message_callback: Callable[[DomainEvent], Decision] = retry_event,
    connection_settings: str | None = "",
) -> int:
    """Move the oldest dead letter of a handler back into its queue.

    The event is stored in the queue before it leaves the dead letters: interrupted in
    between, it is in both, never in neither.

    :param queue_name: name of the handler.
    :param message_callback: gets the event, returns ``RETRY``, ``LEAVE`` or ``DISCARD``.
    :param connection_settings: URL of the broker; by default the configured one.
    :return: the number of events left in the dead letters.
    :raises BrokerUnavailable: the broker could not be reached, or went away.
    """
    with _open(queue_name, connection_settings) as letters:
        if letters is None:
            return 0
        letters.sift(_asking(message_callback), limit=1)
        return letters.count()


def replay_all(
    queue_name: str,
    message_callback: Callable[[DomainEvent], Decision] = retry_event,
    connection_settings: str | None = "",
) -> int:
    """Move all events that are in the dead letters of a handler now back into its queue.

    Parameters and guarantee are those of :func:`replay_event`. It ends, whatever is answered.

    :return: the number of events dead-lettered since it started.
    """
    with _open(queue_name, connection_settings) as letters:
        if letters is None:
            return 0
        report = letters.sift(_asking(message_callback))
        return max(0, letters.count() - report.left)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant; what is not given does not matter.

    :param event_ids: identities of events.
    :param routing_key: a binding key, such as ``"order.*"``, that the routing key must match.
    :param older_than: seconds since the failure.
    :param error_type: end of the name of the exception, such as ``"ServiceDown"``; of a letter that
        no exception brought there, its reason.
    :param failed_from: failed at this time or later; Unix time, in seconds.
    :param failed_to: failed at this time or before. Of a letter of which nobody knows when, both are true.
    :param text: part of its event id, of the message of its exception, or of what may be shown of its
        body; in capitals or not.
    """

    event_ids: frozenset[str] = frozenset()
    routing_key: str | None = None
    older_than: float | None = None
    error_type: str | None = None
    failed_from: float | None = None
    failed_to: float | None = None
    text: str | None = None

    def accepts(self, letter: DeadLetter) -> bool:
        """Tell whether ``letter`` is meant."""
        if self.event_ids and event_id_of(letter) not in self.event_ids:
            return False
        if self.routing_key is not None and not matches(self.routing_key, letter.routing_key):
            return False
        if self.error_type is not None and not kind_of(letter).endswith(self.error_type):
            return False
        if self.older_than is not None and _failed_at(letter) > time.time() - self.older_than:
            return False
        # The text comes last: to look for it, a body may have to be opened.
        return self._in_time(letter) and (self.text is None or _says(letter, self.text.casefold()))

    def _in_time(self, letter: DeadLetter) -> bool:
        failed_at = _failed_at(letter)
        if not failed_at:
            return True
        after = self.failed_from is None or failed_at >= self.failed_from
        return after and (self.failed_to is None or failed_at <= self.failed_to)


def browse(letters: DeadLetters, accept: LetterFilter, limit: int | None = None) -> list[DeadLetter]:
    """Return the dead letters that ``accept`` means, oldest first; nothing is changed."""
    found: list[DeadLetter] = []

    def look(letter: DeadLetter) -> Decision:
        if accept.accepts(letter):
            if limit is not None and len(found) >= limit:
                raise _Enough
            found.append(letter)
        return LEAVE

    with suppress(_Enough):
        letters.sift(look, _shown_at_most(accept, limit))
    return found


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did.

    :param left: letters that were looked at and stay.
    :param looping: those of them that were meant, but have been replayed too often.
    """

    replayed: int = 0
    discarded: int = 0
    left: int = 0
    looping: int = 0


def replay(
    letters: DeadLetters,
    accept: LetterFilter,
    decision: Decision = RETRY,
    limit: int | None = None,
    progress: Callable[[DeadLetter], None] = lambda letter: None,
    max_replays: int | None = MAX_REPLAYS,
    stop: Callable[[], bool] = lambda: False,
) -> ReplayReport:
    """Do ``decision`` for up to ``limit`` dead letters that ``accept`` means, oldest first.

    It ends where it has done so many, however many there are.

    :param progress: called with each of them.
    :param max_replays: a letter that was replayed so often stays: it has come back each time.
        ``None``: it is replayed all the same.
    :param stop: asked before each; ``True`` ends it, and what was decided before is done.
    """
    choice = _Choice(accept, decision, limit, progress, max_replays, stop)
    try:
        report = letters.sift(choice.decide)
    except _Enough:
        # What was decided before is done; nobody but another replay at the same time did less of it.
        done = choice.taken
        report = SiftReport(*((done, 0) if decision is RETRY else (0, done)), left=choice.passed)
    return ReplayReport(report.replayed, report.discarded, report.left, choice.looping)


class _Enough(Exception):
    """Ends a look through the letters."""


class _Choice:
    """The decisions of one :func:`replay`."""

    def __init__(
        self,
        accept: LetterFilter,
        decision: Decision,
        limit: int | None,
        progress: Callable[[DeadLetter], None],
        max_replays: int | None,
        stop: Callable[[], bool],
    ) -> None:
        self._accept, self._decision, self._progress = accept, decision, progress
        self._limit, self._max_replays, self._stop = limit, max_replays, stop
        self.taken = self.passed = self.looping = 0

    def decide(self, letter: DeadLetter) -> Decision:
        """Return what becomes of ``letter``."""
        if self._stop():
            raise _Enough
        if not self._accept.accepts(letter):
            self.passed += 1
            return LEAVE
        if self._decision is RETRY and is_looping(letter, self._max_replays):
            self.passed += 1
            self.looping += 1
            return LEAVE
        if self._limit is not None and self.taken >= self._limit:
            raise _Enough
        self.taken += 1
        self._progress(letter)
        return self._decision


def is_looping(letter: DeadLetter, max_replays: int | None = MAX_REPLAYS) -> bool:
    """Tell whether a letter has come back from so many replays that another one needs a reason."""
    return max_replays is not None and letter.replays >= max_replays


def event_of(letter: DeadLetter) -> DomainEvent:
    """Return the event in a dead letter; one without data where the body is no event, or stays sealed."""
    try:
        return _bodies().decode(letter.body, letter.headers, letter.event_id, _attempts(letter))
    except MalformedEvent:
        return DomainEvent(letter.routing_key, {}, uuid_string=letter.event_id)


def _bodies() -> Bodies:
    settings = config.current()
    return PLAIN_BODIES if settings is None else bodies_of(settings)


def kind_of(letter: DeadLetter) -> str:
    """Return what letters that died of the same thing share: the exception, or else the reason."""
    return (letter.failure.error_type or letter.failure.reason) if letter.failure else ""


def event_id_of(letter: DeadLetter) -> str:
    """Return the identity on the envelope of a dead letter, or else in its body, or ``""``."""
    return letter.event_id or event_of(letter).uuid_string


def _shown_at_most(accept: LetterFilter, limit: int | None) -> int | None:
    """Return how many letters must be looked at: where any will do, no more than are wanted."""
    return limit if accept == LetterFilter() else None


def identity_of(letter: DeadLetter) -> str:
    """Return what tells a dead letter from others: its event id, or else a digest of what it is."""
    return (
        letter.event_id
        or hashlib.sha256(
            letter.routing_key.encode("utf-8", "surrogatepass") + b"\0" + letter.body
        ).hexdigest()
    )


@contextmanager
def _open(queue_name: str, connection_settings: str | None) -> Iterator[DeadLetters | None]:
    settings: BrokerSettings | None = config.resolve(connection_settings)
    if settings is None:
        yield None
        return
    transport = open_transport(settings)
    try:
        yield transport.dead_letters(queue_name)
    finally:
        transport.close()


def _asking(callback: Callable[[DomainEvent], Decision]) -> Callable[[DeadLetter], Decision]:
    return lambda letter: Decision(callback(event_of(letter)))


def _attempts(letter: DeadLetter) -> int:
    return letter.failure.attempts if letter.failure else 0


def _says(letter: DeadLetter, text: str) -> bool:
    """Tell whether what may be shown of a letter holds a text."""
    told = (event_id_of(letter), letter.failure.message if letter.failure else "")
    if any(text in each.casefold() for each in told):
        return True
    return text in redaction.shown(letter.body, letter.headers).casefold()


def _failed_at(letter: DeadLetter) -> float:
    return letter.failure.failed_at if letter.failure else 0.0
