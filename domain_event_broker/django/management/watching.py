"""The options of commands that are watched over HTTP, and what they make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.core.management.base import CommandParser, OutputWrapper

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.figures import outbox_figures, queue_figures
from domain_event_broker.monitoring.monitor import Monitor, RelayMonitor, SubscriberMonitor


def add_ports(parser: CommandParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--metrics-port",
        type=port,
        metavar="N",
        help="serve /metrics for Prometheus, /livez and /readyz on this port (0: any that is free)",
    )
    parser.add_argument(
        "--health-port", type=port, metavar="N", help="serve /livez and /readyz alone on this port"
    )


def port(text: str) -> int:
    """Read the number of a port."""
    number = int(text)
    if not 0 <= number <= 65_535:
        raise ValueError(text)
    return number


def is_watched(options: dict[str, Any]) -> bool:
    """Tell whether one of the options was given."""
    return options["metrics_port"] is not None or options["health_port"] is not None


def announce(monitor: Monitor, output: OutputWrapper) -> None:
    """Write where servers listen."""
    for server in monitor.servers:
        output.write(f"Listening at {server}")
    output.flush()  # a log file would have it when the process ends


@contextmanager
def watched(monitor: Monitor | None, output: OutputWrapper) -> Iterator[None]:
    """Answer requests, if anybody shall be answered, for as long as this lasts; tell where."""
    if monitor is not None:
        announce(monitor, output)
        monitor.start()
    output.flush()  # a log file would have it when the process ends
    try:
        yield
    finally:
        if monitor is not None:
            monitor.stop()


def relay_monitor(options: dict[str, Any], settings: BrokerSettings, alias: str) -> RelayMonitor:
    """Return what shows a relay of the database ``alias``.

    :raises ConfigurationError: a port cannot be used, or prometheus-client is missing.
    """
    ask = partial(outbox_figures, alias)
    return RelayMonitor(settings.monitoring, ask, options["metrics_port"], options["health_port"])


def subscriber_monitor(
    options: dict[str, Any], settings: BrokerSettings, handlers: Sequence[str], processes: int
) -> SubscriberMonitor:
    """Return what shows so many subscribers of ``handlers``.

    :raises ConfigurationError: a port cannot be used, or prometheus-client is missing.
    """
    ask = partial(queue_figures, settings, handlers)
    return SubscriberMonitor(
        settings.monitoring, handlers, processes, ask, options["metrics_port"], options["health_port"]
    )
