"""The figures of a board as Prometheus reads them; the one module that knows its client library."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from domain_event_broker.errors import ConfigurationError
from domain_event_broker.monitoring.board import Board
from domain_event_broker.monitoring.recorder import BOUNDS, OUTCOMES, SENT_OUTCOMES
from domain_event_broker.monitoring.sampler import Sampler
from domain_event_broker.ports import QueueStats

logger = logging.getLogger("domain_event_broker.monitoring")

PREFIX = "domain_event_broker_"
#: Kinds of events in the queues of a handler.
QUEUE_KINDS = ("ready", "in_flight", "delayed", "dead")
#: Kinds of events that are kept out of the way of a relay.
HELD_STATES = ("scheduled", "retrying", "parked")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name without :data:`PREFIX`, its kind, its labels, and what it tells."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


COMMON = (
    Metric("reconnects_total", "counter", "Connections to the broker that were made anew."),
    Metric("broker_away_seconds", "gauge", "Time for which the broker has been away; 0: it is not."),
)
RELAY = (
    Metric("relay_events_total", "counter", "Events that the broker answered for.", ("outcome",)),
    Metric("relay_batch_seconds", "histogram", "Time to read, send and write down a batch."),
    Metric("relay_buckets", "gauge", "Buckets, of 64, that this relay sends from."),
    Metric("database_away_seconds", "gauge", "Time for which the database has been away; 0: it is not."),
    Metric("outbox_up", "gauge", "1 if the outbox could be asked just now; else its figures are old."),
    Metric("outbox_pending_events", "gauge", "Events that wait in the outbox, counted up to 100,000."),
    Metric("outbox_oldest_seconds", "gauge", "Age of the oldest of them; 0: none waits."),
    Metric("outbox_held_events", "gauge", "Events that are kept out of the way.", ("state",)),
)
SUBSCRIBER = (
    Metric("processes", "gauge", "Processes that are connected, or were once, and live."),
    Metric("process_restarts_total", "counter", "Processes that died and were replaced."),
    Metric("handler_events_total", "counter", "Deliveries, by how they ended.", ("handler", "outcome")),
    Metric(
        "handler_duration_seconds",
        "histogram",
        "Time to handle a delivery, its transaction included.",
        ("handler",),
    ),
    Metric("handler_in_flight_events", "gauge", "Deliveries fetched and not settled.", ("handler",)),
    Metric("queues_up", "gauge", "1 if the broker could be asked just now; else figures of queues are old."),
    Metric("queue_events", "gauge", "Events in the queues of a handler.", ("handler", "kind")),
    Metric("queue_consumers", "gauge", "Connections that receive from the queue.", ("handler",)),
)

#: Values by the values of labels, a tuple of strings. That of a histogram: counts of classes, and the sum.
Values = Mapping[Any, Any]
Readings = Iterator[tuple[Metric, Values]]


@dataclass(frozen=True, slots=True)
class OutboxFigures:
    """What is known of an outbox.

    :param pending: events that wait.
    :param oldest_seconds: age of the oldest of them; 0: none waits.
    :param held: events that are kept out of the way, by state.
    :param lag_seconds: age of the oldest that could have been sent: it waits for no parked one.
    """

    pending: int
    oldest_seconds: float
    held: Mapping[str, int]
    lag_seconds: float


class _Source:
    """What is read at a scrape."""

    metrics: tuple[Metric, ...] = COMMON

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self.board = board
        self._clock = clock

    def read(self) -> Readings:
        """Yield metrics with their values; one whose values are not known is left out."""
        values = self.values()
        for metric in self.metrics:
            if metric.name in values:
                yield metric, values[metric.name]

    def values(self) -> dict[str, Values]:
        """Return the values of what is known."""
        return {
            "reconnects_total": {(): self.board.total("reconnects")},
            "broker_away_seconds": {(): self._away("broker")},
        }

    def _away(self, peer: str) -> float:
        since = [moment for row in self.board.rows if (moment := row.get(f"{peer} away since"))]
        return self._clock() - min(since) if since else 0.0

    def _histogram(self, *name: str) -> tuple[list[float], float]:
        counts = [self.board.total(*name, str(number)) for number in range(len(BOUNDS) + 1)]
        return counts, self.board.total(*name, "sum")


class RelaySource(_Source):
    """The figures of a relay, and of its outbox.

    :param outbox: asks the outbox.
    """

    metrics = COMMON + RELAY

    def __init__(
        self, board: Board, outbox: Sampler[OutboxFigures], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(board, clock)
        self._outbox = outbox

    def values(self) -> dict[str, Values]:
        """Return the values of what is known."""
        sent = {(outcome,): self.board.total("sent", outcome) for outcome in SENT_OUTCOMES}
        return {
            **super().values(),
            "relay_events_total": sent,
            "relay_batch_seconds": {(): self._histogram("batch")},
            "relay_buckets": {(): self.board.total("buckets")},
            "database_away_seconds": {(): self._away("database")},
            **self._outbox_values(),
        }

    def _outbox_values(self) -> dict[str, Values]:
        figures, is_up = self._outbox.latest()
        up: dict[str, Values] = {"outbox_up": {(): is_up}}
        if figures is None:
            return up
        return {
            **up,
            "outbox_pending_events": {(): figures.pending},
            "outbox_oldest_seconds": {(): figures.oldest_seconds},
            "outbox_held_events": {(state,): figures.held.get(state, 0) for state in HELD_STATES},
        }


class SubscriberSource(_Source):
    """The figures of subscribers, one for each row, and of the queues of their handlers.

    :param handlers: names of the handlers.
    :param queues: asks the broker.
    """

    metrics = COMMON + SUBSCRIBER

    def __init__(
        self,
        board: Board,
        handlers: Sequence[str],
        queues: Sampler[Mapping[str, QueueStats]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(board, clock)
        self._handlers = handlers
        self._queues = queues

    def values(self) -> dict[str, Values]:
        """Return the values of what is known."""
        total, handlers = self.board.total, self._handlers
        ends = [(handler, outcome) for handler in handlers for outcome in OUTCOMES]
        return {
            **super().values(),
            "processes": {(): total("at work")},
            "process_restarts_total": {(): total("restarts")},
            "handler_events_total": {each: total("settled", *each) for each in ends},
            "handler_duration_seconds": {(each,): self._histogram("duration", each) for each in handlers},
            "handler_in_flight_events": {(each,): total("in flight", each) for each in handlers},
            **self._queue_values(),
        }

    def _queue_values(self) -> dict[str, Values]:
        figures, is_up = self._queues.latest()
        known = {name: stats for name, stats in (figures or {}).items() if stats.exists}
        depths = {
            (name, kind): depth
            for name, stats in known.items()
            for kind in QUEUE_KINDS
            if (depth := getattr(stats, kind)) is not None
        }
        consumers = {(name,): stats.consumers for name, stats in known.items() if stats.consumers is not None}
        return {"queues_up": {(): is_up}, "queue_events": depths, "queue_consumers": consumers}


class Exporter:
    """Writes what a source reads in a format of Prometheus.

    :param read: reads.
    :param others: collectors whose metrics follow, such as ``prometheus_client.REGISTRY``.
    :raises ConfigurationError: prometheus-client is not installed.
    """

    def __init__(self, read: Callable[[], Readings], others: Sequence[Any] = ()) -> None:
        self._client = _client()
        self._read = read
        self._others = others

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that ``accept`` asks for.

        :param accept: the HTTP header
            (https://prometheus.io/docs/instrumenting/content_negotiation/).
        """
        registry = self._client.CollectorRegistry()
        registry.register(self)
        encode, content_type = self._client.exposition.choose_encoder(accept)
        return encode(registry), content_type

    def describe(self) -> list[Any]:
        """Return nothing: what is there is known when it is read."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the families of metrics; called by the client library."""
        for metric, values in self._read():
            yield self._family(metric, values)
        for other in self._others:
            yield from self._of_other(other)

    def _of_other(self, other: Any) -> Iterable[Any]:
        try:
            return list(other.collect())
        except Exception:
            # Somebody else's; ours are to be seen all the same.
            logger.exception("metrics of the program cannot be read: %r", other)
            return ()

    def _family(self, metric: Metric, values: Values) -> Any:
        kinds = self._client.core
        name, labels = PREFIX + metric.name, metric.labels
        if metric.kind == "histogram":
            family = kinds.HistogramMetricFamily(name, metric.help, labels=labels)
            for label_values, (counts, total) in values.items():
                family.add_metric(label_values, _buckets(counts), total)
            return family
        cls = kinds.CounterMetricFamily if metric.kind == "counter" else kinds.GaugeMetricFamily
        family = cls(name, metric.help, labels=labels)
        for label_values, value in values.items():
            family.add_metric(label_values, value)
        return family


def program_registry() -> Any:
    """Return where the rest of this process keeps its metrics: ``prometheus_client.REGISTRY``."""
    return _client().REGISTRY


def _buckets(counts: Iterable[float]) -> list[tuple[str, float]]:
    names = [*map(str, BOUNDS), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


def _client() -> Any:
    """Return the client library, loaded only for those who ask for metrics."""
    try:
        import prometheus_client
        import prometheus_client.core
        import prometheus_client.exposition
    except ImportError as error:
        raise ConfigurationError(
            "metrics need the package prometheus-client: pip install 'django-domain-event-broker[metrics]'"
        ) from error
    return prometheus_client
