"""``manage.py replay_domain_event``: the older library's way to call ``replay_dlq``."""

from __future__ import annotations

from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandParser

from domain_event_broker.django.management.base import OK, BrokerCommand


class Command(BrokerCommand):
    """Replays the oldest dead letter of the named handlers, or all of them."""

    help = "Replay the oldest dead letter of a handler, or all with --all. 'replay_dlq' can do more."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("queues", nargs="+", metavar="QUEUE", help="names of handlers")
        parser.add_argument("--all", action="store_true", help="all dead letters, not only the oldest")
        parser.add_argument("--interactive", action="store_true", help="ask for each event")

    def run(self, **options: Any) -> int:
        """Replay."""
        call_command(
            "replay_dlq",
            *options["queues"],
            limit=None if options["all"] else 1,
            interactive=options["interactive"],
            stdout=self.stdout,
            stderr=self.stderr,
        )
        return OK
