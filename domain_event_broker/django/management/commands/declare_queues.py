"""``manage.py declare_queues``: makes the queues of the handlers, before any of them runs."""

from __future__ import annotations

from typing import Any, cast

from django.core.management.base import CommandError, CommandParser

from domain_event_broker.django.discovery import discover
from domain_event_broker.django.management.base import FAILED, OK, USAGE, BrokerCommand
from domain_event_broker.errors import QueueMismatch
from domain_event_broker.ports import Migrating, Subscription, Transport
from domain_event_broker.subscriber import subscription_of
from domain_event_broker.transports import open_transport


class Command(BrokerCommand):
    """Declares, checks or migrates queues."""

    help = (
        "Make the queues of the handlers and bind them, so that events published from now on wait for "
        "handlers that are not started yet. Run it with each deploy, before the new code publishes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="handlers (default: all)")
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--check", action="store_true", help="change nothing; exit 1 if something is to be done"
        )
        how.add_argument(
            "--migrate",
            action="store_true",
            help="rebuild queues that have other arguments, moving their events; stop subscribers first",
        )

    def run(self, **options: Any) -> int:
        """Declare, check or migrate."""
        handlers = discover().select(options["names"])
        settings = self.settings()
        subscriptions = [subscription_of(handler, settings.subscriber) for handler in handlers]
        transport = open_transport(settings)
        try:
            if options["check"]:
                return self._check(transport, subscriptions)
            if options["migrate"]:
                return self._migrate(transport, subscriptions)
            for subscription in subscriptions:
                transport.declare(subscription)
                self.stdout.write(f"{subscription.name}: ready")
        finally:
            transport.close()
        return OK

    def _check(self, transport: Transport, subscriptions: list[Subscription]) -> int:
        code = OK
        for subscription in subscriptions:
            try:
                findings = transport.check(subscription)
            except QueueMismatch as error:
                findings = [str(error)]
            for finding in findings or ["in place"]:
                self.stdout.write(f"{subscription.name}: {finding}")
            code = FAILED if findings else code
        return code

    def _migrate(self, transport: Transport, subscriptions: list[Subscription]) -> int:
        if not hasattr(transport, "migrate"):
            raise CommandError("this broker has no queue arguments that could differ", returncode=USAGE)
        for subscription in subscriptions:
            moved = cast(Migrating, transport).migrate(subscription)
            self.stdout.write(f"{subscription.name}: in shape, {moved} events moved")
        return OK
