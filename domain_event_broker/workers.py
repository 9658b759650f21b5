"""What runs the handlers of one subscriber: threads, and a loop where a handler is async."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextvars import Token
from dataclasses import dataclass
from time import monotonic

from domain_event_broker import deadlines
from domain_event_broker.deadlines import Attempt
from domain_event_broker.errors import InboxUnavailable, TransactionLost
from domain_event_broker.execution import MAX_CRASHES, Execution
from domain_event_broker.failures import Failure
from domain_event_broker.handlers import Handler
from domain_event_broker.patience import SLICE_SECONDS, News, Outage, StopFlag
from domain_event_broker.pool import HandlerPool, Job, Pool
from domain_event_broker.ports import Action, Delivery, Settlement

logger = logging.getLogger("domain_event_broker.subscriber")

#: Longest time between two tries to reach an inbox that is away, in seconds.
RECONNECT_SECONDS = 5.0
#: Seconds in which all deliveries in hand have found out that it is back.
CALM_SECONDS = 2 * RECONNECT_SECONDS


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A delivery, and the number of the connection it came over."""

    session: int
    delivery: Delivery


_Answer = tuple[Work, Settlement]


class Workers:
    """Runs the handlers of deliveries, each as often at once as it allows.

    :param executions: how deliveries of each handler are handled, by its name.
    :param limits: how many deliveries of each may be handled at once.
    :param threads: how many all in all; ``None``: as many as the limits allow.
    :param stopping: set when no new tries shall be made.
    :param on_answer: called when there is a settlement to take, from any thread.
    :param may_start: asked before each start of a handler.
    """

    def __init__(
        self,
        executions: Mapping[str, Execution],
        limits: Mapping[str, int],
        threads: int | None,
        stopping: StopFlag,
        on_answer: Callable[[], None],
        may_start: Callable[[], bool],
    ) -> None:
        self._executions = executions
        self._stopping = stopping
        self._session = 0
        self._closed = False
        self._attempts: dict[Work, Attempt] = {}
        self._abandoned: set[Work] = set()
        self._inbox_news = News(logger, calm=CALM_SECONDS)
        of_loop = {name: limits[name] for name, each in executions.items() if each.handler.is_async}
        of_threads = {name: limits[name] for name in executions if name not in of_loop}
        # Late, and only where there is one: it imports asyncio.
        self._loop = None
        if of_loop:
            from domain_event_broker.loop import LoopPool

            self._loop = LoopPool(self._arun, of_loop, threads or sum(of_loop.values()), on_answer, may_start)
        self._threads = HandlerPool(
            self._run, of_threads, threads or sum(of_threads.values()), on_answer, may_start
        )
        self._pools: list[Pool[Work, _Answer]] = [self._threads, *([self._loop] if self._loop else [])]

    @property
    def running(self) -> int:
        """How many handlers run just now, those left out that nobody waits for."""
        return sum(pool.running for pool in self._pools) - len(self._abandoned)

    @property
    def busy(self) -> bool:
        """Whether handlers run or wait, or settlements have not been taken."""
        return self.running > 0 if self._abandoned else any(pool.busy for pool in self._pools)

    def begin_session(self) -> None:
        """Take note of a new connection: what came over the last one is not ours to settle any more."""
        self._session += 1

    def submit(self, deliveries: Iterable[Delivery]) -> None:
        """Add deliveries of this session; their handlers start as soon as their limits allow."""
        jobs = [Job(each.queue, Work(self._session, each)) for each in deliveries]
        if self._loop is None:
            self._threads.submit(jobs)
            return
        of_loop = [job for job in jobs if self._executions[job.lane].handler.is_async]
        of_threads = [job for job in jobs if not self._executions[job.lane].handler.is_async]
        self._loop.submit(of_loop)
        self._threads.submit(of_threads)

    def settlements(self) -> list[Settlement]:
        """Return how deliveries of this session ended since the last call."""
        # Looked at before the answers are taken: one that comes in between would be settled twice.
        still = {work for work in self._abandoned if self._is_at_work(work)}
        answers = [answer for pool in self._pools for answer in pool.answers()]
        if self._abandoned:
            answers = [answer for answer in answers if answer[0] not in self._abandoned]
            self._abandoned = still
        return [settlement for work, settlement in answers if work.session == self._session]

    def drop_waiting(self) -> list[Delivery]:
        """Take back the deliveries whose handlers were not started; return those of this session."""
        dropped = [work for pool in self._pools for work in pool.drop_waiting()]
        return [work.delivery for work in dropped if work.session == self._session]

    def at_work(self) -> list[tuple[Work, float]]:
        """Return what runs just now, each with the reading of ``time.monotonic()`` at its start."""
        return [each for pool in self._pools for each in pool.at_work()]

    def abandon_stuck(self) -> list[Settlement]:
        """Give up those whose time is up and who don't come back; return how their deliveries end.

        Whatever they do should they come back after all, their transaction is not committed: see
        :mod:`domain_event_broker.deadlines`.
        """
        if not self._attempts:
            return []
        # Copied: those that come back take themselves out meanwhile, in their own threads.
        attempts = list(self._attempts.items())
        stuck = {work: each for work, each in attempts if each.is_stuck and work not in self._abandoned}
        self._abandoned.update(stuck)
        ended = [
            (work, self._executions[work.delivery.queue].gave_up(work.delivery, attempt.error()))
            for work, attempt in stuck.items()
        ]
        return [settlement for work, settlement in ended if work.session == self._session]

    def close(self) -> None:
        """Let the threads end after what they are at, and cancel what runs on the loop."""
        self._closed = True
        for pool in self._pools:
            pool.close()

    def _run(self, work: Work) -> _Answer:
        """Run the handler of a delivery; in a thread of the pool, so nothing may be raised."""
        execution = self._executions[work.delivery.queue]
        patience: _Patience | None = None
        while True:
            token = self._enter_attempt(work, execution)
            try:
                answer = work, execution.run(work.delivery)
                if patience is not None:
                    patience.over()
                return answer
            except InboxUnavailable as error:
                # The delivery is kept, not given back: the event is fine, the database is not.
                patience = patience or _Patience(self._inbox_news)
                wait = patience.failed(error)
                if wait is None:
                    return work, execution.crashed(work.delivery, _LOST)
                if self._stopping.wait(wait) or self._is_to_leave(work):
                    return work, _requeued(work)
            except BaseException as error:
                return work, _unknown(work, error, execution.handler)
            finally:
                self._leave_attempt(work, token)

    async def _arun(self, work: Work, threads: Executor) -> _Answer:
        """As :meth:`_run`, on the loop."""
        from asyncio import sleep  # here it is imported already

        execution = self._executions[work.delivery.queue]
        patience: _Patience | None = None
        while True:
            token = self._enter_attempt(work, execution)
            try:
                answer = work, await execution.arun(work.delivery, threads, lambda: self._closed)
                if patience is not None:
                    patience.over()
                return answer
            except InboxUnavailable as error:
                patience = patience or _Patience(self._inbox_news)
                wait = patience.failed(error)
            except BaseException as error:
                return work, _unknown(work, error, execution.handler)
            finally:
                self._leave_attempt(work, token)
            if wait is None:
                return work, execution.crashed(work.delivery, _LOST)
            end = monotonic() + wait
            while monotonic() < end:
                if self._stopping.is_set() or self._is_to_leave(work):
                    return work, _requeued(work)
                await sleep(SLICE_SECONDS)

    def _enter_attempt(self, work: Work, execution: Execution) -> Token[Attempt | None] | None:
        seconds = execution.handler.timeout
        if seconds is None:
            return None
        attempt = self._attempts[work] = Attempt(seconds)
        return deadlines.enter(attempt)

    def _leave_attempt(self, work: Work, token: Token[Attempt | None] | None) -> None:
        if token is not None:
            self._attempts.pop(work, None)
            deadlines.leave(token)

    def _is_to_leave(self, work: Work) -> bool:
        """Tell whether nobody waits for the answer: this has ended, or the connection was lost."""
        return self._closed or work.session != self._session

    def _is_at_work(self, work: Work) -> bool:
        return any(each is work for each, _ in self.at_work())


class _Patience:
    """Counts how often the database was away while one delivery was handled.

    :param news: tells of it, once for all deliveries in hand.
    """

    def __init__(self, news: News) -> None:
        self._outage = Outage(logger, RECONNECT_SECONDS, news=news)
        self._lost = 0

    def failed(self, error: InboxUnavailable) -> float | None:
        """Return seconds to wait before the next try; ``None``: the handler is the cause."""
        self._lost += isinstance(error, TransactionLost)
        return None if self._lost >= MAX_CRASHES else self._outage.failed(error)

    def over(self) -> None:
        """Take note that the database was there."""
        if self._outage.over():
            logger.info("handling again: the database of the inbox is back")


_LOST = f"the database went away {MAX_CRASHES} times while this event was handled"


def _requeued(work: Work) -> Settlement:
    return Settlement(work.delivery, Action.REQUEUE, outcome="requeued")


def _unknown(work: Work, error: BaseException, handler: Handler) -> Settlement:
    outcome = "dead-lettered" if handler.dead_letter else "dropped"
    logger.error(
        "the result of %s is not known; its event is %s",
        work.delivery.queue,
        outcome,
        exc_info=error,
        extra={"handler": work.delivery.queue, "event_id": work.delivery.event_id},
    )
    failure = Failure("error", message="the library failed while it handled the event")
    return Settlement(work.delivery, Action.DEAD, failure=failure, outcome=outcome)
