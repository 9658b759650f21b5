"""``manage.py run_subscriber``: runs the handlers of the project."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.core.management.base import CommandParser
from django.utils import autoreload

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.known_queues import KnownQueues
from domain_event_broker.django.management.base import OK, BrokerCommand, at_least, on_stop_signals
from domain_event_broker.django.processes import supervise
from domain_event_broker.django.terminal import table
from domain_event_broker.handlers import Handler, describe
from domain_event_broker.subscriber import Consumer, subscription_of
from domain_event_broker.telemetry.tracing import flush

#: Seconds between two looks of a child process at whether its parent still lives.
ORPHAN_CHECK_SECONDS = 1.0


class Command(BrokerCommand):
    """Runs handlers until it is stopped."""

    help = (
        "Run the handlers that the 'subscribers' modules of the installed apps declare with @subscribe. "
        "Without names all of them run, beside each other. SIGTERM or Ctrl-C finishes what is running "
        "and stops; a second one stops at once, and the events come back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="handlers to run (default: all)")
        parser.add_argument("--list", action="store_true", help="show the handlers and exit")
        parser.add_argument(
            "--concurrency",
            type=at_least(1),
            metavar="N",
            help="events that a handler works on at once, unless it says so itself (default: 1, in order)",
        )
        parser.add_argument(
            "--processes",
            type=at_least(1),
            default=1,
            metavar="N",
            help="processes to run, for more than one core",
        )
        parser.add_argument(
            "--grace",
            type=float,
            metavar="S",
            help="seconds that running handlers get when stopped (default: 30)",
        )
        parser.add_argument(
            "--reload", action="store_true", help="start anew when code changes, for development"
        )

    def run(self, **options: Any) -> int:
        """Run the handlers."""
        handlers = discover().select(options["names"])
        if options["list"]:
            self._list(handlers)
            return OK
        settings = self._settings(options)
        if options["reload"]:
            autoreload.run_with_reloader(self._consume, handlers, settings, reloading=True)
        elif options["processes"] > 1:
            parent = os.getpid()
            return supervise(lambda: self._consume(handlers, settings, parent=parent), options["processes"])
        else:
            self._consume(handlers, settings)
        return OK

    def _settings(self, options: dict[str, Any]) -> BrokerSettings:
        settings = self.settings()
        given: dict[str, Any] = {}
        if options["concurrency"] is not None:
            given["concurrency"] = options["concurrency"]
        if options["grace"] is not None:
            given["grace_seconds"] = max(0.0, options["grace"])
        return replace(settings, subscriber=replace(settings.subscriber, **given))

    def _consume(
        self,
        handlers: Sequence[Handler],
        settings: BrokerSettings,
        parent: int | None = None,
        reloading: bool = False,
    ) -> None:
        KnownQueues(settings).remember(subscription_of(each, settings.subscriber) for each in handlers)
        consumer = Consumer(handlers, settings)
        if not reloading:  # the reloader has signals of its own, and runs this in a thread
            on_stop_signals(consumer.stop)
        if parent is not None:
            _stop_as_orphan(consumer, parent)
        names = ", ".join(handler.name for handler in handlers)
        self.stdout.write(f"Handling events from {settings.masked_url} with {names}. Ctrl-C stops.")
        self.stdout.flush()  # a log file would have it when the process ends
        try:
            consumer.run()
        finally:
            flush(settings)  # a process of several ends without a word to whoever set up the exporter

    def _list(self, handlers: Sequence[Handler]) -> None:
        if not handlers:
            self.stdout.write(
                "No handlers: declare one with @subscribe in the subscribers.py of an installed app."
            )
            return
        rows = [(each.name, ", ".join(each.binding_keys), describe(each.call)) for each in handlers]
        self.stdout.write(table(("HANDLER", "EVENTS", "FUNCTION"), rows))


def _stop_as_orphan(consumer: Consumer, parent: int) -> None:
    """Stop when the parent process is gone: nobody would stop this one any more."""

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(ORPHAN_CHECK_SECONDS)
        consumer.stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
