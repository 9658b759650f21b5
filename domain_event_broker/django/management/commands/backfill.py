"""``manage.py backfill``: sent events once more, for one handler."""

from __future__ import annotations

import getpass
import sys
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from domain_event_broker.django import backfill
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.conf import known_alias, outbox_alias
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.management.base import FAILED, OK, USAGE, BrokerCommand, until_stopped
from domain_event_broker.django.terminal import Progress
from domain_event_broker.transports import open_transport

#: Options that say which events a new back-fill is for, and how it goes.
_OF_A_NEW_ONE = ("dry_run", "force", "key", "since", "until", "object_id", "correlation_id")
#: Years that any database and time zone can do.
_YEARS = range(1970, 9000)


class Command(BrokerCommand):
    """Puts sent events into the queue of one handler."""

    help = (
        "Put events that were sent, and are still in the archive, into the queue of one handler: for a new "
        "handler that needs what happened before it. No other handler sees them. They go in the order in "
        "which they were sent. Killed or stopped, --resume goes on. The inbox skips events for which the "
        "handler took effect before, unless --force."
    )
    examples = (
        ("see how many there are", "backfill shipping-audit --dry-run"),
        ("send them, with the keys that the handler is bound with", "backfill shipping-audit"),
        ("some of them", "backfill shipping-audit --key 'order.*' --since 2026-11-01 --until 2026-11-08"),
        ("go on with one that was stopped", "backfill shipping-audit --resume"),
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("handler", nargs="*", metavar="HANDLER", help="name of the handler")
        parser.add_argument(
            "--key",
            action="append",
            default=[],
            metavar="PATTERN",
            help="events that match, such as 'order.*'; repeatable (default: what the handler is bound with)",
        )
        parser.add_argument("--since", metavar="TIME", help="sent at this time or later, such as 2026-11-01")
        parser.add_argument("--until", metavar="TIME", help="sent before this time, such as 2026-11-01T12:30")
        parser.add_argument("--object-id", default="", metavar="ID", help="events of this domain_object_id")
        parser.add_argument("--correlation-id", default="", metavar="ID", help="events of this story")
        parser.add_argument("--dry-run", action="store_true", help="count the events and change nothing")
        parser.add_argument(
            "--force",
            action="store_true",
            help="let the inbox forget these events, so that the handler takes effect for all of them anew",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--resume", action="store_true", help="go on with the unfinished one of the handler")
        how.add_argument("--give-up", action="store_true", help="let the unfinished one end where it is")
        how.add_argument("--list", action="store_true", help="show what is unfinished and exit")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--database", help="alias of the database with the outbox")

    def run(self, **options: Any) -> int:
        """Begin a back-fill, or go on with one."""
        _check_alone(options)
        alias = known_alias(options["database"] or outbox_alias())
        if options["list"]:
            return self._list(alias)
        handler = self._handler(options)
        open_ones = backfill.unfinished(alias, handler)
        if options["give_up"]:
            return self._give_up(handler, open_ones)
        if options["resume"]:
            if not open_ones:
                raise CommandError(f"no back-fill of {handler!r} is unfinished", returncode=USAGE)
            return self._go_on(open_ones[0])
        return self._begin(alias, handler, open_ones, options)

    def _handler(self, options: dict[str, Any]) -> str:
        if len(options["handler"]) != 1:
            raise CommandError("name one handler, or use --list", returncode=USAGE)
        return str(options["handler"][0])

    def _list(self, alias: str) -> int:
        found = backfill.unfinished(alias)
        for each in found:
            self.stdout.write(_described(each))
        if not found:
            self.stdout.write("no back-fill is unfinished")
        return OK

    def _give_up(self, handler: str, open_ones: list[Backfill]) -> int:
        for each in open_ones:
            backfill.give_up(each)
            self.stdout.write(f"{_described(each)}: given up; what was sent stays in the queue")
        if not open_ones:
            self.stdout.write(f"no back-fill of {handler!r} is unfinished")
        return OK

    def _begin(self, alias: str, handler: str, open_ones: list[Backfill], options: dict[str, Any]) -> int:
        chosen = backfill.Chosen(
            self._keys(handler, options["key"]),
            _moment("--since", options["since"]),
            _moment("--until", options["until"]),
            options["object_id"],
            options["correlation_id"],
        )
        self._check_queue(handler)
        total = backfill.count(alias, chosen).events
        keys = ", ".join(chosen.binding_keys)
        if options["dry_run"]:
            self.stdout.write(f"{handler}: would get {total:,} sent events ({keys})")
            return OK
        if open_ones:
            raise CommandError(
                f"unfinished: {_described(open_ones[0])}. Use --resume to go on with it, or --give-up first",
                returncode=FAILED,
            )
        if not total:
            self.stdout.write(f"{handler}: no sent event matches ({keys}); the archive keeps ARCHIVE_DAYS")
            return OK
        if not options["yes"] and not self._confirmed(handler, total, options["force"]):
            return FAILED
        begun = backfill.begin(
            alias, handler, chosen, force=options["force"], expected=total, by=f"{_user()} in a terminal"
        )
        return self._go_on(begun)

    def _keys(self, handler: str, given: list[str]) -> tuple[str, ...]:
        if given:
            return tuple(dict.fromkeys(given))
        known = {each.name: each for each in discover().all()}
        if handler not in known:
            names = ", ".join(known) or "none"
            raise CommandError(
                f"{handler!r} is no handler of this project (known: {names}); for one of another program "
                "say which events it needs with --key",
                returncode=USAGE,
            )
        return known[handler].binding_keys

    def _check_queue(self, handler: str) -> None:
        transport = open_transport(self.settings())
        try:
            if not transport.stats([handler])[handler].exists:
                raise CommandError(
                    f"there is no queue {handler!r}: run 'manage.py declare_queues' first, so that it gets "
                    "what is sent from then on, and wait a minute for what is on its way",
                    returncode=FAILED,
                )
        finally:
            transport.close()

    def _confirmed(self, handler: str, total: int, force: bool) -> bool:
        anew = " anew, also those that it took effect for before" if force else ""
        try:
            answer = input(f"Put {total:,} sent events into the queue of {handler}{anew}? [y/N] ")
        except EOFError:
            raise CommandError("nobody answers; use --yes", returncode=USAGE) from None
        return answer.strip().lower() in ("y", "yes")

    def _go_on(self, run: Backfill) -> int:
        before = run.sent
        with until_stopped() as stopped:
            progress = Progress(self.stdout, f"{run.handler}: sent", run.expected)
            try:
                done = backfill.go_on(run, self.settings(), stopped.is_set, progress.update)
            finally:
                progress.finish(run.sent)
        sent = f"{run.handler}: {run.sent - before:,} sent now, {run.sent:,} in all"
        if done:
            self.stdout.write(f"{sent}; done")
            return OK
        why = "stopped" if stopped.is_set() else "another process goes on with it, or it was given up"
        self.stdout.write(f"{sent}; {why}. 'backfill {run.handler} --resume' goes on")
        return FAILED


def _check_alone(options: dict[str, Any]) -> None:
    """Refuse what would be passed over in silence."""
    how = [name for name in ("resume", "give_up", "list") if options[name]]
    given = [name for name in _OF_A_NEW_ONE if options[name]]
    if how and given:
        option, other = (f"--{name.replace('_', '-')}" for name in (given[0], how[0]))
        raise CommandError(f"{option} is for a new back-fill, not for {other}", returncode=USAGE)


def _described(run: Backfill) -> str:
    return (
        f"{run.handler}: {run.sent:,} of {run.expected:,} sent, begun {run.begun_at:%Y-%m-%d %H:%M} "
        f"by {run.begun_by}"
    )


def _moment(option: str, text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = parse_datetime(text)
        day = None if moment else parse_date(text)
    except ValueError:
        moment = day = None
    if day is not None:
        moment = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - made aware right below
    if moment is None or moment.year not in _YEARS:
        raise CommandError(
            f"{option} {text!r} is no time; write one like 2026-11-01 or 2026-11-01T12:30", returncode=USAGE
        )
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may know no name for its user
        return f"user of {sys.executable}"
