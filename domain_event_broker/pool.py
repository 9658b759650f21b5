"""Threads that run handlers, while the loop thread alone talks to the broker."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Work = TypeVar("Work")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Job(Generic[Work]):
    """A piece of work for one handler.

    :param lane: name of the handler; at most so many jobs of a lane run at once as it allows.
    """

    lane: str
    work: Work


class Pool(Protocol[Work, Answer]):
    """What runs jobs of several lanes, each with its own limit: see :class:`HandlerPool`."""

    def submit(self, jobs: Iterable[Job[Work]]) -> None:
        """Add jobs; they start as soon as their lane allows."""

    def answers(self) -> list[Answer]:
        """Return the answers given since the last call."""

    def drop_waiting(self) -> list[Work]:
        """Take back the jobs that were not started, and return their work."""

    def at_work(self) -> list[tuple[Work, float]]:
        """Return what runs just now, each with the reading of ``time.monotonic()`` at its start."""

    @property
    def running(self) -> int:
        """How many jobs run just now."""

    @property
    def busy(self) -> bool:
        """Whether jobs run or wait, or answers have not been taken."""

    def close(self) -> None:
        """Let the threads end. Does not wait for them."""


class HandlerPool(Generic[Work, Answer]):
    """A bounded set of threads that serves several lanes fairly, each with its own limit.

    Jobs of a lane start in the order in which they were submitted. A lane whose jobs are slow
    delays no other as long as there are threads for all.

    :param run: does the work, in a thread of the pool; must not raise.
    :param limits: for each lane, how many of its jobs may run at once.
    :param threads: how many threads there are.
    :param on_answer: called in the pool's thread after each answer; must be thread-safe.
    :param may_start: asked before each job; once it says no, jobs that wait go on waiting.
    """

    def __init__(
        self,
        run: Callable[[Work], Answer],
        limits: Mapping[str, int],
        threads: int,
        on_answer: Callable[[], None],
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        self._run = run
        self._limits = dict(limits)
        self._on_answer = on_answer
        self._may_start = may_start
        self._waiting: dict[str, deque[Job[Work]]] = {lane: deque() for lane in limits}
        self._running = dict.fromkeys(limits, 0)
        self._at_work: dict[int, tuple[Work, float]] = {}
        self._turn: deque[str] = deque(limits)
        self._answers: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"handler-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, jobs: Iterable[Job[Work]]) -> None:
        """Add jobs; they start as soon as their lane and a thread allow."""
        with self._changed:
            for job in jobs:
                self._waiting[job.lane].append(job)
            self._changed.notify_all()

    def answers(self) -> list[Answer]:
        """Return the answers given since the last call."""
        taken = []
        while self._answers:
            taken.append(self._answers.popleft())
        return taken

    def drop_waiting(self) -> list[Work]:
        """Take back the jobs that were not started, and return their work."""
        with self._changed:
            dropped = [job.work for queue in self._waiting.values() for job in queue]
            for queue in self._waiting.values():
                queue.clear()
            return dropped

    def at_work(self) -> list[tuple[Work, float]]:
        """Return what runs just now, each with the reading of ``time.monotonic()`` at its start."""
        with self._changed:
            return list(self._at_work.values())

    @property
    def running(self) -> int:
        """How many jobs run just now."""
        with self._changed:
            return sum(self._running.values())

    @property
    def busy(self) -> bool:
        """Whether jobs run or wait, or answers have not been taken."""
        with self._changed:
            return bool(self._answers) or any(self._running.values()) or any(self._waiting.values())

    def close(self) -> None:
        """Let the threads end after the job they are at. Does not wait for them.

        They are daemons: a handler that never returns does not keep the program alive.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                job = self._next()
                while job is None:
                    if self._closed:
                        return
                    self._changed.wait()
                    job = self._next()
                self._at_work[threading.get_ident()] = (job.work, time.monotonic())
            answers: list[Answer] = []
            try:
                answers.append(self._run(job.work))
            finally:
                self._leave(job.lane, answers)
            self._on_answer()

    def _leave(self, lane: str, answers: list[Answer]) -> None:
        """Take note of the end of a job; in one step with its answer, so that none is overlooked."""
        with self._changed:
            del self._at_work[threading.get_ident()]
            self._running[lane] -= 1
            self._answers.extend(answers)
            if self._waiting[lane]:
                self._changed.notify()

    def _next(self) -> Job[Work] | None:
        """Take the first job of the next lane that has one and may run it."""
        if self._closed or not self._may_start():
            return None
        for _ in range(len(self._turn)):
            lane = self._turn[0]
            self._turn.rotate(-1)
            if self._waiting[lane] and self._running[lane] < self._limits[lane]:
                self._running[lane] += 1
                return self._waiting[lane].popleft()
        return None
