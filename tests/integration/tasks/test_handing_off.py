"""A handler hands its event to a task: acknowledged when Celery's broker has it, and not before."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, shared_task
from celery.local import Proxy

from domain_event_broker import DomainEvent
from domain_event_broker.config import BrokerSettings, parse
from domain_event_broker.correlation import correlated
from domain_event_broker.errors import TaskQueueUnavailable
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler, Registry, subscribe
from domain_event_broker.handoff import TaskHandler, is_task
from domain_event_broker.subscriber import Consumer
from domain_event_broker.testing import make_event
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.memory import forget
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.tasks.conftest import TaskQueue

#: A place where nothing listens.
NOWHERE = "amqp://guest:very-secret@127.0.0.1:1//"


@shared_task
def send_invoice(event: dict[str, Any]) -> None:
    """A task as projects write it."""


@pytest.fixture
def settings(fresh_name: Callable[[str], str]) -> Iterator[BrokerSettings]:
    """A broker for events."""
    name = fresh_name("events")
    parsed = parse(f"memory://{name}")
    assert parsed is not None
    yield parsed
    forget(name)


def argument_of(body: bytes) -> Any:
    """Return the one argument of a task."""
    args, kwargs, _ = json.loads(body)
    assert kwargs == {}
    (argument,) = args
    return argument


def test_the_task_has_the_id_of_the_event_and_gets_its_body(
    celery_app: Celery, task_queue: TaskQueue
) -> None:
    event = make_event("order.placed", {"total": 25, "note": "ü"}, 7, currency="EUR")
    TaskHandler(send_invoice)(event)
    properties, body = task_queue.take() or pytest.fail("there is no task")
    assert properties.headers["id"] == properties.correlation_id == event.uuid_string
    assert properties.headers["task"] == send_invoice.name
    assert properties.content_type == "application/json"
    assert argument_of(body) == json.loads(event.to_json())
    assert DomainEvent(**argument_of(body)) == event


def test_what_the_project_says_about_serialisers_changes_nothing(
    celery_app: Celery, task_queue: TaskQueue
) -> None:
    celery_app.conf.task_serializer = "pickle"
    try:
        TaskHandler(send_invoice)(make_event("order.placed"))
    finally:
        celery_app.conf.task_serializer = "json"
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert properties.content_type == "application/json"


def test_headers_of_the_event_and_its_story_travel_with_the_task(
    celery_app: Celery, task_queue: TaskQueue
) -> None:
    event = make_event("order.placed")
    event.headers = {"tenant": "blue", "task": "no name of Celery's", "traceparent": "00-ab-cd-01"}
    with correlated("story", event.uuid_string):
        TaskHandler(send_invoice)(event)
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert properties.headers["task"] == send_invoice.name
    assert properties.headers["traceparent"] == "00-ab-cd-01"
    assert properties.headers["domain_event"] == {
        **event.headers,
        "correlation_id": "story",
        "causation_id": event.uuid_string,
    }


def test_a_function_can_make_the_argument(celery_app: Celery, task_queue: TaskQueue) -> None:
    handler = TaskHandler(send_invoice)

    @handler.prepared_by
    def number(event: DomainEvent) -> dict[str, str]:
        return {"order": str(event.domain_object_id)}

    handler(make_event("order.placed", domain_object_id="7"))
    _, body = task_queue.take() or pytest.fail("there is no task")
    assert argument_of(body) == {"order": "7"}


def test_a_queue_that_vanished_is_made_anew_instead_of_losing_the_task(
    celery_app: Celery, task_queue: TaskQueue
) -> None:
    handler = TaskHandler(send_invoice)
    handler(make_event("order.placed"))
    task_queue.delete()
    event = make_event("order.placed")
    handler(event)
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert properties.headers["id"] == event.uuid_string


def test_several_threads_hand_off_at_once(celery_app: Celery, task_queue: TaskQueue) -> None:
    handler, events = TaskHandler(send_invoice), [make_event("order.placed") for _ in range(40)]
    threads = [
        threading.Thread(target=lambda part: [handler(event) for event in part], args=(events[start::4],))
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [task_queue.take() for _ in events]
    assert {each[0].headers["id"] for each in taken if each} == {event.uuid_string for event in events}


def test_a_broker_that_is_away_is_told_without_its_password(celery_app: Celery) -> None:
    celery_app.conf.broker_url = NOWHERE
    with pytest.raises(TaskQueueUnavailable, match=r"127\.0\.0\.1:1") as failed:
        TaskHandler(send_invoice)(make_event("order.placed"))
    assert "very-secret" not in str(failed.value)


def test_an_argument_that_is_no_json_is_a_failure_of_the_handler(celery_app: Celery) -> None:
    handler = TaskHandler(send_invoice)
    handler.prepare = lambda event: object()
    with pytest.raises(Exception, match="not JSON serializable") as failed:
        handler(make_event("order.placed"))
    assert not isinstance(failed.value, TaskQueueUnavailable)


def test_a_delivery_is_kept_while_the_broker_of_celery_is_away(
    celery_app: Celery, settings: BrokerSettings
) -> None:
    handler = Handler(call=TaskHandler(send_invoice), name="invoices", binding_keys=("order.*",))
    consumer = Consumer([handler], settings, DirectInbox())
    event = make_event("order.placed")
    transport = open_transport(settings)
    thread = threading.Thread(target=consumer.run)
    with PrivateRabbitMQ() as server:
        celery_app.conf.broker_url = server.url()
        TaskHandler(send_invoice)(make_event("order.warm-up"))
        server.kill()
        thread.start()
        try:
            wait_until(lambda: transport.stats(["invoices"])["invoices"].consumers, 30)
            transport.publish([encode(event)])
            wait_until(lambda: transport.stats(["invoices"])["invoices"].in_flight, 30)
            server.start()
            wait_until(lambda: not transport.stats(["invoices"])["invoices"].in_flight, 60)
            queue = TaskQueue(server.url())
            ids = [taken[0].headers["id"] for taken in iter(queue.take, None)]
            queue.close()
        finally:
            consumer.stop()
            thread.join()
            transport.close()
    assert event.uuid_string in ids
    assert transport_is_empty(settings)


def transport_is_empty(settings: BrokerSettings) -> bool:
    """Tell whether the queue holds nothing any more, dead letters included."""
    transport = open_transport(settings)
    stats = transport.stats(["invoices"])["invoices"]
    transport.close()
    return (stats.ready, stats.delayed, stats.dead, stats.in_flight) == (0, 0, 0, 0)


def test_an_eager_task_runs_in_the_handler(celery_app: Celery) -> None:
    seen: list[Any] = []

    @celery_app.task(name=f"{__name__}.eager")
    def eager(event: dict[str, Any]) -> None:
        seen.append(event["data"])

    celery_app.conf.update(task_always_eager=True, broker_url=NOWHERE)
    TaskHandler(eager)(make_event("order.placed", {"total": 1}))
    assert seen == [{"total": 1}]


# --- declaring --------------------------------------------------------------------------


def test_tasks_are_told_from_other_functions_without_looking_into_them() -> None:
    too_early = Proxy(lambda: pytest.fail("the app of the task was asked for"))
    assert is_task(too_early)
    assert is_task(send_invoice)
    assert not is_task(lambda event: None)
    assert not is_task(Registry)


def test_subscribe_over_a_shared_task_makes_a_handler_of_it(
    celery_app: Celery, task_queue: TaskQueue
) -> None:
    registry = Registry()

    @subscribe("order.placed", to=registry)
    @shared_task(name="shop.tasks.print_label")
    def print_label(event: dict[str, Any]) -> None: ...

    (handler,) = registry.all()
    assert handler.name == "shop.tasks.print_label"
    assert print_label.name == "shop.tasks.print_label", "the task stays what it is"
    event = make_event("order.placed")
    DirectInbox().run(handler, event)
    properties, _ = task_queue.take() or pytest.fail("there is no task")
    assert (properties.headers["task"], properties.headers["id"]) == (handler.name, event.uuid_string)


def test_a_task_can_be_named_beside_the_binding_keys(celery_app: Celery, task_queue: TaskQueue) -> None:
    registry = Registry()
    subscribe("order.placed", name="invoices", task=send_invoice, to=registry)

    @subscribe("order.cancelled", name="credits", task=send_invoice, to=registry)
    def credit(event: DomainEvent) -> dict[str, Any]:
        return {"credit": event.domain_object_id}

    assert [handler.name for handler in registry.all()] == ["credits", "invoices"]
    for handler in registry.all():
        DirectInbox().run(handler, make_event("order.placed", domain_object_id="7"))
    first, second = (task_queue.take() or pytest.fail("a task is missing") for _ in range(2))
    assert argument_of(first[1]) == {"credit": "7"}
    assert argument_of(second[1])["routing_key"] == "order.placed"
