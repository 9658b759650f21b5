"""The dead letters of one handler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from domain_event_broker.errors import PublishFailed
from domain_event_broker.failures import without_failure
from domain_event_broker.ports import DeadLetter, Decision, PublishOutcome, SiftReport, Stored
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Connection, Fetched, Loop, broker_errors
from domain_event_broker.transports.rabbitmq.publishing import Outgoing, Sender
from domain_event_broker.transports.rabbitmq.topology import Topology, letters_name

#: Letters that are sent back to work at once.
BATCH = 200
#: Seconds after which a decision is carried out even if few others wait with it: somebody who
#: answers by hand wants each answer to count.
BATCH_SECONDS = 0.5
#: Letters given back at once. A quorum queue takes up to 32 answers of one client in their order;
#: those beyond are set aside, and come back in any.
ORDERED = 32
#: Seconds for the queue to show the letters that were given back, and between two looks at it.
RETURN_TIMEOUT, RETURN_BEAT = 2.0, 0.002
#: Seconds between two looks at the connection while ``decide`` takes its time: well below the
#: shortest heartbeat there is, one second.
KEEP_ALIVE_SECONDS = 0.25


class RabbitMQDeadLetters:
    """The queue ``<name>-dl``; letters of the older library look the same.

    :param sender: called for the one to publish with, so that nothing connects for a mere count.
    """

    def __init__(
        self, queue: str, loop: Loop, connection: Connection, topology: Topology, sender: Callable[[], Sender]
    ) -> None:
        self._queue = queue
        self._loop = loop
        self._connection = connection
        self._topology = topology
        self._sender = sender

    def count(self) -> int:
        """Return how many letters there are; those in the hands of a :meth:`sift` are not counted."""
        with broker_errors():
            state = self._topology.state(letters_name(self._queue))
        return state.ready if state is not None else 0

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """Show each letter present at the start to ``decide`` once, and do as it says.

        Letters shown stay with this connection until the end, so that none is shown twice; those
        left go back all at once, in their order. ``decide`` may take its time: the connection is
        kept alive in the background.

        :raises PublishFailed: a letter cannot go back to work, because the handler's queue is
            missing or full; it stays where it is.
        """
        if limit == 0 or not self._exists():
            return SiftReport()
        with broker_errors():
            letters = _Letters(self._queue, self._connection, self._sender, self._wait_for)
        try:
            self._sift(letters, decide, limit)
        finally:
            letters.finish()
        return letters.report

    def _sift(self, letters: _Letters, decide: Callable[[DeadLetter], Decision], limit: int | None) -> None:
        # Counted after the first was fetched: a queue that has no leader yet, after a restart of
        # the broker, answers that it is empty, but makes who fetches wait.
        fetched = letters.next()
        letters.unfetched = self.count()
        left = letters.unfetched if limit is None else min(limit - 1, letters.unfetched)
        with _kept_alive(self._loop) as paused:
            while fetched is not None:
                decision = Decision.LEAVE  # also if it raises
                try:
                    with paused():
                        decision = decide(letters.read(fetched))
                finally:
                    letters.apply(fetched, decision)
                fetched = letters.next() if left > 0 else None
                left -= 1

    def _exists(self) -> bool:
        with broker_errors():
            return self._topology.state(letters_name(self._queue)) is not None

    def _wait_for(self, left: int) -> None:
        """Wait until letters given back can be seen, so that the next look finds them all.

        Others may take some at the same time, so their absence is no error.
        """
        end = time.monotonic() + RETURN_TIMEOUT
        while self.count() < left and time.monotonic() < end:
            with broker_errors():
                self._loop.run_until(lambda: False, RETURN_BEAT)


class _Letters:
    """Letters fetched and not yet acknowledged, on a channel of their own."""

    def __init__(
        self,
        queue: str,
        connection: Connection,
        sender: Callable[[], Sender],
        wait_for: Callable[[int], None],
    ) -> None:
        self._queue = queue
        self._sender = sender
        self._wait_for = wait_for
        self._channel = connection.open_channel()
        #: Letters that were there at the start and have not been fetched.
        self.unfetched = 0
        self._replaying: list[Fetched] = []
        self._flushed_at = time.monotonic()
        self._held: list[int] = []
        self._replayed = self._discarded = 0

    @property
    def report(self) -> SiftReport:
        """What became of the letters so far."""
        return SiftReport(self._replayed, self._discarded, len(self._held))

    def next(self) -> Fetched | None:
        """Fetch the next letter."""
        self.unfetched = max(0, self.unfetched - 1)
        with broker_errors():
            return self._channel.get(letters_name(self._queue))

    def apply(self, fetched: Fetched, decision: Decision) -> None:
        """Do with a letter as was decided."""
        if Decision(decision) is Decision.LEAVE:
            self._held.append(fetched.method.delivery_tag)
        elif Decision(decision) is Decision.DISCARD:
            self._discarded += 1
            self._ack(fetched)
        else:
            self._replaying.append(fetched)
        if len(self._replaying) >= BATCH or time.monotonic() - self._flushed_at > BATCH_SECONDS:
            self._flush()

    def finish(self) -> None:
        """Carry out what was decided; what was not goes back to the dead letters."""
        try:
            self._flush()
        finally:
            with broker_errors():
                self._give_back()
                self._channel.close()

    def _give_back(self) -> None:
        for start in range(0, len(self._held), ORDERED):
            end = min(start + ORDERED, len(self._held))
            self._channel.ensure_open()
            self._channel.pika.basic_nack(self._held[end - 1], multiple=True, requeue=True)
            self._wait_for(self.unfetched + end)

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        batch, self._replaying = self._replaying, []
        if not batch:
            return
        with broker_errors():
            # Killed after this line, a letter is in both queues; the inbox knows it by its id.
            outcomes = self._sender().send([self._replay(fetched) for fetched in batch])
        for fetched, outcome in zip(batch, outcomes, strict=True):
            if outcome.stored is Stored.STORED:
                self._replayed += 1
                self._ack(fetched)
        self._ensure_stored(outcomes)

    def _ensure_stored(self, outcomes: list[PublishOutcome]) -> None:
        failed = next((outcome for outcome in outcomes if outcome.stored is not Stored.STORED), None)
        if failed is not None:
            reason = failed.reason or "that queue does not exist (start its subscriber, or declare_queues)"
            raise PublishFailed(f"a dead letter cannot go back to queue {self._queue!r}, and stays: {reason}")

    def _ack(self, fetched: Fetched) -> None:
        with broker_errors():
            self._channel.ensure_open()
            self._channel.pika.basic_ack(fetched.method.delivery_tag)

    def read(self, fetched: Fetched) -> DeadLetter:
        """Return a letter as ``decide`` sees it."""
        properties = fetched.properties
        return DeadLetter(
            queue=self._queue,
            body=fetched.body,
            routing_key=self._routing_key(fetched),
            event_id=properties.message_id or "",
            headers=without_failure(wire.plain_headers(properties)),
            failure=wire.failure_of(properties, self._queue),
            replays=wire.replays_of(properties),
        )

    def _replay(self, fetched: Fetched) -> Outgoing:
        replays = wire.replays_of(fetched.properties) + 1
        properties = wire.for_replay(fetched.properties, self._routing_key(fetched), replays)
        return Outgoing("", self._queue, properties, fetched.body)

    def _routing_key(self, fetched: Fetched) -> str:
        return wire.original_routing_key(fetched.properties, fetched.method.routing_key, self._queue)


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
