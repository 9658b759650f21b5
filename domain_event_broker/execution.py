"""One delivery, one handler: from the body to the answer that the broker gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from domain_event_broker import correlation
from domain_event_broker.codecs import PLAIN_BODIES, Bodies
from domain_event_broker.deadlines import TimeIsUp
from domain_event_broker.errors import (
    BodyNotOpened,
    HandlerTimeout,
    InboxUnavailable,
    MalformedEvent,
    Reject,
    Retry,
)
from domain_event_broker.events import HEADER_CORRELATION_ID, DomainEvent
from domain_event_broker.failures import Failure
from domain_event_broker.handlers import Handler
from domain_event_broker.injection import refuse_undone
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
        """Call the handler; an async one on a loop of its own."""
        if handler.is_async:
            import asyncio  # late: a program without async handlers has no use for it

            result = asyncio.run(handler.call(event))
        else:
            result = handler.call(event)
        refuse_undone(handler.call, result)
        return True

    async def arun(self, handler: Handler, event: DomainEvent, threads: Executor) -> bool:
        """Await the handler."""
        refuse_undone(handler.call, await handler.call(event))
        return True


@dataclass(frozen=True, slots=True)
class Execution:
    """How deliveries of one handler are handled.

    :param policy: which failures are retried, and when.
    :param inbox: calls the handler.
    :param bodies: opens and reads the body.
    """

    handler: Handler
    policy: RetryPolicy
    inbox: Inbox
    bodies: Bodies = PLAIN_BODIES

    def run(self, delivery: Delivery) -> Settlement:
        """Handle a delivery and return how it ends. Whatever the handler does, this returns.

        :raises InboxUnavailable: nothing took effect; the delivery can be tried again.
        """
        started = time.monotonic()
        event = self._read(delivery)
        if isinstance(event, Failure):
            return self._failed_after(started, self._dead(delivery, event))
        token = correlation.enter(event.correlation_id, event.uuid_string)
        try:
            if self._is_filtered(event):
                outcome = "filtered"
            else:
                outcome = "handled" if self.inbox.run(self.handler, event) else "duplicate"
        except InboxUnavailable:
            raise
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt: in a thread they would end it unseen.
            return self._failed_after(started, self.failed(delivery, error))
        finally:
            correlation.leave(token)
        return self._logged(
            Settlement(delivery, Action.ACK, outcome=outcome, seconds=time.monotonic() - started)
        )

    async def arun(self, delivery: Delivery, threads: Executor, is_ending: Callable[[], bool]) -> Settlement:
        """As :meth:`run`, for an async handler, on the loop that it shall run on.

        :param threads: for what may wait.
        :param is_ending: whether the loop is about to end, and so cancels what runs on it.
        """
        started = time.monotonic()
        event = self._read(delivery)
        if isinstance(event, Failure):
            return self._failed_after(started, self._dead(delivery, event))
        token = correlation.enter(event.correlation_id, event.uuid_string)
        try:
            if self._is_filtered(event):
                outcome = "filtered"
            else:
                fresh = await self.inbox.arun(self.handler, event, threads)
                outcome = "handled" if fresh else "duplicate"
        except InboxUnavailable:
            raise
        except BaseException as error:
            if is_ending():  # cancelled, or without its threads: nobody takes the answer any more
                return Settlement(delivery, Action.REQUEUE, outcome="requeued")
            return self._failed_after(started, self.failed(delivery, error))
        finally:
            correlation.leave(token)
        return self._logged(
            Settlement(delivery, Action.ACK, outcome=outcome, seconds=time.monotonic() - started)
        )

    def failed(self, delivery: Delivery, error: BaseException) -> Settlement:
        """Return how a delivery ends whose handler raised ``error``."""
        attempts = delivery.retries + 1
        if isinstance(error, TimeIsUp):
            error = HandlerTimeout("the handler was not done within its timeout")
        if isinstance(error, (Reject, MalformedEvent)):
            reason = "rejected" if isinstance(error, Reject) else error.reason
            return self._dead(delivery, Failure.of(error, reason, attempts))
        delay = self.policy.next_delay(error, delivery.retries)
        cause = _cause(error)
        word = "timeout" if isinstance(error, HandlerTimeout) else "error"
        if delay is not None:
            failure = Failure.of(cause, word, attempts)
            return Settlement(delivery, Action.RETRY, delay, failure, outcome="retried")
        reason = "retries-exhausted" if self.policy.covers(error) else word
        return self._dead(delivery, Failure.of(cause, reason, attempts))

    def gave_up(self, delivery: Delivery, error: BaseException) -> Settlement:
        """Return how a delivery ends, and say so, whose handler is not waited for any more."""
        return self._logged(replace(self.failed(delivery, error), seconds=self.handler.timeout or 0.0))

    def crashed(self, delivery: Delivery, what: str) -> Settlement:
        """Return how a delivery ends, and say so, that took down what it ran on, time and again."""
        failure = Failure("crashed", message=what, attempts=delivery.retries + 1)
        return self._logged(self._dead(delivery, failure))

    def _dead(self, delivery: Delivery, failure: Failure) -> Settlement:
        outcome = "dead-lettered" if self.handler.dead_letter else "dropped"
        return Settlement(delivery, Action.DEAD, failure=failure, outcome=outcome)

    def _read(self, delivery: Delivery) -> DomainEvent | Failure:
        if delivery.crashes >= MAX_CRASHES:
            return Failure("crashed", message=f"{delivery.crashes} deliveries ended with their process")
        try:
            return self.bodies.decode(delivery.body, delivery.headers, delivery.event_id, delivery.retries)
        except MalformedEvent as error:
            reason = "not-opened" if isinstance(error, BodyNotOpened) else error.reason
            return Failure.of(error, reason, delivery.retries + 1)

    def _failed_after(self, started: float, settlement: Settlement) -> Settlement:
        return self._logged(replace(settlement, seconds=time.monotonic() - started))

    def _logged(self, settlement: Settlement) -> Settlement:
        """Tell in the log how a delivery ended."""
        level = _LEVELS[settlement.outcome]
        if logger.isEnabledFor(level):
            delivery, failure = settlement.delivery, settlement.failure
            extra = {
                "handler": self.handler.name,
                "event_id": delivery.event_id,
                "correlation_id": delivery.headers.get(HEADER_CORRELATION_ID) or delivery.event_id,
                "routing_key": delivery.routing_key,
                "attempt": delivery.retries + 1,
                "outcome": settlement.outcome,
                "duration": settlement.seconds,
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
                settlement.outcome,
                self.handler.name,
                delivery.retries + 1,
                one_line(detail),
                extra=extra,
            )
        return settlement

    def _is_filtered(self, event: DomainEvent) -> bool:
        can_handle = self.handler.can_handle
        return can_handle is not None and not can_handle(event)


def execute(
    delivery: Delivery, handler: Handler, policy: RetryPolicy, inbox: Inbox, bodies: Bodies = PLAIN_BODIES
) -> Settlement:
    """Handle one delivery: :meth:`Execution.run`."""
    return Execution(handler, policy, inbox, bodies).run(delivery)


def _cause(error: BaseException) -> BaseException:
    """Return what a ``Retry`` was raised for, if it was: that says more than the delay."""
    if isinstance(error, Retry):
        return error.__cause__ or error.__context__ or error
    return error


_LEVELS = {
    "handled": logging.INFO,
    "duplicate": logging.INFO,
    "filtered": logging.DEBUG,
    "retried": logging.WARNING,
    "dead-lettered": logging.ERROR,
    "dropped": logging.ERROR,
}
