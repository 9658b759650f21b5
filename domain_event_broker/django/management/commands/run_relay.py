"""``manage.py run_relay``: moves events from the outbox to the broker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.core.management.base import CommandError, CommandParser

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.management.base import (
    FAILED,
    OK,
    USAGE,
    BrokerCommand,
    at_least,
    on_stop_signals,
)
from domain_event_broker.django.management.watching import add_ports, is_watched, relay_monitor, watched
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.terminal import Progress
from domain_event_broker.observer import NOBODY
from domain_event_broker.relay import Relay, RelayReport

#: Events behind parked ones are counted no further than this.
BEHIND_LIMIT = 10_000


class Command(BrokerCommand):
    """Runs a relay until it is stopped, or until there is nothing left to do."""

    help = (
        "Send the events of the outbox to the broker. Run one or more of these beside your web "
        "processes; several share the work, and events of one domain_object_id keep their order. "
        "SIGTERM or Ctrl-C finishes the batch at hand and stops."
    )
    examples = (
        ("relay until it is stopped: what a service runs", "run_relay"),
        ("send all that waits, for example before a migration", "run_relay --drain"),
        ("send what is due now, from cron", "run_relay --once"),
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--once", action="store_true", help="send what is due now, then exit")
        mode.add_argument(
            "--drain",
            action="store_true",
            help="send until the outbox is empty, with a progress bar, then exit",
        )
        parser.add_argument("--database", help="alias of the database with the outbox")
        parser.add_argument("--batch-size", type=at_least(1), help="events sent at once (default: 500)")
        add_ports(parser)

    def run(self, **options: Any) -> int:
        """Run the relay."""
        if is_watched(options) and (options["once"] or options["drain"]):
            raise CommandError(
                "--metrics-port and --health-port are for a relay that goes on: leave --once or --drain out",
                returncode=USAGE,
            )
        settings = self._settings(options)
        outbox = DjangoRelayOutbox(settings.outbox.database, settings.outbox)
        if options["drain"]:
            return self._drain(settings, outbox)
        if options["once"]:
            relay = Relay(outbox, settings)
            on_stop_signals(relay.stop)
            return self._summary(relay.run_once(), outbox)
        monitor = relay_monitor(options, settings, outbox.alias) if is_watched(options) else None
        relay = Relay(outbox, settings, observer=monitor.observer if monitor else NOBODY)
        on_stop_signals(relay.stop)
        self.stdout.write(f"Relaying to {settings.masked_url}. Ctrl-C stops.")
        with watched(monitor, self.stdout):
            relay.run()
        return self._summary(relay.report)

    def _settings(self, options: dict[str, Any]) -> BrokerSettings:
        settings = self.settings()
        given = {
            name: options[option]
            for name, option in (("database", "database"), ("batch_size", "batch_size"))
            if options[option] is not None
        }
        return replace(settings, outbox=replace(settings.outbox, **given))

    def _drain(self, settings: BrokerSettings, outbox: DjangoRelayOutbox) -> int:
        waiting = outbox.pending(limit=10_000_000)
        relay = Relay(outbox, settings, on_batch=lambda report: progress.update(report.total))
        on_stop_signals(relay.stop)
        progress = Progress(self.stdout, "relayed", waiting)
        try:
            relay.drain()
        finally:
            progress.finish(relay.report.total)
        return self._summary(relay.report, outbox)

    def _summary(self, report: RelayReport, outbox: DjangoRelayOutbox | None = None) -> int:
        """Write what was done and what is left, and return the exit code.

        :param outbox: asked for what is left; ``None``: the relay was stopped, much may be.
        """
        waiting = outbox.pending(limit=1) if outbox else 0
        behind = outbox.behind_parked(BEHIND_LIMIT) if outbox else 0
        parts = [f"{report.sent:,} sent"]
        parts += [f"{report.unroutable:,} that nobody subscribes to"] if report.unroutable else []
        parts += [f"{report.refused:,} refusals, to be tried again"] if report.refused else []
        parts += [f"{report.parked:,} parked"] if report.parked else []
        left = ["some events are still waiting"] if waiting else []
        left += [f"{_capped(behind)} wait behind parked events of their key"] if behind else []
        self.stdout.write("; ".join([", ".join(parts), *left]) + ".")
        # A relay that was stopped has tried again most of what was refused once.
        failed = left or report.parked or (report.refused and outbox is not None)
        return FAILED if failed else OK


def _capped(count: int) -> str:
    return f"{count:,}" if count < BEHIND_LIMIT else f"{count:,} or more"
