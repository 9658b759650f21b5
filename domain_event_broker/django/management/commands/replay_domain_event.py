"""``manage.py replay_domain_event``: the older library's name of ``replay_dlq``."""

from __future__ import annotations

from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandParser

from domain_event_broker.django.management.base import OK, BrokerCommand


class Command(BrokerCommand):
    """Replays all dead letters of the named handlers."""

    help = "Replay all dead letters of a handler; the same as 'replay_dlq NAME', which can do more."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("names", nargs="+", metavar="NAME", help="names of handlers")

    def run(self, **options: Any) -> int:
        """Replay."""
        call_command("replay_dlq", *options["names"], stdout=self.stdout, stderr=self.stderr)
        return OK
