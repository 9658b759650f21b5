"""One trace from what publishes an event to all that follows from it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from domain_event_broker import BackgroundPublisher, DomainEvent, Reject, Retry
from domain_event_broker.bus import MemoryBus
from domain_event_broker.direct import Publisher
from domain_event_broker.events import Message, encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.replay import LetterFilter, replay
from tests.integration.subscriber.conftest import Bench
from tests.integration.tracing.conftest import (
    Spans,
    attribute,
    identity,
    is_child,
    linked,
    publisher_for,
    tracer,
)

SECRET = "card 4111 1111"


def test_a_request_a_handler_and_what_follows_from_it_are_one_trace(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    second = traced_bench.handler(lambda event: None)
    follow_up = DomainEvent(second.name)

    def follow(event: DomainEvent) -> None:
        with publisher_for(traced_bench.settings) as own, tracer.start_as_current_span("work"):
            own.publish(follow_up)

    first = traced_bench.handler(follow)
    event = DomainEvent(first.name)
    with traced_bench.consuming(first, second):
        with tracer.start_as_current_span("request") as request:
            publisher.publish(event)
        (last,) = spans.wait_for("process", 1, follow_up)
        (process,) = spans.wait_for("process", 1, event)
    (create,), (second_create,) = spans.of("create", event), spans.of("create", follow_up)
    (work,) = [span for span in spans.all() if span.name == "work"]
    assert is_child(create, request)  # type: ignore[arg-type]
    assert is_child(process, create)
    assert is_child(work, process)
    assert is_child(second_create, work)
    assert is_child(last, second_create)
    assert len({identity(span)[0] for span in (create, process, work, second_create, last)}) == 1


def test_spans_are_named_and_described_by_the_conventions(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    handler = traced_bench.handler(lambda event: None)
    event = DomainEvent(handler.name, {"note": "n"})
    with traced_bench.consuming(handler):
        publisher.publish(event)
        (process,) = spans.wait_for("process", 1)
    (create,), (send,) = spans.of("create"), spans.of("send")
    system = "rabbitmq" if "amqp" in traced_bench.settings.url[0] else "memory"
    assert (create.kind, send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.CONSUMER)
    assert create.name == process.name.replace("process", "create") == f"create domain-events:{handler.name}"
    assert send.name == "send domain-events"
    assert linked(send) == linked(process) == [identity(create)]
    for span in (create, send, process):
        assert attribute(span, "messaging.system") == system
        assert attribute(span, "messaging.operation.type") == attribute(span, "messaging.operation.name")
        assert span.status.status_code is StatusCode.UNSET
    assert attribute(send, "messaging.batch.message_count") == 1
    assert attribute(send, "messaging.destination.name") == "domain-events"
    for span in (create, process):
        assert attribute(span, "messaging.message.id") == event.uuid_string
        assert attribute(span, "messaging.message.conversation_id") == event.correlation_id
        assert attribute(span, "messaging.message.body.size") == len(encode(event).body)
        key = attribute(span, "messaging.rabbitmq.destination.routing_key")
        assert key == (handler.name if system == "rabbitmq" else None)
    assert attribute(process, "messaging.consumer.group.name") == handler.name
    assert attribute(process, "domain_event_broker.attempt") == 1
    assert attribute(process, "domain_event_broker.outcome") == "handled"


def test_each_attempt_is_a_span_of_the_same_trace(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    def fail_once(event: DomainEvent) -> None:
        if event.retries == 0:
            raise Retry(0.01) from ConnectionError("away")

    handler = traced_bench.handler(fail_once)
    with traced_bench.consuming(handler):
        publisher.publish(DomainEvent(handler.name))
        first, second = spans.wait_for("process", 2)
    (create,) = spans.of("create")
    assert is_child(first, create)
    assert is_child(second, create)
    assert [attribute(span, "domain_event_broker.attempt") for span in (first, second)] == [1, 2]
    assert attribute(first, "domain_event_broker.outcome") == "retried"
    assert attribute(first, "domain_event_broker.retry.delay") == 0.01
    assert attribute(first, "error.type") == "ConnectionError"
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET


def test_a_replay_is_linked_to_the_letters_and_the_next_attempt_belongs_to_their_trace(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    attempts: list[int] = []

    def reject_first(event: DomainEvent) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise Reject("not now")

    handler = traced_bench.handler(reject_first)
    with traced_bench.consuming(handler):
        publisher.publish(DomainEvent(handler.name))
        traced_bench.dead_letters(handler, 1)
        with traced_bench.transport() as transport, tracer.start_as_current_span("on call") as on_call:
            assert replay(transport.dead_letters(handler.name), LetterFilter()).replayed == 1
        first, second = spans.wait_for("process", 2)
    (create,), (replayed,) = spans.of("create"), spans.wait_for("replay", 1)
    assert attribute(first, "domain_event_broker.failure.reason") == "rejected"
    assert linked(replayed) == [identity(create)]
    assert is_child(replayed, on_call)  # type: ignore[arg-type]
    assert attribute(replayed, "messaging.batch.message_count") == 1
    assert is_child(second, create)
    assert attribute(second, "domain_event_broker.replays") == 1


def test_looking_at_dead_letters_makes_no_span(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    def reject(event: DomainEvent) -> None:
        raise Reject("no")

    handler = traced_bench.handler(reject)
    with traced_bench.consuming(handler):
        publisher.publish(DomainEvent(handler.name))
        assert len(traced_bench.dead_letters(handler, 1)) == 1
    assert not spans.of("replay")
    assert not spans.of("discard")


def test_what_an_async_handler_publishes_belongs_to_its_attempt(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    follow_up = DomainEvent("nobody.listens")

    async def follow(event: DomainEvent) -> None:
        with publisher_for(traced_bench.settings) as own:
            await asyncio.to_thread(own.publish, follow_up)

    handler = traced_bench.handler(follow, concurrency=4)
    events = [DomainEvent(handler.name) for _ in range(4)]
    with traced_bench.consuming(handler):
        publisher.publish(events[0])
        (process,) = spans.wait_for("process", 1, events[0])
        (create,) = spans.of("create", follow_up)
        assert is_child(create, process)
        for event in events[1:]:
            publisher.publish(event)
        spans.wait_for("process", 4)
    for event in events:
        (made,), (processed,) = spans.of("create", event), spans.of("process", event)
        assert is_child(processed, made)


def test_payloads_texts_of_errors_and_passwords_are_in_no_span(
    traced_bench: Bench, publisher: Publisher, spans: Spans
) -> None:
    def quote(event: DomainEvent) -> None:
        raise ValueError(event.data["card"])

    handler = traced_bench.handler(quote)
    with traced_bench.consuming(handler):
        publisher.publish(DomainEvent(handler.name, {"card": SECRET}))
        traced_bench.dead_letters(handler, 1)
        (process,) = spans.wait_for("process", 1)
    assert attribute(process, "error.type") == "ValueError"
    assert SECRET not in spans.text()
    assert "guest" not in spans.text()


def test_a_batch_has_one_span_with_links_to_its_events(traced_bench: Bench, spans: Spans) -> None:
    with publisher_for(traced_bench.settings) as publisher:
        publisher.publish_batch([DomainEvent("a.b") for _ in range(200)])
    (send,) = spans.of("send")
    assert attribute(send, "messaging.batch.message_count") == 200
    assert attribute(send, "domain_event_broker.unroutable") == 200
    assert linked(send) == [identity(span) for span in spans.of("create")][:128]


def test_an_event_left_to_a_thread_belongs_to_who_left_it(traced_bench: Bench, spans: Spans) -> None:
    value: Any = {"URL": list(traced_bench.settings.url), "TRACING": True}
    with BackgroundPublisher(value) as publisher, tracer.start_as_current_span("request") as request:
        publisher.publish(DomainEvent("a.b"))
        assert publisher.flush(30)
    (create,), (send,) = spans.of("create"), spans.wait_for("send", 1)
    assert is_child(create, request)  # type: ignore[arg-type]
    assert linked(send) == [identity(create)]


def test_an_event_that_came_with_a_trace_goes_on_with_it_where_no_span_is_around(
    traced_bench: Bench, spans: Spans
) -> None:
    event = DomainEvent("a.b")
    event.headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with publisher_for(traced_bench.settings) as publisher:
        publisher.publish(event)
    (create,) = spans.of("create")
    assert identity(create)[0] == 0x0AF7651916CD43DD8448EB211C80319C


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "not one"},
        {"traceparent": 5, "baggage": "=;=,,"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "tracestate": "x" * 5000},
    ],
)
def test_what_strangers_write_into_trace_headers_begins_a_trace_of_its_own(
    headers: dict[str, Any], traced_bench: Bench, spans: Spans
) -> None:
    handler = traced_bench.handler(lambda event: None)
    event = DomainEvent(handler.name)
    message = encode(event)
    with traced_bench.consuming(handler):
        traced_bench.send([Message(message.routing_key, message.body, message.event_id, headers=headers)])
        (process,) = spans.wait_for("process", 1)
    assert process.parent is None
    assert linked(process) == []


def test_events_are_handled_once_although_tracing_fails(
    traced_bench: Bench, publisher: Publisher, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[DomainEvent] = []
    handler = traced_bench.handler(calls.append)
    events = [DomainEvent(handler.name) for _ in range(3)]
    with caplog.at_level(logging.ERROR, "domain_event_broker.tracing"):
        spans.saboteur.armed = True
        with traced_bench.consuming(handler):
            for event in events:
                publisher.publish(event)
            traced_bench.wait_until_empty(handler)
    assert calls == events
    assert traced_bench.stats(handler).dead == 0
    assert len(caplog.records) == 1


def test_the_bus_of_one_process_makes_spans_where_it_is_asked_to(spans: Spans) -> None:
    event = DomainEvent("order.placed")
    with MemoryBus(tracing=True) as bus:
        bus.subscribe("order.*", lambda event: None)
        bus.publish(event)
        assert bus.wait(30)
        (process,) = spans.wait_for("process", 1, event)
    (create,) = spans.of("create", event)
    assert is_child(process, create)


def test_a_program_with_tracing_off_makes_no_spans_and_sends_no_headers(
    plain_bench: Bench, spans: Spans
) -> None:
    seen: list[Any] = []
    handler = plain_bench.handler(lambda event: seen.append(event.headers))
    value: Any = list(plain_bench.settings.url)
    with plain_bench.consuming(handler, inbox=DirectInbox()), tracer.start_as_current_span("request"):
        with Publisher(value) as publisher:
            publisher.publish(DomainEvent(handler.name))
        plain_bench.wait_until_empty(handler)
    assert [span.name for span in spans.all()] == ["request"]
    assert not any("trace" in name for headers in seen for name in headers)


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_opentelemetry_is_imported_where_tracing_is_off() -> None:
    program = """
import sys
from domain_event_broker import DomainEvent, Publisher
from domain_event_broker.bus import MemoryBus
with MemoryBus() as bus:
    bus.subscribe("a.*", lambda event: None)
    bus.publish(DomainEvent("a.b"))
    assert bus.wait(30)
with Publisher("memory:") as publisher:
    publisher.publish(DomainEvent("a.b"))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    assert _run(program).strip() == "[]"


def test_without_opentelemetry_the_error_names_what_to_install() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from domain_event_broker import DomainEvent, Publisher
from domain_event_broker.errors import MissingDependency
try:
    with Publisher({"URL": "memory:", "TRACING": True}) as publisher:
        publisher.publish(DomainEvent("a.b"))
except MissingDependency as error:
    print(error)
"""
    assert "pip install 'django-domain-event-broker[tracing]'" in _run(program)


def test_without_opentelemetry_no_connection_is_left_open() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import MissingDependency
from domain_event_broker.transports import memory, open_transport
memory.MemoryTransport.__init__ = lambda *given: print("connected")
try:
    open_transport(BrokerSettings(("memory:",), tracing=True))
except MissingDependency:
    print("missing")
"""
    assert _run(program).split() == ["missing"]
