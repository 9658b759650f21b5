"""Several processes of one command, watched over by their parent."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from django.db import connections

logger = logging.getLogger("domain_event_broker.subscriber")

#: A process that ends sooner than this after its start is not started again at once, in seconds.
RESTART_SECONDS = 2.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class _Child:
    """A process: which of the works it does, and the reading of ``time.monotonic()`` at its start."""

    number: int
    started: float


class _Family:
    """The children of this process, by process id."""

    def __init__(self, works: Sequence[Callable[[], None]], companions: int) -> None:
        self._works = works
        self._workers = len(works) - companions
        self._stopping = False
        self.children: dict[int, _Child] = {}

    @property
    def stopping(self) -> bool:
        """Whether the children were told to stop."""
        return self._stopping

    def start(self, number: int) -> None:
        """Fork a child that does the work of this number and exits.

        Signals to stop wait meanwhile: one that came after the fork and before the child is known
        would not be passed on to it, and it would be waited for without end.
        """
        connections.close_all()  # a socket shared with a child would be spoiled by both
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._work_and_exit(number, mask)
            self.children[pid] = _Child(number, time.monotonic())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _work_and_exit(self, number: int, mask: Iterable[int]) -> NoReturn:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent passes it on
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._works[number]()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Not sys.exit(): what the parent had set up is not the child's to tear down.
            os._exit(code)

    def on_signal(self, signum: int, frame: object) -> None:
        """Tell the children to stop, companions when they are alone; told a second time, end them all."""
        if self._stopping:
            _signal(self.children, signal.SIGKILL)
            return
        self._stopping = True
        _signal((pid for pid, child in self.children.items() if child.number < self._workers), signal.SIGTERM)
        self.release_companions()

    def release_companions(self) -> None:
        """Tell companions to stop if the others were told to, and are gone."""
        if self._stopping and all(child.number >= self._workers for child in self.children.values()):
            _signal(self.children, signal.SIGTERM)


def _signal(pids: Iterable[int], signum: int) -> None:
    """Send a signal to each of these processes that still lives."""
    for pid in list(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def supervise(
    works: Sequence[Callable[[], None]],
    on_death: Callable[[int], None] = lambda number: None,
    companions: int = 0,
) -> int:
    """Do each of ``works`` in a process of its own until told to stop; one that dies is replaced.

    :param on_death: called with the number of the work, from 0 on, before another process is started for it.
    :param companions: how many of the works, the last ones, accompany the others: they are told to stop
        when these have ended.
    :return: exit code: 0 if all ended as they should after a signal, else 1.
    """
    family = _Family(works, companions)
    for signum in _STOP_SIGNALS:
        signal.signal(signum, family.on_signal)
    for number in range(len(works)):
        if not family.stopping:
            family.start(number)
    failed = False
    while family.children:
        # A signal after this line finds the children as they are, and sees to the companions itself.
        family.release_companions()
        pid, status = os.wait()
        child = family.children.pop(pid, None)
        if child is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        if family.stopping:
            # Ended by our signal: it had not come to the point where it looks for one.
            failed = failed or code not in (0, -signal.SIGTERM)
            continue
        logger.error("process %d ended with code %d; starting another", pid, code)
        on_death(child.number)
        _pause_before_restart(family, child.started)
        if not family.stopping:
            family.start(child.number)
    return 1 if failed else 0


def _pause_before_restart(family: _Family, started: float) -> None:
    """Let a process that fails at its start not be started in a tight loop."""
    end = started + RESTART_SECONDS
    while not family.stopping and time.monotonic() < end:
        time.sleep(0.05)
