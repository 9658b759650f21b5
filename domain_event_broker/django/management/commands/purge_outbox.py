"""``manage.py purge_outbox``: forgets what was sent and handled long ago."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import CommandParser
from django.db import Error

from domain_event_broker.config import OutboxSettings, SubscriberSettings
from domain_event_broker.django.conf import known_alias, outbox_alias
from domain_event_broker.django.database import unavailable
from domain_event_broker.django.management.base import OK, BrokerCommand, at_least
from domain_event_broker.django.retention import count_old, purge
from domain_event_broker.django.terminal import Progress

#: What the tables hold, in the words of users.
NAMES = {"archive": "sent events", "inbox": "handled events"}


class Command(BrokerCommand):
    """Deletes old rows of the archive and the inbox."""

    help = (
        "Delete sent events, and the memory of handled ones, that are older than so many days. "
        "Events that wait, are scheduled or parked are never deleted. A running relay does the same "
        "by itself, a little at a time."
    )
    examples = (
        ("see what would go", "purge_outbox --dry-run"),
        ("keep sent events of three days", "purge_outbox --archive-days 3"),
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        outbox, subscriber = OutboxSettings().archive_days, SubscriberSettings().inbox_days
        parser.add_argument(
            "--archive-days", type=at_least(0), help=f"setting OUTBOX.ARCHIVE_DAYS, default {outbox}"
        )
        parser.add_argument(
            "--inbox-days", type=at_least(0), help=f"setting SUBSCRIBER.INBOX_DAYS, default {subscriber}"
        )
        parser.add_argument("--database", help="alias of the database with the outbox")
        parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")

    def run(self, **options: Any) -> int:
        """Delete old rows, in batches, with a progress bar."""
        settings = self.settings()
        archive_days, inbox_days = options["archive_days"], options["inbox_days"]
        days = (
            settings.outbox.archive_days if archive_days is None else archive_days,
            settings.subscriber.inbox_days if inbox_days is None else inbox_days,
        )
        alias = known_alias(options["database"] or outbox_alias())
        try:
            return self._count(alias, *days) if options["dry_run"] else self._purge(alias, *days)
        except Error as error:
            raise unavailable(alias, error) from error

    def _count(self, alias: str, archive_days: int, inbox_days: int) -> int:
        for each in count_old(alias, archive_days, inbox_days):
            self.stdout.write(f"{each.rows:,} {NAMES[each.table]} would be deleted.")
        return OK

    def _purge(self, alias: str, archive_days: int, inbox_days: int) -> int:
        total = sum(each.rows for each in count_old(alias, archive_days, inbox_days))
        progress = Progress(self.stdout, "deleted", total)
        done: Counter[str] = Counter()
        try:
            for each in purge(alias, archive_days, inbox_days):
                done[each.table] += each.rows
                progress.update(done.total())
        finally:
            progress.finish(done.total())
            for table, name in NAMES.items():
                self.stdout.write(f"{done[table]:,} {name} deleted.")
        return OK
