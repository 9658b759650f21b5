"""Spans of this process, as an exporter gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from domain_event_broker import DomainEvent
from domain_event_broker.config import BrokerSettings
from domain_event_broker.direct import Publisher
from domain_event_broker.telemetry import spans as library_spans
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench
from tests.integration.subscriber.conftest import bench as plain_bench  # noqa: F401 - a fixture

tracer = trace.get_tracer("tests")


class Saboteur(SpanProcessor):
    """Fails when it is told to."""

    armed = False

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.armed:
            raise RuntimeError("the span processor failed")


class Spans:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter, saboteur: Saboteur) -> None:
        self._exporter = exporter
        self.saboteur = saboteur

    def all(self) -> list[ReadableSpan]:
        """Return them in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def of(self, operation: str, event: DomainEvent | None = None) -> list[ReadableSpan]:
        """Return those of an operation, or of one for one event."""
        found = [span for span in self.all() if attribute(span, "messaging.operation.name") == operation]
        if event is None:
            return found
        return [span for span in found if attribute(span, "messaging.message.id") == event.uuid_string]

    def wait_for(self, operation: str, count: int, event: DomainEvent | None = None) -> list[ReadableSpan]:
        """Wait for so many of them."""
        wait_until(
            lambda: len(self.of(operation, event)) >= count,
            30,
            lambda: f"{count} of {operation}: {[span.name for span in self.all()]}",
        )
        found = self.of(operation, event)
        assert len(found) == count
        return found

    def text(self) -> str:
        """Return all that they tell."""
        return "\n".join(span.to_json() for span in self.all())


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Tell whether ``parent`` is the parent of ``span``, in one trace."""
    if span.parent is None:
        return False
    return (span.parent.trace_id, span.parent.span_id) == identity(parent)


def identity(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    """Return the identities of the spans that ``span`` is linked to."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@cache
def _provided() -> Spans:
    """A process has one provider, for good; programs that have tracing off make no spans all the same."""
    exporter, saboteur = InMemorySpanExporter(), Saboteur()
    provider = TracerProvider()
    provider.add_span_processor(saboteur)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return Spans(exporter, saboteur)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The spans of this test."""
    monkeypatch.setattr(library_spans, "_told", [])
    found = _provided()
    found._exporter.clear()
    yield found
    found.saboteur.armed = False


@pytest.fixture
def traced_bench(plain_bench: Bench) -> Bench:  # noqa: F811
    """A broker, the memory transport and RabbitMQ in turn, whose users trace."""
    return Bench(replace(plain_bench.settings, tracing=True), plain_bench.fresh_name)


@pytest.fixture
def publisher(traced_bench: Bench) -> Iterator[Publisher]:
    """Publishes straight to the broker."""
    with publisher_for(traced_bench.settings) as publisher:
        yield publisher


def publisher_for(settings: BrokerSettings) -> Publisher:
    value: Any = {"URL": list(settings.url), "TRACING": True}
    return Publisher(value)
