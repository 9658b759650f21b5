"""``manage.py run_subscriber``: runs the handlers of the project."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from django.core.management.base import CommandParser
from django.utils import autoreload

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.known_queues import KnownQueues
from domain_event_broker.django.management.base import (
    LEFT_BEHIND,
    OK,
    BrokerCommand,
    at_least,
    on_stop_signals,
)
from domain_event_broker.django.management.leaving import LEAVE_SECONDS, leave_within
from domain_event_broker.django.management.watching import (
    add_ports,
    announce,
    is_watched,
    subscriber_monitor,
    watched,
)
from domain_event_broker.django.processes import supervise
from domain_event_broker.django.terminal import table
from domain_event_broker.handlers import Handler, describe
from domain_event_broker.monitoring.monitor import SubscriberMonitor
from domain_event_broker.observer import NOBODY, Observer
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

    #: When it was told to stop, by the monotonic clock.
    _stopped_at: float | None = None

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
        add_ports(parser)

    def run(self, **options: Any) -> int:
        """Run the handlers."""
        handlers = discover().select(options["names"])
        if options["list"]:
            self._list(handlers)
            return OK
        settings = self._settings(options)
        if options["reload"]:
            autoreload.run_with_reloader(self._run_alone, handlers, settings, options)
        elif options["processes"] > 1:
            return self._run_several(handlers, settings, options)
        else:
            self._run_alone(handlers, settings, options)
        return OK

    def _run_alone(
        self, handlers: Sequence[Handler], settings: BrokerSettings, options: dict[str, Any]
    ) -> None:
        monitor = _monitor(handlers, settings, options, 1)
        try:
            with watched(monitor, self.stdout):
                observer = monitor.observer() if monitor else NOBODY
                # The reloader has signals of its own, and runs this in a thread.
                self._consume(handlers, settings, observer, with_signals=not options["reload"])
        finally:
            # Whoever calls this from a program goes on with it; manage.py has nothing more to do.
            if getattr(self, "_called_from_command_line", False) and not options["reload"]:
                leave_within(self._time_to_leave(settings.subscriber.grace_seconds), LEFT_BEHIND)

    def _time_to_leave(self, grace: float) -> float:
        """Return how long threads of handlers may keep the process: what is left of the grace, in seconds."""
        now = time.monotonic()
        began = now if self._stopped_at is None else self._stopped_at
        return max(LEAVE_SECONDS, grace - (now - began))

    def _run_several(
        self, handlers: Sequence[Handler], settings: BrokerSettings, options: dict[str, Any]
    ) -> int:
        """Run several subscribers, and beside them a process that shows them, if somebody wants to see.

        That is not this one: it forks, which goes wrong where there are threads.
        """
        processes, parent = options["processes"], os.getpid()
        monitor = _monitor(handlers, settings, options, processes)

        def consume(number: int) -> None:
            observer = NOBODY
            if monitor is not None:
                monitor.close()
                observer = monitor.observer(number)
            self._consume(handlers, settings, observer, parent)

        works: list[Callable[[], None]] = [partial(consume, number) for number in range(processes)]
        if monitor is None:
            return supervise(works)
        announce(monitor, self.stdout)
        return supervise(
            [*works, partial(_show, monitor, parent)],
            lambda number: monitor.died(number) if number < processes else None,
            companions=1,  # a scrape is answered for as long as a handler has time to finish
        )

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
        observer: Observer,
        parent: int | None = None,
        with_signals: bool = True,
    ) -> None:
        KnownQueues(settings).remember(subscription_of(each, settings.subscriber) for each in handlers)
        consumer = Consumer(handlers, settings, observer=observer)
        if with_signals:
            on_stop_signals(partial(self._stop, consumer))
        if parent is not None:
            _as_orphan(consumer.stop, parent)
        names = ", ".join(handler.name for handler in handlers)
        self.stdout.write(f"Handling events from {settings.masked_url} with {names}. Ctrl-C stops.")
        self.stdout.flush()  # a log file would have it when the process ends
        try:
            consumer.run()
        finally:
            flush(settings)  # a process of several ends without a word to whoever set up the exporter

    def _stop(self, consumer: Consumer) -> None:
        self._stopped_at = time.monotonic()
        consumer.stop()

    def _list(self, handlers: Sequence[Handler]) -> None:
        if not handlers:
            self.stdout.write(
                "No handlers: declare one with @subscribe in the subscribers.py of an installed app."
            )
            return
        rows = [(each.name, ", ".join(each.binding_keys), describe(each.call)) for each in handlers]
        self.stdout.write(table(("HANDLER", "EVENTS", "FUNCTION"), rows))


def _monitor(
    handlers: Sequence[Handler], settings: BrokerSettings, options: dict[str, Any], processes: int
) -> SubscriberMonitor | None:
    if not is_watched(options):
        return None
    return subscriber_monitor(options, settings, [each.name for each in handlers], processes)


def _show(monitor: SubscriberMonitor, parent: int) -> None:
    """Answer requests for as long as the parent process lives."""
    gone = threading.Event()
    monitor.start()
    _as_orphan(gone.set, parent)
    gone.wait()


def _as_orphan(stop: Callable[[], None], parent: int) -> None:
    """Stop when the parent process is gone: nobody would stop this one any more."""

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(ORPHAN_CHECK_SECONDS)
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
