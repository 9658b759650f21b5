"""A program of its own: ``publish URL KEY`` or ``handle URL KEY``. Prints its spans, one JSON object each."""

from __future__ import annotations

import json
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from domain_event_broker import DomainEvent, Publisher, Subscriber, publish_domain_event, settings


class Lines(SpanExporter):
    """Prints what a test wants to know."""

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            say(json.dumps(described(span)))
        return SpanExportResult.SUCCESS


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def described(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "name": span.name,
        "trace": span.context.trace_id,
        "id": span.context.span_id,
        "parent": span.parent.span_id if span.parent else None,
        "attempt": (span.attributes or {}).get("domain_event_broker.attempt"),
    }


def publish(url: str, key: str) -> None:
    """A request publishes an event."""
    with trace.get_tracer("shop").start_as_current_span("request"), Publisher(url) as publisher:
        publisher.publish(DomainEvent(key))


def handle(url: str, key: str) -> None:
    """Handle one event at the second attempt, and publish what follows."""
    subscriber = Subscriber(url)

    def handler(event: DomainEvent) -> None:
        if event.retries == 0:
            raise ConnectionError("not yet")
        publish_domain_event(f"{key}.done", {}, connection_settings=url)
        subscriber.stop_consuming()

    subscriber.register(handler, key, [key], max_retries=2, retry_on=(ConnectionError,))
    say("ready")
    subscriber.start_consuming(timeout=60)


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Lines()))
    trace.set_tracer_provider(provider)
    work, url, key = sys.argv[1:]
    settings.BROKER = {"URL": url, "TRACING": True}  # type: ignore[assignment]
    {"publish": publish, "handle": handle}[work](url, key)
