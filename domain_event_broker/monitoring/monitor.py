"""What a command has beside its worker when it is asked to be seen: a board, and servers that show it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domain_event_broker.config import MonitoringSettings
from domain_event_broker.monitoring.board import Board, Row
from domain_event_broker.monitoring.health import Health
from domain_event_broker.monitoring.metrics import (
    Exporter,
    OutboxFigures,
    Readings,
    RelaySource,
    SubscriberSource,
    program_registry,
)
from domain_event_broker.monitoring.recorder import (
    RelayRecorder,
    SubscriberRecorder,
    ended,
    relay_columns,
    subscriber_columns,
)
from domain_event_broker.monitoring.sampler import Sampler
from domain_event_broker.monitoring.server import Answer, Page, Server, probe
from domain_event_broker.observer import Observer
from domain_event_broker.ports import QueueStats

logger = logging.getLogger("domain_event_broker.monitoring")


class Monitor:
    """Servers that listen from the moment this is made.

    :param settings: where they listen.
    :param metrics_port: port of ``/metrics``, with ``/livez`` and ``/readyz``; ``None``: no such server.
    :param health_port: port of ``/livez`` and ``/readyz`` alone; ``None``: no such server.
    :raises ConfigurationError: a port cannot be used, or prometheus-client is missing for the first.
    """

    def __init__(
        self,
        settings: MonitoringSettings,
        health: Health,
        read: Callable[[], Readings],
        metrics_port: int | None,
        health_port: int | None,
        others: bool = True,
    ) -> None:
        probes = {"/livez": probe(health.live), "/readyz": probe(health.ready)}
        self.servers: list[Server] = []
        if metrics_port is not None:
            pages = {"/metrics": _metrics_page(read, others), **probes}
            self.servers.append(Server(settings.address, metrics_port, pages))
        if health_port is not None:
            self.servers.append(Server(settings.address, health_port, probes))

    def start(self) -> None:
        """Answer requests in threads of this process, and tell where."""
        self.tell()
        for server in self.servers:
            server.start()

    def tell(self) -> None:
        """Write to the log where the servers listen."""
        for server in self.servers:
            logger.info("listening at %s", server)

    def stop(self) -> None:
        """Answer no more; after :meth:`start`."""
        for server in self.servers:
            server.stop()

    def close(self) -> None:
        """Stop listening, in a process that does not answer."""
        for server in self.servers:
            server.close()


class RelayMonitor(Monitor):
    """Shows one relay, which runs in this process.

    :param ask: asks the outbox.
    """

    def __init__(
        self,
        settings: MonitoringSettings,
        ask: Callable[[], OutboxFigures],
        metrics_port: int | None,
        health_port: int | None,
    ) -> None:
        board = Board(relay_columns())
        outbox = Sampler("the outbox", ask)

        def lag() -> float | None:
            figures, is_up = outbox.latest()
            return figures.lag_seconds if figures is not None and is_up else None

        self.observer: Observer = RelayRecorder(board.rows[0])
        health = Health("relay", board, settings, lag)
        super().__init__(settings, health, RelaySource(board, outbox).read, metrics_port, health_port)


class SubscriberMonitor(Monitor):
    """Shows subscribers that run the same handlers, each in a process of its own if there are several.

    :param handlers: names of the handlers.
    :param processes: how many subscribers there are.
    :param ask: asks the broker for the depths of the handlers' queues.
    """

    def __init__(
        self,
        settings: MonitoringSettings,
        handlers: Sequence[str],
        processes: int,
        ask: Callable[[], Mapping[str, QueueStats]],
        metrics_port: int | None,
        health_port: int | None,
    ) -> None:
        self._handlers = handlers
        self._board = Board(subscriber_columns(handlers), processes)
        source = SubscriberSource(self._board, handlers, Sampler("the queues", ask))
        health = Health("subscriber", self._board, settings)
        # Metrics of the program count in the process that runs the handlers, which is another one here.
        super().__init__(settings, health, source.read, metrics_port, health_port, others=processes == 1)

    def observer(self, number: int = 0) -> Observer:
        """Return what the subscriber of this number, from 0 on, tells how it goes."""
        return SubscriberRecorder(self._row(number), self._handlers)

    def died(self, number: int) -> None:
        """Take note that the process of a subscriber is gone, and another one is started."""
        self._row(number).add(1, "restarts")
        ended(self._row(number), self._handlers)

    def _row(self, number: int) -> Row:
        return self._board.rows[number]


def _metrics_page(read: Callable[[], Readings], with_others: bool) -> Page:
    others: list[Any] = [program_registry()] if with_others else []
    exporter = Exporter(read, others)

    def page(accept: str) -> Answer:
        return Answer(*exporter.render(accept))

    return page
