"""What the commands share: settings, exit codes, signals."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter
from django.core.management.color import no_style

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.terminal import may_colour
from domain_event_broker.errors import (
    BrokerUnavailable,
    ConfigurationError,
    DomainEventBrokerError,
    HandlerError,
    InboxUnavailable,
    OutboxUnavailable,
)

#: Exit codes: all is well; something failed or is left to do; called or configured wrongly;
#: a broker or a database is away, so that trying again later makes sense; stopped, but for a call
#: of a handler that nobody can end.
OK, FAILED, USAGE, AWAY, LEFT_BEHIND = 0, 1, 2, 3, 4

EXIT_CODES = (
    "Exit codes: 0 all is well, 1 something failed or is left to do, "
    "2 wrong arguments or settings, 3 the broker or the database is away (try again later), "
    "4 stopped, and a call that hung was left behind."
)


class _HelpFormatter(DjangoHelpFormatter):
    """Wraps paragraphs, and leaves lines that are indented as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if "\n" in part else super(_HelpFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


class BrokerCommand(BaseCommand):
    """A command whose errors of the library become one line and an exit code.

    Subclasses write :meth:`run` instead of ``handle``.
    """

    #: What ``--help`` shows: for each, what it is for, and the command line after ``manage.py``.
    examples: tuple[tuple[str, str], ...] = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Let ``--help`` end with examples and the exit codes."""
        epilog = "\n\n".join(part for part in (self._shown_examples(), EXIT_CODES) if part)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        return super().create_parser(prog_name, subcommand, epilog=epilog, **kwargs)

    def _shown_examples(self) -> str:
        lines = [f"  manage.py {line}\n      {purpose}" for purpose, line in self.examples]
        return "\n".join(["Examples:", *lines]) if lines else ""

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command, and turn what the library raises into an exit code."""
        if not options.get("force_color") and not may_colour(self.stdout):
            self.style = no_style()
            self.stderr.style_func = None
        try:
            code = self.run(**options)
        except (ConfigurationError, HandlerError) as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except (BrokerUnavailable, OutboxUnavailable, InboxUnavailable) as error:
            raise CommandError(str(error), returncode=AWAY) from error
        except DomainEventBrokerError as error:
            raise CommandError(str(error), returncode=FAILED) from error
        except KeyboardInterrupt as error:
            raise CommandError("stopped", returncode=FAILED) from error
        if code:
            sys.exit(code)

    def run(self, **options: Any) -> int:
        """Do the work and return the exit code."""
        raise NotImplementedError

    def settings(self) -> BrokerSettings:
        """Return the settings in force.

        :raises CommandError: the broker is switched off.
        """
        settings = config.current()
        if settings is None:
            raise CommandError(
                "DOMAIN_EVENT_BROKER is None: the broker is switched off. "
                "Set it to a URL such as 'amqp://user:password@host:5672/%2F' or 'database:'.",
                returncode=USAGE,
            )
        return settings


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: an integer of ``least`` or more."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError(text)
        return value

    integer.__name__ = f"integer of {least} or more"
    return integer


def more_than_nothing(text: str) -> float:
    """Read an argument: a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Give an event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    Afterwards signals are what they were before. Only a main thread gets any.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    on_stop_signals(stopped.set)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_stop_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` on the first SIGTERM or SIGINT; a second one ends the process at once."""

    def first(signum: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGTERM, first)
    signal.signal(signal.SIGINT, first)
