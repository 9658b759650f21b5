"""The event loop that async handlers run on. Imported where there is one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

from domain_event_broker.pool import Answer, Job, Work

logger = logging.getLogger("domain_event_broker.subscriber")

Result = TypeVar("Result")


class LoopPool(Generic[Work, Answer]):
    """A thread with an event loop that serves several lanes, each with its own limit.

    The same for coroutines as :class:`~domain_event_broker.pool.HandlerPool` is for functions.

    :param run: does the work, on the loop; must not raise.
    :param limits: for each lane, how many of its jobs may run at once.
    :param total: how many jobs may run at once, all in all.
    :param on_answer: called on the loop after each answer; must be thread-safe.
    :param may_start: asked before each job; once it says no, jobs that wait go on waiting.
    """

    def __init__(
        self,
        run: Callable[[Work, Executor], Coroutine[Any, Any, Answer]],
        limits: Mapping[str, int],
        total: int,
        on_answer: Callable[[], None],
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        self._run = run
        self._limits = dict(limits)
        self._total = total
        self._on_answer = on_answer
        self._may_start = may_start
        self._waiting: dict[str, deque[Job[Work]]] = {lane: deque() for lane in limits}
        self._running: dict[str, int] = dict.fromkeys(limits, 0)
        self._at_work: dict[asyncio.Task[Any] | None, tuple[Work, float]] = {}
        self._answers: deque[Answer] = deque()
        self._guard = threading.Lock()
        self._closed = False
        self._is_over = False
        self._threads = DaemonThreads("async-handler")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, name="handler-loop", daemon=True).start()

    def submit(self, jobs: Iterable[Job[Work]]) -> None:
        """Add jobs; they start as soon as their lane allows."""
        with self._guard:
            for job in jobs:
                self._waiting[job.lane].append(job)
        self._loop.call_soon_threadsafe(self._start_some)

    def answers(self) -> list[Answer]:
        """Return the answers given since the last call."""
        taken = []
        while self._answers:
            taken.append(self._answers.popleft())
        return taken

    def drop_waiting(self) -> list[Work]:
        """Take back the jobs that were not started, and return their work."""
        with self._guard:
            dropped = [job.work for queue in self._waiting.values() for job in queue]
            for queue in self._waiting.values():
                queue.clear()
            return dropped

    def at_work(self) -> list[tuple[Work, float]]:
        """Return what runs just now, each with the reading of ``time.monotonic()`` at its start."""
        with self._guard:
            return list(self._at_work.values())

    @property
    def running(self) -> int:
        """How many jobs run just now."""
        with self._guard:
            return sum(self._running.values())

    @property
    def busy(self) -> bool:
        """Whether jobs run or wait, or answers have not been taken."""
        with self._guard:
            return bool(self._answers) or any(self._running.values()) or any(self._waiting.values())

    def close(self) -> None:
        """Cancel what runs, and let the thread end. Does not wait for it.

        It is a daemon: a handler that never comes back does not keep the program alive.
        """
        self._closed = True
        self._threads.close()
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._shut()))

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._run_until_over()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _run_until_over(self) -> None:
        """Run the loop until it is shut, whatever a handler asks for.

        A task that ends with ``SystemExit`` or ``KeyboardInterrupt`` stops its loop
        (https://docs.python.org/3/library/asyncio-task.html#task-object): the other handlers would hang
        for ever. Whoever awaits it gets the exception all the same.
        """
        while not self._is_over:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                logger.exception("an async handler asked the program to end; it goes on")

    async def _shut(self) -> None:
        # However long they need: in the middle of a transaction they would keep it open, waiting for
        # a loop that is gone. This thread is a daemon and holds up nobody.
        tasks = {task for task in self._at_work if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._is_over = True
        self._loop.stop()

    def _start_some(self) -> None:
        with self._guard:
            for lane in self._waiting:
                while (job := self._next(lane)) is not None:
                    task = self._loop.create_task(self._work(job))
                    self._at_work[task] = (job.work, time.monotonic())

    def _next(self, lane: str) -> Job[Work] | None:
        is_full = self._running[lane] >= self._limits[lane] or len(self._at_work) >= self._total
        if is_full or not self._waiting[lane] or self._closed or not self._may_start():
            return None
        self._running[lane] += 1
        return self._waiting[lane].popleft()

    async def _work(self, job: Job[Work]) -> None:
        answers: list[Answer] = []
        try:
            answers.append(await self._run(job.work, self._threads))
        finally:
            with self._guard:
                self._at_work.pop(asyncio.current_task(), None)
                self._running[job.lane] -= 1
                self._answers.extend(answers)
            self._on_answer()
            self._start_some()


class DaemonThreads(Executor):
    """As many threads as there are calls at once. They do not keep a program alive.

    Those of ``concurrent.futures`` do: the interpreter waits for them at its end, and a handler
    that hangs would make that wait endless.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Call ``fn`` in a thread that is free, or a new one."""
        future: Future[Result] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._changed:
            self._calls.append(call)
            if self._idle >= len(self._calls):
                self._changed.notify()
            else:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end after the call they are at. Does not wait for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    if self._closed:
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                call = self._calls.popleft()
            call()
