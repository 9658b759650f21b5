"""The command line of the benchmarks: private servers, one measurement after the other, a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import c_client
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.rabbitmq import PrivateRabbitMQ

#: Body data of about 300 bytes of JSON, the size that all figures are for.
PAYLOAD = {"order": 12345, "customer": "c-0815", "total": "129.90", "note": "x" * 110}


@dataclass
class Figure:
    """One measured quantity: its samples, and what they are of."""

    name: str
    unit: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return statistics.median(self.samples)

    def line(self) -> str:
        """Return the figure for people."""
        middle, low, high = map(self.shown, (self.median, min(self.samples), max(self.samples)))
        return f"{self.name:<62} {middle:>10} {self.unit:<9} ({low} to {high})"

    def shown(self, value: float) -> str:
        """Return a value with as many digits as mean something."""
        return f"{value:,.{2 if self.unit == 'ratio' else 1 if value < 1000 else 0}f}"


def main(arguments: Sequence[str]) -> int:
    """Run the named benchmarks and print their figures."""
    # Imported when servers and settings exist: Django reads them once.
    parser = argparse.ArgumentParser(
        prog="benchmarks/run",
        description="Measure publishing, relaying, subscribing and what goes with them on private servers.",
        epilog="Ratios within one run mean more than rates between runs: machines differ and are noisy.",
    )
    names = ["publish", "relay", "subscribe", "injection", "monitoring", "latency", "backlog", "churn"]
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(names)}, or all"
    )
    parser.add_argument(
        "--install", action="store_true", help="first install (apt) what compiling the client in C takes"
    )
    parser.add_argument("--repeat", type=int, default=3, help="samples of each figure (default: 3)")
    parser.add_argument(
        "--events", type=int, default=20_000, help="events of a throughput sample (default: 20000)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--table", type=Path, help="the same as a table for a page of the documentation")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {*names, "all"}
    if unknown or not (options.names or options.install):
        parser.error(f"name what to measure: {', '.join(names)}, or all")
    if options.install:
        c_client.install()
    if not options.names:
        return 0
    chosen = names if "all" in options.names else options.names
    with ExitStack() as stack:
        # fsync as a production server has it: it is most of what a commit costs.
        postgres = stack.enter_context(PrivatePostgreSQL({"fsync": "on"}))
        rabbitmq = stack.enter_context(PrivateRabbitMQ())
        configure(postgres.create_database("bench"), rabbitmq.url())
        figures: list[Figure] = []
        for name in chosen:
            figures += measure(name, options.repeat, options.events)
            # After each: one that fails takes no others with it.
            if options.json:
                options.json.write_text(json.dumps(as_json(figures), indent=2) + "\n")
            if options.table:
                options.table.write_text(as_table(figures))
    return 0


def configure(database_url: str, broker_url: str) -> None:
    """Set Django up on the private servers, and make the tables."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    port, name = database_url.rsplit(":", 1)[1].split("/")
    settings.configure(
        INSTALLED_APPS=["domain_event_broker", "tests.djangoapp.shop"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": "127.0.0.1",
                "PORT": port,
                "NAME": name,
                "USER": "postgres",
            }
        },
        DOMAIN_EVENT_BROKER=broker_url,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()
    call_command("migrate", verbosity=0)


def measure(name: str, repeat: int, events: int) -> list[Figure]:
    """Run one benchmark and print its figures as they come."""
    from benchmarks import backlog, injection, measurements, monitoring

    modules = {"injection": injection, "monitoring": monitoring, "backlog": backlog, "churn": backlog}
    benchmark: Callable[[int, int], list[Figure]] = getattr(modules.get(name, measurements), name)
    print(f"\n{name}", flush=True)
    figures = benchmark(repeat, events)
    for figure in figures:
        print("  " + figure.line(), flush=True)
    return figures


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return figures and machine for a file."""
    return {
        "machine": machine(),
        "figures": [
            {"name": each.name, "unit": each.unit, "median": each.median, "samples": each.samples}
            for each in figures
        ],
    }


def as_table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table in reStructuredText: medians, and from the least to the most."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - What", "     - Median", "     - Range"]
    for each in figures:
        median, low, high = map(each.shown, (each.median, min(each.samples), max(each.samples)))
        unit = "" if each.unit == "ratio" else f" {each.unit}"
        lines += [f"   * - {each.name}", f"     - {median}{unit}", f"     - {low} to {high}"]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """Return what the figures are of."""
    packages = {name: version(name) for name in ("Django", "psycopg", "pika")}
    python = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }
    return {**python, **packages}
