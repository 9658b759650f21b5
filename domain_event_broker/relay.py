"""The relay: step two of an event's way, from the outbox to the broker.

A row leaves the outbox after the broker has confirmed that it holds the event. Killed at
any moment, a relay leaves rows that are sent again by the next one: duplicates of at most
one batch, never a loss. No transaction is open while the broker is talked to. A database that
goes away before it is told of a batch is told when it is back: that costs no duplicates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from domain_event_broker import batches
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import (
    BrokerUnavailable,
    DomainEventBrokerError,
    OutboxNotMigrated,
    OutboxUnavailable,
)
from domain_event_broker.events import HEADER_CORRELATION_ID
from domain_event_broker.masking import one_line
from domain_event_broker.observer import NOBODY, Observer
from domain_event_broker.patience import Outage, Repetition, StopFlag
from domain_event_broker.ports import (
    Held,
    Lease,
    OutboxRow,
    PublishOutcome,
    RelayOutbox,
    Sent,
    Stored,
    Transport,
)
from domain_event_broker.retry import Backoff
from domain_event_broker.transports import open_transport

logger = logging.getLogger("domain_event_broker.relay")

#: Delays between tries of one event that the broker refused.
REFUSED_BACKOFF = Backoff.exponential(1.0, max=600.0)
#: The same where it is not the event's fault, such as a queue whose nodes are away: soon after they are back,
#: however long they were away, and never parked.
BUSY_BACKOFF = Backoff.exponential(1.0, max=10.0)
#: Longest time between two tries to reach a broker or a database that is away, in seconds: events
#: flow again so soon after it came back, however long it was away.
AWAY_SECONDS = 5.0
#: Routing keys for which "nobody subscribes" is remembered as said.
UNROUTABLE_KEYS_REMEMBERED = 1000


@dataclass(slots=True)
class RelayReport:
    """What a relay did so far, in events."""

    sent: int = 0
    unroutable: int = 0
    refused: int = 0
    parked: int = 0

    @property
    def total(self) -> int:
        """Events that the broker answered for."""
        return self.sent + self.unroutable + self.refused + self.parked


@dataclass(slots=True)
class _Results:
    """Answers of the broker for one batch, to be written to the outbox."""

    sent: list[Sent] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    blocked: set[str] = field(default_factory=set)


class Relay:
    """Moves events from an outbox to the broker.

    :param outbox: where they are.
    :param settings: where they go, and the policies of the outbox.
    :param connect: opens the transport, anew after each loss.
    :param clock: reading of a monotonic clock, in seconds.
    :param on_batch: called after each batch with the report so far.
    :param observer: told how the work goes.
    """

    def __init__(
        self,
        outbox: RelayOutbox,
        settings: BrokerSettings,
        connect: Callable[[BrokerSettings], Transport] = open_transport,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[RelayReport], None] = lambda report: None,
        observer: Observer = NOBODY,
    ) -> None:
        self.report = RelayReport()
        self._outbox = outbox
        self._settings = settings
        self._options = settings.outbox
        self._connect = connect
        self._clock = clock
        self._on_batch = on_batch
        self._observer = observer
        self._transport: Transport | None = None
        self._lease: Lease | None = None
        self._renew_at = 0.0
        # Answers of the broker that the outbox could not be told yet.
        self._owed: _Results | None = None
        self._unroutable_keys: set[str] = set()
        self._refusals = Repetition()
        self._stopping = StopFlag()
        self._outage = Outage(logger, AWAY_SECONDS)

    def stop(self) -> None:
        """Let the relay finish the batch at hand and return. Safe from any thread or signal handler."""
        self._stopping.set()
        self._outbox.wake()

    def run(self) -> None:
        """Move events until :meth:`stop` is called, whatever broker and database do meanwhile.

        :raises OutboxNotMigrated: there is no outbox table at the start.
        """
        try:
            while not self._stopping.is_set():
                try:
                    busy = self._turn()
                    if self._outage.over():
                        logger.info("relaying again")
                        self._observer.back()
                    if not busy:
                        self._idle()
                except (BrokerUnavailable, OutboxUnavailable) as error:
                    if isinstance(error, OutboxNotMigrated) and self._lease is None:
                        raise
                    if isinstance(error, OutboxUnavailable):
                        # It may come back as another server, which knows an older state of the leases.
                        self._renew_at = 0.0
                    self._away(error)
        finally:
            self._close()

    def run_once(self) -> RelayReport:
        """Send what is due now and return.

        :raises BrokerUnavailable: the broker is away.
        :raises OutboxUnavailable: the database is away.
        """
        try:
            while not self._stopping.is_set() and self._turn():
                pass
        finally:
            self._close()
        return self.report

    def drain(self) -> RelayReport:
        """Send until nothing is left that could be sent, waiting for buckets of other relays.

        :raises BrokerUnavailable: the broker is away.
        :raises OutboxUnavailable: the database is away.
        """
        try:
            while not self._stopping.is_set():
                if not self._turn():
                    if not self._outbox.pending(limit=1):
                        break
                    self._outbox.wait(self._options.poll_seconds)
        finally:
            self._close()
        return self.report

    def _turn(self) -> int:
        """Move one batch; return how many events the broker answered for."""
        self._observer.alive()
        lease = self._current_lease()
        self._settle_owed(lease)
        started = time.monotonic()
        rows = self._outbox.fetch(lease, self._options.batch_size) if lease.epochs else []
        if not rows:
            return 0
        before = self.report.total
        self._send(lease, rows)
        self._on_batch(self.report)
        report = self.report
        self._observer.relayed(
            time.monotonic() - started, report.sent, report.unroutable, report.refused, report.parked
        )
        return report.total - before

    def _current_lease(self) -> Lease:
        """Return our lease, renewed each third of its time."""
        now = self._clock()
        if self._lease is None or now >= self._renew_at:
            self._lease = self._outbox.renew()
            self._observer.leased(len(self._lease.epochs))
            # Reckoned from before the renewal, however long that took: so long it may be ours.
            self._renew_at = now + self._options.lease_seconds / 3
        return self._lease

    def _send(self, lease: Lease, rows: Sequence[OutboxRow]) -> None:
        """Publish rows, and write the broker's answers to the outbox, also if it went away in between."""
        results = _Results()
        try:
            for wave in waves(rows):
                if self._clock() >= lease.deadline or self._stopping.is_set():
                    # The lease may be another relay's by now; what was not sent stays.
                    break
                self._publish(
                    [row for row in wave if row.message.ordering_key not in results.blocked], results
                )
        finally:
            if results.sent or results.held:
                # What was sent stays so if the database fails now; what was refused is tried again.
                self._owed = _Results(results.sent)
                self._outbox.settle(lease, results.sent, results.held)
                self._owed = None
                self._count(results)

    def _settle_owed(self, lease: Lease) -> None:
        """Tell the outbox first what it could not be told before, rather than send it all again.

        It may know it: when the answer to its COMMIT was lost, or another relay sent the rows too.
        """
        if self._owed is not None:
            self._outbox.settle(lease, self._owed.sent, [])
            self._count(self._owed)
            self._owed = None

    def _publish(self, rows: Sequence[OutboxRow], results: _Results) -> None:
        if not rows:
            return
        if self._transport is None:
            self._transport = self._connect(self._settings)
            self._observer.connected()
        outcomes = self._transport.publish([row.message for row in rows])
        for row, outcome in zip(rows, outcomes, strict=True):
            answer = self._judge(row, outcome)
            if isinstance(answer, Sent):
                results.sent.append(answer)
            else:
                results.held.append(answer)
                if answer.block_key and row.message.ordering_key is not None:
                    results.blocked.add(row.message.ordering_key)

    def _judge(self, row: OutboxRow, outcome: PublishOutcome) -> Sent | Held:
        """Decide what becomes of a row, by the policies of the settings."""
        keyed = row.message.ordering_key is not None
        if outcome.stored is Stored.STORED:
            return Sent(row)
        if outcome.stored is Stored.UNROUTABLE:
            self._say_unroutable(row.message.routing_key)
            if self._options.unroutable == "park":
                return Held(row, "no queue is bound for its routing key", None, block_key=False)
            return Sent(row, unroutable=self._options.unroutable == "archive")
        attempts = row.attempts + 1
        if outcome.temporary:
            return Held(row, outcome.reason, BUSY_BACKOFF.delay(attempts), keyed)
        if attempts >= self._options.max_attempts:
            return Held(row, outcome.reason, None, keyed and self._options.on_failure == "block_key")
        return Held(row, outcome.reason, REFUSED_BACKOFF.delay(attempts), keyed)

    def _say_unroutable(self, routing_key: str) -> None:
        if (
            routing_key not in self._unroutable_keys
            and len(self._unroutable_keys) < UNROUTABLE_KEYS_REMEMBERED
        ):
            self._unroutable_keys.add(routing_key)
            logger.warning(
                "no queue is bound for %s: nobody subscribes to it (said once for each routing key)",
                routing_key,
                extra={"routing_key": routing_key, "outcome": "unroutable"},
            )

    def _count(self, results: _Results) -> None:
        for answer in results.sent:
            if answer.unroutable:
                self.report.unroutable += 1
            else:
                self.report.sent += 1
        for held in results.held:
            parked = held.retry_in is None
            self.report.parked += parked
            self.report.refused += not parked
            self._say_refused(held)

    def _say_refused(self, held: Held) -> None:
        """Tell that the broker refused an event; where many are refused alike, of some of them."""
        message = held.row.message
        if held.retry_in is None:
            level, fate, more = logging.ERROR, "parked", None
        else:
            more = self._refusals.left_out(held.reason)
            level = logging.DEBUG if more is None else logging.WARNING
            fate = f"again in {held.retry_in:.1f} s"
        if not logger.isEnabledFor(level):
            return
        logger.log(
            level,
            "%s %s refused by the broker, %s: %s%s",
            one_line(message.routing_key),
            one_line(message.event_id),
            fate,
            one_line(held.reason),
            f" (and {more:,} others like it in the last minutes)" if more else "",
            extra={
                "event_id": message.event_id,
                "routing_key": message.routing_key,
                "correlation_id": message.headers.get(HEADER_CORRELATION_ID) or message.event_id,
                "attempt": held.row.attempts + 1,
                "outcome": "parked" if held.retry_in is None else "refused",
            },
        )

    def _idle(self) -> None:
        """Wait for new rows; keep the connection to the broker alive meanwhile."""
        if self._transport is not None:
            self._transport.receive(0, 0)
        until_renewal = max(0.0, self._renew_at - self._clock())
        seconds = min(self._options.poll_seconds, until_renewal)
        self._observer.alive(seconds)
        self._outbox.wait(seconds)

    def _away(self, error: DomainEventBrokerError) -> None:
        """Wait a little for a broker or a database that went away. No event pays for it."""
        self._observer.away(error)
        self._disconnect()
        self._stopping.wait(self._outage.failed(error))

    def _disconnect(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _close(self) -> None:
        self._disconnect()
        self._outbox.leave()
        self._lease = None


def waves(rows: Sequence[OutboxRow]) -> list[list[OutboxRow]]:
    """Split rows so that no part holds two of one ordering key: see :func:`batches.waves`."""
    return batches.waves(rows, lambda row: row.message.ordering_key)
