"""The way in: arguments, one run at a time, and an orderly end whatever happens."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.children import Family, environment_for
from demo.environment import python_of_the_shop
from demo.options import Options, parse, shown
from demo.screen import Screen
from demo.show import Show
from demo.trouble import Trouble

#: Exit codes.
BALANCED, UNBALANCED, TROUBLE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the show; return the exit code."""
    options = parse(arguments)
    screen = Screen()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have had the first ignored
        signal.signal(number, _interrupt)
    try:
        with _alone(options.state):
            return BALANCED if _perform(options, screen) else UNBALANCED
    except Trouble as trouble:
        screen.say()
        screen.say(f"example_project/run: {trouble}", "bad")
        return TROUBLE
    except BrokenPipeError:
        # Whoever read what is printed has gone, as 'head' does. Python would stumble again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return TROUBLE
    except KeyboardInterrupt:
        screen.say()
        screen.say("Stopped; all processes have ended.", "dim")
        return INTERRUPTED


def _perform(options: Options, screen: Screen) -> bool:
    screen.say("A shop whose parts speak through domain events", "bold")
    python = python_of_the_shop(options, screen)
    started = time.monotonic()
    logs = _fresh_state(options)
    with Family(python, environment_for(options.database_file), logs) as family:
        balances = Show(options, screen, family).run()
    screen.say()
    screen.say(f"Done in {time.monotonic() - started:.0f} s; the logs are in {shown(logs)}.", "dim")
    if not options.serve:
        screen.say(
            "--serve lets you be the visitor, --kill ends processes in the middle.",
            "dim",
        )
    return balances


def _fresh_state(options: Options) -> Path:
    """Remove what the last run left, and return the folder for logs."""
    for name in ("", "-wal", "-shm", "-journal"):
        options.database_file.with_name(options.database_file.name + name).unlink(missing_ok=True)
    logs = options.state / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.glob("*.log"):
        log.unlink()
    return logs


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keep a second run out of the folder of the first."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Trouble(
            f"{shown(state)} cannot be written: {error.strerror}; choose another --state"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise Trouble(
            f"another run is going on in {shown(state)}; end it, or choose another --state"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
