"""Handlers with a span for each attempt, where tracing is on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from domain_event_broker.config import BrokerSettings
from domain_event_broker.events import DomainEvent
from domain_event_broker.execution import Execution
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Delivery, Settlement
from domain_event_broker.telemetry.tracing import tracing_of

if TYPE_CHECKING:
    from domain_event_broker.telemetry.spans import Tracing


def execution_of(settings: BrokerSettings, *arguments: Any) -> Execution:
    """Return an :class:`~domain_event_broker.execution.Execution`, traced if the settings say so.

    :raises MissingDependency: they do, and OpenTelemetry is not installed.
    """
    tracing = tracing_of(settings)
    return Execution(*arguments) if tracing is None else TracedExecution(*arguments, tracing=tracing)


@dataclass(frozen=True)
class TracedExecution(Execution):
    """As :class:`~domain_event_broker.execution.Execution`, within a span.

    :param tracing: makes the spans.
    """

    tracing: Tracing = field(kw_only=True)

    def run(self, delivery: Delivery) -> Settlement:
        """Handle a delivery and return how it ends."""
        span = self.tracing.begin(delivery)
        if span is None:
            return super().run(delivery)
        try:
            settlement = super().run(delivery)
        except BaseException as error:
            span.end(None, error)
            raise
        span.end(settlement)
        return settlement

    async def arun(self, delivery: Delivery, threads: Executor, is_ending: Callable[[], bool]) -> Settlement:
        """As :meth:`run`, for an async handler."""
        span = self.tracing.begin(delivery)
        if span is None:
            return await super().arun(delivery, threads, is_ending)
        try:
            settlement = await super().arun(delivery, threads, is_ending)
        except BaseException as error:
            span.end(None, error)
            raise
        span.end(settlement)
        return settlement

    def _read(self, delivery: Delivery) -> DomainEvent | Failure:
        event = super()._read(delivery)
        if isinstance(event, DomainEvent):
            # A task that the event is handed to is the child of this attempt.
            event.headers = self.tracing.carried_by(event.headers)
        return event
