"""The trace goes through outbox and relay, and from one process to another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from domain_event_broker import DomainEvent, config, publish_domain_event, publish_domain_events
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.relay import Relay
from domain_event_broker.subscriber import Consumer, subscription_of
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.rabbitmq import topology
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.tracing.conftest import Spans, attribute, identity, is_child, linked, tracer

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture
def django_broker(
    request: pytest.FixtureRequest, settings: Any, transactional_db: None
) -> Callable[[str], BrokerSettings]:
    """Return a function that sets the broker of the project, with tracing on."""

    def use(url: str) -> BrokerSettings:
        settings.DOMAIN_EVENT_BROKER = {"URL": url, "TRACING": True}
        current = config.current()
        assert current is not None
        return current

    return use


def relay_all(broker: BrokerSettings) -> None:
    Relay(DjangoRelayOutbox("default", broker.outbox), broker).run_once()


def declared(broker: BrokerSettings, call: Any, name: str, key: str) -> Handler:
    handler = Handler(call, name, (key,))
    transport = open_transport(broker)
    transport.declare(subscription_of(handler, broker.subscriber))
    transport.close()
    return handler


@pytest.mark.parametrize("kind", ["memory", "database"])
def test_a_trace_goes_from_a_transaction_through_outbox_and_relay_to_a_handler_and_its_events(
    kind: str,
    django_broker: Callable[[str], BrokerSettings],
    spans: Spans,
    fresh_name: Callable[[str], str],
) -> None:
    broker = django_broker("database:" if kind == "database" else f"memory://{fresh_name('broker')}")
    follow_ups: list[DomainEvent] = []

    def bill(event: DomainEvent) -> None:
        follow_ups.append(publish_domain_event("invoice.written", {}))
        consumer.stop()

    handler = declared(broker, bill, "billing", "order.placed")
    with tracer.start_as_current_span("request") as request, transaction.atomic():
        event = publish_domain_event("order.placed", {"total": 25})
    (create,) = spans.of("create", event)
    assert is_child(create, request)  # type: ignore[arg-type]
    (row,) = OutboxEvent.objects.all()
    assert f"{identity(create)[1]:016x}" in row.headers
    relay_all(broker)
    consumer = Consumer([handler], broker, DjangoInbox())
    consumer.run(timeout=60)
    (send,), (process,) = spans.of("send"), spans.of("process", event)
    (follow_up,) = spans.of("create", follow_ups[0])
    assert send.parent is None
    assert attribute(send, "messaging.system") == kind
    assert linked(send) == [identity(create)]
    assert is_child(process, create)
    assert is_child(follow_up, process)


def test_a_relay_links_its_batch_to_all_the_requests_in_it(
    django_broker: Callable[[str], BrokerSettings], spans: Spans, fresh_name: Callable[[str], str]
) -> None:
    broker = django_broker(f"memory://{fresh_name('broker')}")
    for number in range(3):
        with tracer.start_as_current_span(f"request {number}"):
            publish_domain_events([DomainEvent("a.b"), DomainEvent("a.c")])
    relay_all(broker)
    (send,) = spans.of("send")
    assert attribute(send, "messaging.batch.message_count") == 6
    assert set(linked(send)) == {identity(span) for span in spans.of("create")}
    assert len({trace for trace, _ in linked(send)}) == 3


def test_what_is_published_with_tracing_off_has_no_headers_in_the_outbox(
    settings: Any, transactional_db: None, spans: Spans
) -> None:
    settings.DOMAIN_EVENT_BROKER = "memory:"
    with tracer.start_as_current_span("request"):
        publish_domain_event("a.b", {})
    assert OutboxEvent.objects.get().headers == ""
    assert [span.name for span in spans.all()] == ["request"]


@contextmanager
def service(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``service.py`` beside the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.tracing.service", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def spans_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Wait for the end of a process; return the spans that it printed."""
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0, printed
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_processes_that_share_nothing_but_the_broker_make_one_trace(
    rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]
) -> None:
    url, key = rabbitmq_server.url(), fresh_name("traced")
    with service("handle", url, key) as handling:
        assert handling.stdout is not None
        assert handling.stdout.readline() == "ready\n"
        with service("publish", url, key) as publishing:
            published = {each["name"]: each for each in spans_of(publishing)}
        handled = spans_of(handling)
    request, create = published["request"], published[f"create domain-events:{key}"]
    attempts = [each for each in handled if each["name"].startswith("process")]
    (follow_up,) = [each for each in handled if each["name"].startswith("create")]
    assert create["parent"] == request["id"]
    assert [each["attempt"] for each in attempts] == [1, 2]
    assert {each["parent"] for each in attempts} == {create["id"]}
    assert follow_up["parent"] == attempts[1]["id"]
    assert {each["trace"] for each in [request, create, follow_up, *attempts]} == {request["trace"]}


def test_a_trace_goes_through_outbox_relay_and_rabbitmq(
    django_broker: Callable[[str], BrokerSettings],
    rabbitmq_server: PrivateRabbitMQ,
    spans: Spans,
    fresh_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "SETTLE_SECONDS", 0)
    broker = django_broker(rabbitmq_server.url())
    key = fresh_name("traced")
    handler = declared(broker, lambda event: consumer.stop(), key, key)
    with tracer.start_as_current_span("request"):
        event = publish_domain_event(key, {})
    relay_all(broker)
    consumer = Consumer([handler], broker, DirectInbox())
    consumer.run(timeout=60)
    (create,), (process,) = spans.of("create", event), spans.of("process", event)
    assert is_child(process, create)
    assert attribute(process, "messaging.system") == "rabbitmq"
    assert attribute(process, "server.address") in broker.url[0]
