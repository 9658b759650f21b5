"""``manage.py replay_dlq``: puts dead letters back to work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from itertools import count
from typing import Any

from django.core.management.base import CommandError, CommandParser

from domain_event_broker import redaction
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.management.base import (
    FAILED,
    OK,
    USAGE,
    BrokerCommand,
    at_least,
    until_stopped,
)
from domain_event_broker.django.terminal import Progress
from domain_event_broker.errors import HandlerError
from domain_event_broker.failures import History
from domain_event_broker.masking import one_line
from domain_event_broker.ports import DeadLetter, DeadLetters, Decision
from domain_event_broker.replay import (
    MAX_REPLAYS,
    LetterFilter,
    browse,
    event_id_of,
    identity_of,
    is_looping,
    replay,
)
from domain_event_broker.routing import check_binding_key
from domain_event_broker.transports import open_transport

_ANSWERS = {"r": Decision.RETRY, "d": Decision.DISCARD, "": Decision.LEAVE, "l": Decision.LEAVE}


class Command(BrokerCommand):
    """Replays, discards or shows the dead letters of handlers."""

    help = (
        "Put events from the dead letters of handlers back into their queues: only the handler that "
        "failed sees them again, and its retries start anew. Each event is stored in the queue before it "
        "leaves the dead letters. Use --dry-run to look, and --interactive to decide one by one. "
        "Ctrl-C stops: what was not replayed by then stays where it was."
    )
    examples = (
        ("see what is there, and why", "replay_dlq billing-charge --dry-run"),
        ("put all of it back to work", "replay_dlq billing-charge"),
        ("what one exception brought there", "replay_dlq billing-charge --error ServiceDown"),
        (
            "the oldest ten of some kinds",
            "replay_dlq billing-charge --routing-key 'order.*' --limit 10",
        ),
        ("decide one by one", "replay_dlq billing-charge --interactive"),
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("queues", nargs="*", metavar="QUEUE", help="names of handlers")
        parser.add_argument("--all", action="store_true", help="all handlers of the project")
        parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most N events of each handler")
        parser.add_argument(
            "--event", action="append", default=[], metavar="UUID", help="only this event; repeatable"
        )
        parser.add_argument(
            "--routing-key", metavar="PATTERN", help="only events that match, such as 'order.*' or 'order.#'"
        )
        parser.add_argument(
            "--error", metavar="NAME", help="only events with this exception, such as ServiceDown, or reason"
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--interactive", action="store_true", help="ask for each event")
        how.add_argument("--dry-run", action="store_true", help="show the events and change nothing")
        parser.add_argument(
            "--discard", action="store_true", help="delete the events instead of replaying them"
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help=f"replay also events that came back from {MAX_REPLAYS} replays, which are left otherwise",
        )

    def run(self, **options: Any) -> int:
        """Replay."""
        accept = _filter(options)
        queues, code = self._queues(options), OK
        if options["dry_run"] or options["interactive"]:
            look = self._dry_run if options["dry_run"] else self._interactive
            return max((look(queue, accept, options) for queue in queues), default=OK)
        with until_stopped() as stopped:
            for queue in queues:
                code = max(code, self._batch(queue, accept, options, stopped.is_set))
                if stopped.is_set():
                    self.stdout.write("Stopped. What was not replayed or discarded is where it was.")
                    return FAILED
        return code

    def _queues(self, options: dict[str, Any]) -> list[str]:
        if bool(options["queues"]) == options["all"]:
            raise CommandError("name one or more handlers, or use --all", returncode=USAGE)
        if options["all"]:
            return [handler.name for handler in discover().all()]
        return list(dict.fromkeys(options["queues"]))

    def _dry_run(self, queue: str, accept: LetterFilter, options: dict[str, Any]) -> int:
        with self._letters(queue) as letters:
            found = browse(letters, accept, options["limit"])
            total = letters.count()
        for letter in found:
            self._show(letter)
        verb, guarded = ("discard", False) if options["discard"] else ("replay", not options["force"])
        looping = sum(guarded and is_looping(letter) for letter in found)
        self.stdout.write(f"{queue}: would {verb} {len(found) - looping:,} of {total:,}")
        return self._tell_of_loops(queue, looping)

    def _batch(
        self, queue: str, accept: LetterFilter, options: dict[str, Any], stop: Callable[[], bool]
    ) -> int:
        """Treat the dead letters of one handler; return the exit code."""
        decision = Decision.DISCARD if options["discard"] else Decision.RETRY
        verb, limit = "discarded" if options["discard"] else "replayed", options["limit"]
        with self._letters(queue) as letters:
            total = letters.count()
            progress = Progress(self.stdout, f"{queue}: {verb}", min(total, limit or sys.maxsize))
            chosen = count(1)
            done = 0
            try:
                report = replay(
                    letters,
                    accept,
                    decision,
                    limit,
                    lambda letter: progress.update(next(chosen)),
                    None if options["force"] else MAX_REPLAYS,
                    stop,
                )
                done = report.replayed + report.discarded
            finally:
                progress.finish(done)
            left = letters.count()
        if total or done:
            self.stdout.write(f"{queue}: {done:,} {verb}, {left:,} left")
        else:
            self.stdout.write(f"{queue}: no dead letters")
        return self._tell_of_loops(queue, report.looping)

    def _tell_of_loops(self, queue: str, looping: int) -> int:
        if not looping:
            return OK
        self.stdout.write(
            self.style.WARNING(
                f"{queue}: {looping:,} left, because they came back from {MAX_REPLAYS} replays; mend the "
                "handler and use replay_dlq --force, decide with --interactive, or --discard them"
            )
        )
        return FAILED

    def _interactive(self, queue: str, accept: LetterFilter, options: dict[str, Any]) -> int:
        """Ask first, act afterwards: nothing is held in the broker while somebody thinks."""
        with self._letters(queue) as letters:
            found = browse(letters, accept, options["limit"])
        # A list for each: an event can be there twice, and each of the two gets its own answer.
        decisions: dict[str, list[Decision]] = {}
        for number, letter in enumerate(found, 1):
            self.stdout.write(f"\n{queue}, {number} of {len(found)}")
            self._show(letter)
            answer = self._ask()
            if answer is None:
                break
            decisions.setdefault(identity_of(letter), []).append(answer)
        with until_stopped(), self._letters(queue) as letters:  # what was answered is carried out
            report = letters.sift(lambda letter: _next_answer(decisions, letter))
        self.stdout.write(
            f"{queue}: {report.replayed:,} replayed, {report.discarded:,} discarded, {report.left:,} left"
        )
        return OK

    @contextmanager
    def _letters(self, queue: str) -> Iterator[DeadLetters]:
        transport = open_transport(self.settings())
        try:
            if not transport.stats([queue])[queue].exists:
                known = ", ".join(handler.name for handler in discover().all()) or "none"
                raise CommandError(f"there is no queue {queue!r}; handlers of this project: {known}")
            yield transport.dead_letters(queue)
        finally:
            transport.close()

    def _ask(self) -> Decision | None:
        while True:
            try:
                answer = input("[r]eplay, [d]iscard, [l]eave (default), [q]uit? ").strip().lower()[:1]
            except EOFError:
                return None
            except KeyboardInterrupt:
                raise CommandError(
                    "stopped; nothing of this handler was changed", returncode=FAILED
                ) from None
            if answer == "q":
                return None
            if answer in _ANSWERS:
                return _ANSWERS[answer]

    def _show(self, letter: DeadLetter) -> None:
        # Others wrote all of this: none of it may steer the terminal.
        self.stdout.write(one_line(f"{letter.routing_key}  {event_id_of(letter)}"))
        if letter.failure:
            failure = letter.failure
            text = f"{failure.reason}: {failure.error_type} {failure.message} (attempt {failure.attempts})"
            self.stdout.write("  " + one_line(text))
        if letter.replays:
            self.stdout.write("  " + one_line(_history(letter)))
        body = one_line(redaction.shown(letter.body, letter.headers))
        self.stdout.write(f"  {body if len(body) <= 200 else body[:197] + '...'}")


def _history(letter: DeadLetter) -> str:
    """Return what there was before the last replay, in one line."""
    past = History.from_headers(letter.headers)
    first = ""
    if past.first_error:
        with suppress(ValueError, OverflowError, OSError):  # anybody can write a number into a header
            at = datetime.fromtimestamp(past.first_failed_at, timezone.utc)
            first = f", first failed {at:%Y-%m-%d %H:%M} UTC with {past.first_error}"
    return f"replayed {letter.replays} times, {past.attempts} attempts before{first}"


def _next_answer(decisions: dict[str, list[Decision]], letter: DeadLetter) -> Decision:
    """Return what was decided for a letter; one that nobody was asked about stays."""
    answers = decisions.get(identity_of(letter))
    return answers.pop(0) if answers else Decision.LEAVE


def _filter(options: dict[str, Any]) -> LetterFilter:
    pattern = options["routing_key"]
    if pattern is not None:
        try:
            check_binding_key(pattern)
        except HandlerError as error:
            raise CommandError(f"--routing-key: {error}", returncode=USAGE) from error
    return LetterFilter(frozenset(options["event"]), pattern, error_type=options.get("error"))
