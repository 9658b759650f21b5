"""``manage.py account``: what became of every event."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from domain_event_broker.django.terminal import table
from shop.account import Account, settled_account

HEADER = ("HANDLER", "PUBLISHED", "HANDLED", "WAITING", "PARKED", "DEAD-LETTERED", "LOST", "TWICE")


class Command(BaseCommand):
    """Draws up the account of all events; the exit code says whether it balances."""

    help = (
        "Show for every handler what became of the events it is bound to: "
        "published = handled + waiting + parked + dead-lettered. Exits with 1 if that does not balance."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--json", action="store_true", help="for programs")
        parser.add_argument(
            "--wait",
            type=float,
            default=5.0,
            metavar="S",
            help="seconds to wait until nothing moves (default: 5)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the account."""
        account = settled_account(options["wait"])
        self.stdout.write(json.dumps(account.as_json()) if options["json"] else self._text(account))
        if not account.balances:
            sys.exit(1)

    def _text(self, account: Account) -> str:
        rows = [
            (
                each.handler,
                each.published,
                each.handled,
                each.waiting,
                each.parked,
                each.dead,
                each.lost,
                each.twice,
            )
            for each in account.handlers
        ]
        totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
        return "\n".join(
            [
                table(HEADER, [*rows, ("all handlers", *totals)]),
                "",
                *self._dead_letters(account),
                *account.problems,
                f"{account.events} events. published = handled + waiting + parked + dead-lettered",
                self._sums(totals, account.balances),
            ]
        )

    def _dead_letters(self, account: Account) -> list[str]:
        return [
            f"{count} in the dead letters of {each.handler}: {reason}"
            for each in account.handlers
            for reason, count in each.reasons
        ]

    def _sums(self, totals: list[int], balances: bool) -> str:
        published, handled, waiting, parked, dead = totals[:5]
        sums = f"{published} = {handled} + {waiting} + {parked} + {dead}"
        if balances:
            return self.style.SUCCESS(f"{sums}: it balances, and no effect happened twice.")
        return self.style.ERROR(f"{sums}: it does NOT balance.")
