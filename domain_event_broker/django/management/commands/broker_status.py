"""``manage.py broker_status``: what waits, what failed, and who works on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from domain_event_broker.django.conf import known_alias, outbox_alias
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.management.base import (
    AWAY,
    FAILED,
    OK,
    USAGE,
    BrokerCommand,
    at_least,
    more_than_nothing,
    until_stopped,
)
from domain_event_broker.django.status import (
    Alert,
    BrokerStatus,
    Level,
    OutboxStatus,
    alerts,
    as_json,
    broker_status,
    outbox_status,
)
from domain_event_broker.django.terminal import table
from domain_event_broker.errors import OutboxUnavailable
from domain_event_broker.ports import QueueStats

#: Seconds between two looks of ``--watch``, unless it says so.
WATCH_SECONDS = 2.0
#: Moves to the upper left corner and clears what is there.
_CLEAR = "\x1b[H\x1b[2J"
_HANDLERS = ("HANDLER", "READY", "IN FLIGHT", "DELAYED", "DEAD", "CONSUMERS")


class Command(BrokerCommand):
    """Shows the state of outbox, relays and queues, with what is wrong in words."""

    help = (
        "Show what waits in the outbox and in the queues of the handlers, dead letters and live relays, and "
        "say what is wrong and what to do about it. The --fail-if options turn it into a check for cron or a "
        "probe: each that is true is told on stderr, and the exit code is 1."
    )
    examples = (
        ("look once", "broker_status"),
        ("look every five seconds, until Ctrl-C", "broker_status --watch 5"),
        (
            "for cron: tell if an event waits for more than a minute, or any is dead",
            "broker_status --fail-if-lag 60 --fail-if-dead 1 > /dev/null",
        ),
        ("for programs", "broker_status --json"),
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--json", action="store_true", help="print JSON, for programs; with --watch a line for each look"
        )
        parser.add_argument(
            "--watch",
            nargs="?",
            type=more_than_nothing,
            const=WATCH_SECONDS,
            metavar="SECONDS",
            help=f"look again every so many seconds (default: {WATCH_SECONDS:g}), until Ctrl-C",
        )
        parser.add_argument(
            "--fail-if-lag",
            type=more_than_nothing,
            metavar="SECONDS",
            help="exit 1 if an event has been waiting in the outbox for longer than this",
        )
        parser.add_argument(
            "--fail-if-dead",
            type=at_least(1),
            metavar="N",
            help="exit 1 if the handlers have N dead letters or more, all in all",
        )
        parser.add_argument(
            "--fail-if-silent",
            action="store_true",
            help=(
                "exit 1 if no relay is running, or one is silent; or if a handler has no queue, or nobody "
                "consumes it"
            ),
        )
        parser.add_argument("--database", help="alias of the database with the outbox")

    def run(self, **options: Any) -> int:
        """Print the state, once or again and again."""
        if options["watch"] is not None:
            return self._watch(options)
        outbox, broker = self._look(options)
        self._show(outbox, broker, options)
        failures = list(_failures(outbox, broker, options))
        for failure in failures:
            self.stderr.write(failure)
        if broker.problem:
            # Whoever looks at the table has read it there already.
            if _is_check(options) or not self.stdout.isatty():
                self.stderr.write(f"the broker cannot be asked: {broker.problem}")
            return AWAY
        return FAILED if failures else OK

    def _look(self, options: dict[str, Any]) -> tuple[OutboxStatus, BrokerStatus]:
        outbox = outbox_status(known_alias(options["database"]) if options["database"] else outbox_alias())
        return outbox, broker_status(self.settings(), discover().all())

    def _watch(self, options: dict[str, Any]) -> int:
        if _is_check(options):
            raise CommandError("--watch goes on, and --fail-if is for one look: choose", returncode=USAGE)
        with until_stopped() as stopped:
            while not stopped.is_set():
                try:
                    self._show_again(*self._look(options), options)
                except OutboxUnavailable as error:  # it may be back at the next look
                    problem = json.dumps({"problem": str(error)}) if options["json"] else str(error)
                    self.stdout.write(problem)
                self.stdout.flush()
                stopped.wait(options["watch"])
        return OK

    def _show_again(self, outbox: OutboxStatus, broker: BrokerStatus, options: dict[str, Any]) -> None:
        if not options["json"]:
            now = datetime.now().astimezone()
            head = f"{now:%Y-%m-%d %H:%M:%S}, every {options['watch']:g} s. Ctrl-C stops.\n"
            self.stdout.write((_CLEAR if self.stdout.isatty() else "") + head)
        self._show(outbox, broker, options)

    def _show(self, outbox: OutboxStatus, broker: BrokerStatus, options: dict[str, Any]) -> None:
        found = alerts(outbox, broker)
        if options["json"]:
            state = {**as_json(outbox, broker), "alerts": [asdict(alert) for alert in found]}
            self.stdout.write(json.dumps(state, indent=None if options["watch"] else 2))
            return
        self._show_outbox(outbox)
        self._show_broker(broker)
        self.stdout.write("")
        for alert in found:
            self.stdout.write(self._in_colour(alert))
        if not found:
            self.stdout.write(self.style.SUCCESS("All is well."))

    def _show_outbox(self, outbox: OutboxStatus) -> None:
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
            self.stdout.write("\n" + table(("RELAY", "BUCKETS", "SEEN"), rows, self._paint))

    def _show_broker(self, broker: BrokerStatus) -> None:
        self.stdout.write(f"\nBroker {broker.url}")
        if not broker.problem:
            lines = [_line(name, stats) for name, stats in broker.queues.items()]
            self.stdout.write(table(_HANDLERS, lines, self._paint) if lines else "No handlers are declared.")

    def _paint(self, column: str, value: object, text: str) -> str:
        """Let dead letters, queues without consumers and silent relays stand out."""
        bad = (column == "DEAD" and value) or (column == "CONSUMERS" and value == 0) or "SILENT" in str(value)
        return self.style.ERROR(text) if bad else text

    def _in_colour(self, alert: Alert) -> str:
        styles = {Level.CRITICAL: self.style.ERROR, Level.WARNING: self.style.WARNING}
        style = styles.get(alert.level, str)
        return f"{style(alert.level.value.upper())}: {alert.text} {alert.remedy}"


def _is_check(options: dict[str, Any]) -> bool:
    return any(options[name] for name in ("fail_if_lag", "fail_if_dead", "fail_if_silent"))


def _failures(outbox: OutboxStatus, broker: BrokerStatus, options: dict[str, Any]) -> Iterator[str]:
    """Yield what somebody asked to be told of, in words."""
    lag, dead = options["fail_if_lag"], options["fail_if_dead"]
    if lag is not None and (outbox.oldest_seconds or 0.0) > lag:
        yield f"the oldest event has been waiting for {outbox.oldest_seconds:.0f} s (--fail-if-lag {lag:g})"
    letters = sum(stats.dead for stats in (*broker.queues.values(), *broker.abandoned.values()))
    if dead is not None and letters >= dead:
        yield f"{letters:,} dead letters (--fail-if-dead {dead})"
    if options["fail_if_silent"]:
        for alert in alerts(outbox, broker):
            if alert.kind in ("no-relay", "relay-silent", "no-consumer", "no-queue"):
                yield f"{alert.text} (--fail-if-silent)"


def _line(name: str, stats: QueueStats) -> tuple[str | int | None, ...]:
    if not stats.exists:
        return (f"{name} (no queue yet)", None, None, None, None, None)
    return (name, stats.ready, stats.in_flight, stats.delayed, stats.dead, stats.consumers)
