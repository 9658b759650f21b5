"""What the tests of this folder do over and over."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from domain_event_broker.events import Message
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, DeadLetter, Decision, Delivery, Settlement, Stored, Transport

#: Seconds for something that the broker does at once.
SOON = 10.0


def message(routing_key: str, body: bytes = b"{}", **headers: str | int) -> Message:
    """Return a message with an identity of its own."""
    return Message(routing_key, body, str(uuid.uuid4()), None, time.time(), headers)


def publish(transport: Transport, *messages: Message) -> None:
    """Publish messages that must be stored."""
    outcomes = transport.publish(messages)
    assert {outcome.stored for outcome in outcomes} == {Stored.STORED}, outcomes


def collect(transport: Transport, count: int, within: float = SOON) -> list[Delivery]:
    """Receive exactly so many deliveries."""
    end = time.monotonic() + within
    found: list[Delivery] = []
    while len(found) < count:
        batch = transport.receive(count - len(found), 0.1)
        found += batch
        assert batch or time.monotonic() < end, f"{len(found)} of {count} deliveries came"
    return found


def answer(
    transport: Transport,
    deliveries: Sequence[Delivery],
    action: Action,
    delay: float = 0.0,
    failure: Failure | None = None,
) -> None:
    """Settle deliveries, all in the same way."""
    transport.settle([Settlement(delivery, action, delay, failure) for delivery in deliveries])


def browse(transport: Transport, queue: str) -> list[DeadLetter]:
    """Return the dead letters of a handler."""
    seen: list[DeadLetter] = []

    def look(letter: DeadLetter) -> Decision:
        seen.append(letter)
        return Decision.LEAVE

    transport.dead_letters(queue).sift(look)
    return seen
