"""One delivery, one handler: from the body to the answer that the broker gets."""

from __future__ import annotations

import logging
import time

from domain_event_broker import correlation
from domain_event_broker.codecs import PLAIN_BODIES, Bodies
from domain_event_broker.errors import BodyNotOpened, InboxUnavailable, MalformedEvent, Reject, Retry
from domain_event_broker.events import DomainEvent
from domain_event_broker.failures import Failure
from domain_event_broker.handlers import Handler
from domain_event_broker.masking import one_line
from domain_event_broker.ports import Action, Delivery, Inbox, Settlement
from domain_event_broker.retry import RetryPolicy

logger = logging.getLogger("domain_event_broker.subscriber")

#: Deliveries that ended with the process before an event is taken for the cause, and
#: dead-lettered. A RabbitMQ quorum queue keeps the same limit by itself (x-delivery-limit).
MAX_CRASHES = 20


class DirectInbox:
    """Calls the handler, and remembers nothing: for programs without a database."""

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        """Call the handler."""
        handler.call(event)
        return True


def execute(
    delivery: Delivery, handler: Handler, policy: RetryPolicy, inbox: Inbox, bodies: Bodies = PLAIN_BODIES
) -> Settlement:
    """Handle a delivery and return how it ends. Whatever the handler does, this returns.

    :param bodies: opens and reads the body.
    :raises InboxUnavailable: the handler was not called; the delivery can be tried again.
    """
    started = time.monotonic()
    attempts = delivery.retries + 1
    if delivery.crashes >= MAX_CRASHES:
        failure = Failure("crashed", message=f"{delivery.crashes} deliveries ended with their process")
        return _logged(Settlement(delivery, Action.DEAD, failure=failure), handler, started)
    try:
        event = bodies.decode(delivery.body, delivery.headers, delivery.event_id, delivery.retries)
    except MalformedEvent as error:
        reason = "not-opened" if isinstance(error, BodyNotOpened) else "malformed"
        failure = Failure.of(error, reason, attempts)
        return _logged(Settlement(delivery, Action.DEAD, failure=failure), handler, started)
    token = correlation.enter(event.correlation_id, event.uuid_string)
    try:
        fresh = inbox.run(handler, event)
    except InboxUnavailable:
        raise
    except BaseException as error:
        # Also SystemExit and KeyboardInterrupt: in a thread they would end it unseen.
        return _logged(_failed(delivery, policy, error), handler, started)
    finally:
        correlation.leave(token)
    return _logged(Settlement(delivery, Action.ACK), handler, started, duplicate=not fresh)


def _failed(delivery: Delivery, policy: RetryPolicy, error: BaseException) -> Settlement:
    attempts = delivery.retries + 1
    if isinstance(error, Reject):
        return Settlement(delivery, Action.DEAD, failure=Failure.of(error, "rejected", attempts))
    delay = policy.next_delay(error, delivery.retries)
    cause = _cause(error)
    if delay is not None:
        return Settlement(delivery, Action.RETRY, delay, Failure.of(cause, "error", attempts))
    reason = "retries-exhausted" if policy.covers(error) else "error"
    return Settlement(delivery, Action.DEAD, failure=Failure.of(cause, reason, attempts))


def _cause(error: BaseException) -> BaseException:
    """Return what a ``Retry`` was raised for, if it was: that says more than the delay."""
    if isinstance(error, Retry):
        return error.__cause__ or error.__context__ or error
    return error


def _logged(settlement: Settlement, handler: Handler, started: float, duplicate: bool = False) -> Settlement:
    delivery, failure = settlement.delivery, settlement.failure
    outcome = "duplicate" if duplicate else _OUTCOMES[settlement.action]
    level = _LEVELS[settlement.action]
    if settlement.action is Action.DEAD and not handler.dead_letter:
        outcome, level = "dropped", logging.ERROR
    if logger.isEnabledFor(level):
        extra = {
            "handler": handler.name,
            "event_id": delivery.event_id,
            "routing_key": delivery.routing_key,
            "attempt": delivery.retries + 1,
            "outcome": outcome,
            "duration": time.monotonic() - started,
        }
        text = "%s %s %s in %s (attempt %d)%s"
        detail = f": {failure.reason}: {failure.error_type} {failure.message}" if failure else ""
        if settlement.action is Action.RETRY:
            detail += f"; again in {settlement.delay:g} s"
        logger.log(
            level,
            text,
            one_line(delivery.routing_key),
            one_line(delivery.event_id),
            outcome,
            handler.name,
            delivery.retries + 1,
            one_line(detail),
            extra=extra,
        )
    return settlement


_OUTCOMES = {
    Action.ACK: "handled",
    Action.RETRY: "retried",
    Action.DEAD: "dead-lettered",
    Action.REQUEUE: "requeued",
}
_LEVELS = {
    Action.ACK: logging.INFO,
    Action.RETRY: logging.WARNING,
    Action.DEAD: logging.ERROR,
    Action.REQUEUE: logging.INFO,
}
