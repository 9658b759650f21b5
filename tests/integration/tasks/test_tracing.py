"""A task belongs to the trace of the event that it was started for, and so does what it publishes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, shared_task

import domain_event_broker.celery  # noqa: F401 - lets tasks carry stories, as in a worker
from domain_event_broker import DomainEvent, config, publish_domain_event
from domain_event_broker.config import BrokerSettings
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.handoff import TaskHandler, sender
from domain_event_broker.ports import Delivery
from domain_event_broker.publisher import close_connections
from domain_event_broker.telemetry.tracing import created
from domain_event_broker.testing import make_event
from domain_event_broker.traced import execution_of
from domain_event_broker.transports.memory import forget
from tests.integration.tasks.conftest import TaskQueue
from tests.integration.tracing.conftest import (  # noqa: F401 - fixtures
    Spans,
    identity,
    is_child,
    spans,
    tracer,
)


@shared_task
def write_invoice(event: dict[str, Any]) -> None:
    """Publishes what follows, straight to the broker."""
    publish_domain_event("invoice.written", {}, connection_settings="memory://traced-tasks")


@shared_task
def tidy_up() -> None:
    """A task that a handler starts by itself."""


@pytest.fixture
def broker(settings: Any) -> Iterator[BrokerSettings]:
    """The settings of the project, with tracing on."""
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory://traced-tasks", "TRACING": True}
    current = config.current()
    assert current is not None
    yield current
    close_connections()
    forget("traced-tasks")


def attempt(broker: BrokerSettings, call: Any) -> DomainEvent:
    """Let ``call`` handle an event that was published in a request."""
    event = make_event("order.placed")
    with tracer.start_as_current_span("request"):
        (message,) = created([encode(event)], broker)
    handler = Handler(call, "billing", ("order.*",))
    delivery = Delivery("billing", message.body, "order.placed", event.uuid_string, message.headers)
    settlement = execution_of(broker, handler, handler.policy(0), DirectInbox()).run(delivery)
    assert settlement.outcome == "handled"
    return event


def is_context_of(traceparent: str, span: Any) -> bool:
    """Tell whether a header says the context of ``span``; its last two digits are flags."""
    trace, number = identity(span)
    return traceparent.startswith(f"00-{trace:032x}-{number:016x}-")


def test_a_task_gets_the_context_of_the_attempt_that_started_it(
    celery_app: Celery,
    task_queue: TaskQueue,
    broker: BrokerSettings,
    spans: Spans,  # noqa: F811
) -> None:
    event = attempt(broker, TaskHandler(write_invoice))
    (process,) = spans.of("process", event)
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert is_context_of(properties.headers["traceparent"], process)


def test_so_does_a_task_that_a_handler_starts_by_itself(
    celery_app: Celery,
    task_queue: TaskQueue,
    broker: BrokerSettings,
    spans: Spans,  # noqa: F811
) -> None:
    event = attempt(broker, lambda event: sender.send(tidy_up))
    (process,) = spans.of("process", event)
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert is_context_of(properties.headers["traceparent"], process)


@pytest.mark.django_db
def test_what_a_task_publishes_goes_on_with_the_trace_and_the_next_task_does_not(
    celery_app: Celery,
    task_queue: TaskQueue,
    broker: BrokerSettings,
    spans: Spans,  # noqa: F811
) -> None:
    event = attempt(broker, TaskHandler(write_invoice))
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    headers = {name: properties.headers[name] for name in ("traceparent", "domain_event")}
    write_invoice.apply(({},), headers=headers, throw=True)
    write_invoice.apply(({},), throw=True)
    (process,) = spans.of("process", event)
    mine, other = [span for span in spans.of("create") if "invoice" in span.name]
    assert is_child(mine, process)
    assert other.parent is None
