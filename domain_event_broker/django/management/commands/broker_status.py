"""``manage.py broker_status``: what waits, what failed, and who works on it."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser

from domain_event_broker.django.conf import known_alias, outbox_alias
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.management.base import AWAY, OK, BrokerCommand
from domain_event_broker.django.status import (
    BrokerStatus,
    OutboxStatus,
    as_json,
    broker_status,
    outbox_status,
)
from domain_event_broker.django.terminal import table
from domain_event_broker.ports import QueueStats


class Command(BrokerCommand):
    """Shows the state of outbox, relays and queues."""

    help = "Show what waits in the outbox and in the queues of the handlers, dead letters, and live relays."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        parser.add_argument("--database", help="alias of the database with the outbox")

    def run(self, **options: Any) -> int:
        """Print the state."""
        settings = self.settings()
        outbox = outbox_status(known_alias(options["database"]) if options["database"] else outbox_alias())
        broker = broker_status(settings, discover().all())
        if options["json"]:
            self.stdout.write(json.dumps(as_json(outbox, broker), indent=2))
        else:
            self._print(outbox, broker)
        return AWAY if broker.problem else OK

    def _print(self, outbox: OutboxStatus, broker: BrokerStatus) -> None:
        oldest = "" if outbox.oldest_seconds is None else f" (oldest {outbox.oldest_seconds:.0f} s)"
        self.stdout.write(
            f"Outbox '{outbox.database}': {outbox.pending:,} waiting{oldest}, "
            f"{outbox.scheduled:,} scheduled, "
            f"{outbox.retrying:,} to be tried again, {outbox.parked:,} parked"
        )
        if outbox.relays:
            rows = [
                (
                    relay.name,
                    relay.buckets,
                    f"{relay.seen_seconds_ago:.0f} s ago" + (" SILENT" if relay.silent else ""),
                )
                for relay in outbox.relays
            ]
            self.stdout.write("\n" + table(("RELAY", "BUCKETS", "SEEN"), rows))
        else:
            self.stdout.write("No relay is running: start one with 'manage.py run_relay'.")
        self.stdout.write("")
        if broker.problem:
            self.stdout.write(self.style.ERROR(f"Broker {broker.url}: {broker.problem}"))
            return
        self.stdout.write(f"Broker {broker.url}")
        header = ("HANDLER", "READY", "IN FLIGHT", "DELAYED", "DEAD", "CONSUMERS")
        lines = [_line(name, stats) for name, stats in broker.queues.items()]
        self.stdout.write(table(header, lines) if lines else "No handlers are declared.")
        for text in _leftovers(broker):
            self.stdout.write(self.style.WARNING(text))


def _line(name: str, stats: QueueStats) -> tuple[str | int | None, ...]:
    if not stats.exists:
        return (f"{name} (no queue yet)", None, None, None, None, None)
    return (name, stats.ready, stats.in_flight, stats.delayed, stats.dead, stats.consumers)


def _leftovers(broker: BrokerStatus) -> list[str]:
    """Return what is left of earlier releases, each as a sentence."""
    found = [
        f"{name} has left the code, and its queue is there: {stats.ready:,} ready, "
        f"{stats.delayed:,} delayed, {stats.dead:,} dead. 'declare_queues --prune' lets no more come in."
        for name, stats in broker.abandoned.items()
    ]
    for name, keys in broker.surplus_keys.items():
        listed = ", ".join(map(repr, keys))
        found.append(
            f"{name} still gets {listed}, which it no longer asks for: see 'declare_queues --prune'."
        )
    return found
