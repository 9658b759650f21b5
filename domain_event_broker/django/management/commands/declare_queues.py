"""``manage.py declare_queues``: makes the queues of the handlers, before any of them runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from django.core.management.base import CommandError, CommandParser

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.known_queues import KnownQueues
from domain_event_broker.django.management.base import FAILED, OK, USAGE, BrokerCommand
from domain_event_broker.django.status import leftovers
from domain_event_broker.errors import QueueMismatch
from domain_event_broker.ports import Migrating, Pruning, Subscription, Transport
from domain_event_broker.subscriber import subscription_of
from domain_event_broker.transports import declare_all, open_transport


class Command(BrokerCommand):
    """Declares, checks or migrates queues."""

    help = (
        "Make the queues of the handlers and bind them, so that events published from now on wait for "
        "handlers that are not started yet. Run it with each deploy, before the new code publishes."
    )
    examples = (
        ("with each deploy", "declare_queues"),
        ("see what it would do", "declare_queues --check"),
        ("take away what no handler asks for any more", "declare_queues --prune"),
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
        how.add_argument(
            "--prune",
            action="store_true",
            help="take away bindings that no handler asks for any more; queues keep their events",
        )
        parser.add_argument("--yes", action="store_true", help="with --prune: do not ask")

    def run(self, **options: Any) -> int:
        """Declare, check, migrate or prune."""
        handlers = discover().select(options["names"])
        settings = self.settings()
        subscriptions = [subscription_of(handler, settings.subscriber) for handler in handlers]
        surplus = self._surplus(settings, {each.name for each in handlers} if options["names"] else None)
        transport = open_transport(settings)
        try:
            if options["prune"]:
                return self._prune(transport, KnownQueues(settings), surplus, ask=not options["yes"])
            if options["check"]:
                code = self._check(transport, subscriptions)
            else:
                KnownQueues(settings).remember(subscriptions)
                code = (self._migrate if options["migrate"] else self._declare)(transport, subscriptions)
        finally:
            transport.close()
        for name, keys in surplus.items():
            self.stdout.write(f"{name}: still bound with {_listed(keys)}; --prune takes that away")
        return code

    def _surplus(self, settings: BrokerSettings, names: set[str] | None) -> dict[str, tuple[str, ...]]:
        """Return the bindings that no handler asks for, of these handlers or of all that ever were."""
        left = leftovers(settings, discover().all())
        found = {**left.keys, **{name: keys for name, keys in left.handlers.items() if keys}}
        return {name: keys for name, keys in found.items() if names is None or name in names}

    def _declare(self, transport: Transport, subscriptions: list[Subscription]) -> int:
        declare_all(transport, subscriptions)
        for subscription in subscriptions:
            self.stdout.write(f"{subscription.name}: ready")
        return OK

    def _prune(
        self, transport: Transport, known: KnownQueues, surplus: dict[str, tuple[str, ...]], ask: bool
    ) -> int:
        if not surplus:
            self.stdout.write("no binding is left over")
            return OK
        for name, keys in surplus.items():
            self.stdout.write(f"{name}: bound with {_listed(keys)}, which no handler asks for")
        if ask and not self._confirmed():
            return FAILED
        for name, keys in surplus.items():
            # In this order: killed in between, the next run takes them away once more.
            if hasattr(transport, "unbind"):
                cast(Pruning, transport).unbind(name, keys)
            known.forget(name, keys)
            self.stdout.write(f"{name}: no longer bound with {_listed(keys)}; its events stay")
        return OK

    def _confirmed(self) -> bool:
        question = (
            "Events with these keys will no longer reach these queues. No process of an earlier release "
        )
        try:
            return input(f"{question}needs them? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            raise CommandError("nobody answers; use --yes", returncode=USAGE) from None

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


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))
