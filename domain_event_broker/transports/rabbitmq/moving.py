"""Moving deliveries to other queues: the copy is stored first, the original is acknowledged last."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.ports import Delivery, Stored
from domain_event_broker.transports.rabbitmq.consuming import acknowledge, by_consumer
from domain_event_broker.transports.rabbitmq.publishing import BrokerBlocked, Outgoing, Sender, Sending

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Move:
    """Deliveries, and a copy of each that is on its way."""

    deliveries: list[Delivery]
    copies: list[Outgoing]
    sending: Sending


class Mover:
    """Stores copies in other queues, then acknowledges the originals.

    While the broker takes nothing in (https://www.rabbitmq.com/docs/alarms), what is to be moved
    waits here without an answer, so that all the other events go on: they are what frees its memory.

    :param sender: returns the sender of the transport.
    :param bring_back: makes queues again that somebody deleted.
    """

    def __init__(self, sender: Callable[[], Sender], bring_back: Callable[[set[str]], None]) -> None:
        self._sender = sender
        self._bring_back = bring_back
        self._moves: deque[_Move] = deque()
        self._told = False

    def move(self, copies: Sequence[tuple[Delivery, Outgoing]]) -> None:
        """Move deliveries now, or as soon as the broker takes something in.

        :raises BrokerUnavailable: a copy could not be stored. Its original comes back.
        """
        sender = self._sender()
        sendable = [sender.encodable(copy) for _, copy in copies]
        deliveries = [delivery for delivery, _ in copies]
        self._moves.append(_Move(deliveries, sendable, Sending(sender, sendable)))
        self.go_on()

    def go_on(self) -> None:
        """Move what waits, in order.

        :raises BrokerUnavailable: as :meth:`move`.
        """
        while self._moves:
            move = self._moves.popleft()
            try:
                self._store(move.copies, move.sending)
            except BrokerBlocked as blocked:
                self._moves.appendleft(move)
                self._tell(blocked)
                return
            # The crash story: killed here, the broker delivers the originals again, and there are
            # two of each; killed before the copies are stored, only the originals are there.
            for consumer, _ in by_consumer(move.deliveries):
                consumer.ensure_alive()
            acknowledge(move.deliveries)
        if self._told:
            self._told = False
            logger.warning("the broker takes events in again; what had to wait for that is moved")

    def _tell(self, blocked: BrokerBlocked) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "the broker takes nothing in (%s: a memory or disk alarm); events that failed wait until "
                "it does, the others go on",
                blocked,
            )

    def _store(self, copies: Sequence[Outgoing], sending: Sending) -> None:
        outcomes = sending.go_on(patient=False)
        answers = zip(copies, outcomes, strict=True)
        lost = [copy for copy, outcome in answers if outcome.stored is Stored.UNROUTABLE]
        if lost:
            self._bring_back({copy.routing_key for copy in lost})
            outcomes += self._sender().send(lost)
        refused = [outcome for outcome in outcomes if outcome.stored is Stored.REFUSED]
        refused += [outcome for outcome in outcomes[len(copies) :] if outcome.stored is Stored.UNROUTABLE]
        if refused:
            raise BrokerUnavailable(
                f"{len(refused)} events could not be moved to queue {copies[0].routing_key!r} and others, "
                f"and will be delivered again: {refused[0].reason or 'the queue does not exist'}"
            )
