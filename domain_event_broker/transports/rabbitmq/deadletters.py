"""The dead letters of one handler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from domain_event_broker.errors import PublishFailed
from domain_event_broker.failures import Failure, without_failure
from domain_event_broker.ports import DeadLetter, Decision, PublishOutcome, SiftReport, Stored
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Connection, Fetched, Loop, broker_errors
from domain_event_broker.transports.rabbitmq.paging import Pager
from domain_event_broker.transports.rabbitmq.publishing import Outgoing, Sender
from domain_event_broker.transports.rabbitmq.topology import QueueState, Topology, letters_name

#: Letters that are sent back to work at once, and bytes of their bodies.
BATCH, BATCH_BYTES = 200, 8 * 1024 * 1024
#: Seconds after which a decision is carried out even if few others wait with it: somebody who
#: answers by hand wants each answer to count.
BATCH_SECONDS = 0.5
#: Seconds between two looks at the connection while ``decide`` takes its time: well below the
#: shortest heartbeat there is, one second.
KEEP_ALIVE_SECONDS = 0.25


class RabbitMQDeadLetters:
    """The queue ``<name>-dl``; letters of the older library look the same.

    :param sender: called for the one to publish with, so that nothing connects for a mere count.
    :param max_bytes: largest body that consumers take.
    """

    def __init__(
        self,
        queue: str,
        loop: Loop,
        connection: Connection,
        topology: Topology,
        sender: Callable[[], Sender],
        max_bytes: int,
    ) -> None:
        self._queue = queue
        self._loop = loop
        self._connection = connection
        self._topology = topology
        self._sender = sender
        self._max_bytes = max_bytes

    def count(self) -> int:
        """Return how many letters there are; those in the hands of a :meth:`sift` are not counted."""
        with broker_errors():
            state = self._state()
        return state.ready if state is not None else 0

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """Show each letter present at the start to ``decide`` once, and do as it says.

        Letters shown stay with this connection until the end, so that none is shown twice; those
        left go back all at once, in their order. ``decide`` may take its time: the connection is
        kept alive in the background.

        :raises PublishFailed: a letter cannot go back to work, because the handler's queue is
            missing or full; it stays where it is.
        """
        with broker_errors():
            if limit == 0 or self._state() is None:
                return SiftReport()
            pager = Pager(letters_name(self._queue), self._connection, self._state)
        letters = _Letters(self._queue, pager, self._sender)
        try:
            self._sift(pager, letters, decide, limit)
        finally:
            letters.finish()
        return letters.report

    def _sift(
        self, pager: Pager, letters: _Letters, decide: Callable[[DeadLetter], Decision], limit: int | None
    ) -> None:
        # Counted after the first was fetched: a queue that has no leader yet, after a restart of
        # the broker, answers that it is empty, but makes who fetches wait.
        with broker_errors():
            fetched = pager.first()
        letters.present = self.count() + pager.fetched
        left = letters.present if limit is None else min(limit, letters.present)
        with _kept_alive(self._loop) as paused:
            while fetched is not None:
                decision = Decision.LEAVE  # also if it raises
                try:
                    letter = self._read(fetched)
                    with paused():
                        decision = Decision(decide(letter))
                finally:
                    letters.apply(fetched, decision)
                left -= 1
                with broker_errors():
                    fetched = pager.next(left) if left > 0 else None

    def _state(self) -> QueueState | None:
        return self._topology.state(letters_name(self._queue))

    def _read(self, fetched: Fetched) -> DeadLetter:
        """Return a letter as ``decide`` sees it."""
        properties = fetched.properties
        return DeadLetter(
            queue=self._queue,
            body=fetched.body,
            routing_key=_routing_key(fetched, self._queue),
            event_id=wire.event_id_of(properties),
            headers=without_failure(wire.plain_headers(properties)),
            failure=self._failure(fetched),
            replays=wire.replays_of(properties),
        )

    def _failure(self, fetched: Fetched) -> Failure | None:
        failure = wire.failure_of(fetched.properties, self._queue)
        size = len(fetched.body)
        if failure is None or failure.host or failure.reason != "rejected" or size <= self._max_bytes:
            return failure
        # The broker's record has no room for why a consumer refused it.
        text = f"its body has {size} bytes, and at most {self._max_bytes} are allowed"
        return replace(failure, reason="too-large", message=f"{text} (setting MAX_PAYLOAD_BYTES)")


class _Letters:
    """Decisions about letters, carried out many at a time."""

    def __init__(self, queue: str, pager: Pager, sender: Callable[[], Sender]) -> None:
        self._queue = queue
        self._pager = pager
        self._sender = sender
        #: Letters that were there at the start.
        self.present = 0
        self._replaying: list[Fetched] = []
        self._bytes = 0
        self._discarding: list[int] = []
        self._flushed_at = time.monotonic()
        self._replayed = self._discarded = self._left = 0

    @property
    def report(self) -> SiftReport:
        """What became of the letters so far."""
        return SiftReport(self._replayed, self._discarded, self._left)

    def apply(self, fetched: Fetched, decision: Decision) -> None:
        """Do with a letter as was decided."""
        if decision is Decision.LEAVE:
            self._left += 1
        elif decision is Decision.DISCARD:
            self._discarding.append(fetched.method.delivery_tag)
        else:
            self._replaying.append(fetched)
            self._bytes += len(fetched.body)
        if self._is_due():
            self._flush()

    def finish(self) -> None:
        """Carry out what was decided; what was not goes back to the dead letters."""
        try:
            self._flush()
        finally:
            with broker_errors():
                self._pager.give_back(self.present - self._pager.fetched)
                self._pager.close()

    def _is_due(self) -> bool:
        if len(self._replaying) + len(self._discarding) >= BATCH or self._bytes >= BATCH_BYTES:
            return True
        return time.monotonic() - self._flushed_at > BATCH_SECONDS

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        batch, self._replaying, self._bytes = self._replaying, [], 0
        done, self._discarding = self._discarding, []
        self._discarded += len(done)
        outcomes: list[PublishOutcome] = []
        try:
            if batch:
                with broker_errors():
                    self._pager.ensure_open()
                    # Killed after this line, a letter is in both queues; the inbox knows it by its id.
                    outcomes = self._sender().send([self._again(fetched) for fetched in batch])
        finally:
            answers = zip(batch, outcomes, strict=False)  # there are none if it raised
            stored = [each for each, answer in answers if answer.stored is Stored.STORED]
            self._replayed += len(stored)
            done += [fetched.method.delivery_tag for fetched in stored]
            with broker_errors():
                self._pager.ack(done)
        self._ensure_stored(outcomes)

    def _ensure_stored(self, outcomes: list[PublishOutcome]) -> None:
        failed = next((outcome for outcome in outcomes if outcome.stored is not Stored.STORED), None)
        if failed is not None:
            reason = failed.reason or "that queue does not exist (start its subscriber, or declare_queues)"
            raise PublishFailed(f"a dead letter cannot go back to queue {self._queue!r}, and stays: {reason}")

    def _again(self, fetched: Fetched) -> Outgoing:
        properties = wire.for_replay(fetched.properties, _routing_key(fetched, self._queue), self._queue)
        return self._sender().encodable(Outgoing("", self._queue, properties, fetched.body))


def _routing_key(fetched: Fetched, queue: str) -> str:
    return wire.original_routing_key(fetched.properties, fetched.method.routing_key, queue)


@contextmanager
def _kept_alive(loop: Loop) -> Iterator[Callable[[], _Paused]]:
    """Serve the loop from a thread of its own, but only inside ``with paused():``.

    Only one thread touches the connections at any time: the caller's, except while it is paused.
    """
    mine = threading.Lock()
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(KEEP_ALIVE_SECONDS):
            with mine:
                _turn(loop)

    mine.acquire()
    thread = threading.Thread(target=serve, name="domain-event-broker-keep-alive", daemon=True)
    thread.start()
    try:
        yield lambda: _Paused(mine)
    finally:
        ended.set()
        mine.release()
        thread.join()


class _Paused:
    """Lets go of a lock for the time of the block."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self._lock.acquire()


def _turn(loop: Loop) -> None:
    with suppress(Exception):  # whatever it is, the caller's next step meets it
        loop.turn()
