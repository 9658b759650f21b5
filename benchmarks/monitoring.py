"""What it costs to be watched: the same work told of and not, by turns, and one read by Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from benchmarks.measurements import consume_rate, current_settings, relay_rate
from benchmarks.program import Figure
from domain_event_broker.config import MonitoringSettings
from domain_event_broker.django.figures import outbox_figures, queue_figures
from domain_event_broker.monitoring.board import Board
from domain_event_broker.monitoring.metrics import Exporter, Readings, RelaySource, SubscriberSource
from domain_event_broker.monitoring.monitor import RelayMonitor, SubscriberMonitor
from domain_event_broker.monitoring.recorder import relay_columns, subscriber_columns
from domain_event_broker.monitoring.sampler import Sampler
from domain_event_broker.observer import NOBODY, Observer
from domain_event_broker.ports import Action, Delivery, Settlement

#: Events of a batch of a relay, and deliveries that a subscriber settles at once where each is cheap.
RELAY_BATCH, SUBSCRIBER_BATCH = 500, 10
NAME = "bench-watched"


def monitoring(repeat: int, events: int) -> list[Figure]:
    """What it costs a relay, a subscriber whose handler does nothing, and at each read by Prometheus."""
    relayed = partial(relay_rate, queue_type="quorum", events=events)
    consumed = partial(consume_rate, call=lambda event: None, events=events)
    return [
        *_measure("relay", repeat, lambda name, observer: relayed(name, observer=observer), _relay_observer),
        _reads("relay", repeat, _relay_source().read),
        *_measure(
            "subscriber",
            repeat,
            lambda name, observer: consumed(name, observer=observer),
            _subscriber_observer,
        ),
        _reads("subscriber", repeat, _subscriber_source().read),
    ]


def _measure(
    what: str,
    repeat: int,
    rate: Callable[[str, Observer], float],
    observe: Callable[[str], tuple[Observer, Callable[[], float]]],
) -> list[Figure]:
    """Time the work with and without an observer by turns, and what the observer does by itself."""
    ratio = Figure(f"{what}: time, watched by unwatched", "ratio")
    spent = Figure(f"{what}: telling the observer of an event", "ns")
    share = Figure(f"{what}: the same as a share of its time", "percent")
    for number in range(repeat):
        seconds: dict[bool, float] = {}
        # Each first in turn: what is done second finds warm caches, and fuller tables.
        for watched in (True, False) if number % 2 else (False, True):
            name = f"{NAME}-{what}-{number}-{watched}"
            observer, telling = observe(name)
            seconds[watched] = 1 / rate(name, observer if watched else NOBODY)
        ratio.samples.append(seconds[True] / seconds[False])
        told = telling()
        spent.samples.append(told * 1e9)
        share.samples.append(100 * told / seconds[False])
    return [ratio, spent, share]


def _relay_observer(name: str) -> tuple[Observer, Callable[[], float]]:
    monitor = RelayMonitor(MonitoringSettings(), partial(outbox_figures, "default"), None, None)

    def telling() -> float:
        def batch() -> None:
            monitor.observer.alive()
            monitor.observer.relayed(0.1, 1, 0, 0, 0)

        return _seconds(batch, 2000) / RELAY_BATCH

    return monitor.observer, telling


def _subscriber_observer(name: str) -> tuple[Observer, Callable[[], float]]:
    monitor = SubscriberMonitor(MonitoringSettings(), [name], 1, dict, None, None)
    observer = monitor.observer()
    deliveries = [Delivery(name, b"", name)] * SUBSCRIBER_BATCH
    settlements = [Settlement(each, Action.ACK, outcome="handled", seconds=0.001) for each in deliveries]

    def telling() -> float:
        def turn() -> None:
            observer.alive()
            observer.received(deliveries)
            observer.settled(settlements)

        return _seconds(turn, 2000) / SUBSCRIBER_BATCH

    return observer, telling


def _reads(what: str, repeat: int, read: Callable[[], Readings]) -> Figure:
    """Processor time of one read, for which database and broker are asked anew."""
    figure = Figure(f"{what}: processor time of one read by Prometheus", "ms")
    exporter = Exporter(read)
    for _ in range(repeat + 1):
        before = time.process_time()
        exporter.render("")
        figure.samples.append(1000 * (time.process_time() - before))
    del figure.samples[0]  # the first one loads modules
    return figure


def _relay_source() -> RelaySource:
    return RelaySource(Board(relay_columns()), Sampler("it", partial(outbox_figures, "default"), fresh=0.0))


def _subscriber_source() -> SubscriberSource:
    ask = partial(queue_figures, current_settings(), [NAME])
    return SubscriberSource(Board(subscriber_columns([NAME])), [NAME], Sampler("it", ask, fresh=0.0))


def _seconds(call: Callable[[], None], count: int) -> float:
    call()
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count
