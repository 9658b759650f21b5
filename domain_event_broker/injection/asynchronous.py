"""How an async handler is called. Imported where there is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from domain_event_broker.deadlines import Attempt
from domain_event_broker.events import DomainEvent
from domain_event_broker.injection.plans import (
    Exit,
    Frame,
    Injected,
    InThread,
    attempt_of,
    described,
    refuse_undone,
    translated,
    verify_nothing,
    worse,
)

logger = logging.getLogger("domain_event_broker.subscriber")

Result = TypeVar("Result")


class AsyncInjected(Injected):
    """The same for a coroutine function."""

    async def __call__(self, event: DomainEvent[Any]) -> Any:
        """Await the function, and clean up after it."""
        return await self.averified(event, verify_nothing, asyncio.to_thread)

    async def averified(
        self, event: DomainEvent[Any], verify: Callable[[], None], in_thread: InThread
    ) -> Any:
        """As :meth:`verified`.

        :param in_thread: runs what may wait: ``verify``, and dependencies that are not ``async``.
        """
        exits: list[Exit] = []
        attempt = attempt_of(self.timeout)
        in_thread = _to_the_end(in_thread)
        call = self._acall([event], exits, in_thread)
        try:
            result = await (call if attempt is None else wait_for(attempt, call))
            if verify is not verify_nothing:
                await in_thread(verify)
        except BaseException as error:
            failure = await _aleave(exits, translated(error, attempt))
            if failure is error:
                raise
            raise failure  # noqa: B904 - it has its cause, or none
        left_with = await _aleave(exits, None)
        if left_with is not None:
            raise left_with
        return result

    async def _acall(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        for step in self.plan.steps:
            frame.append(await step.aenter(frame, exits, in_thread))
        result = await self.plan.arguments.call(self.plan.function, frame)
        refuse_undone(self.plan.function, result)
        return result


async def wait_for(attempt: Attempt, coroutine: Awaitable[Result]) -> Result:
    """Await ``coroutine``, and cancel it in this task when the time is up.

    :raises HandlerTimeout: the time was up, whatever the coroutine did then.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in one
    attempt.begin(lambda: _call_in(loop, lambda: attempt.is_under_way and task.cancel()))
    try:
        result = await coroutine
    except BaseException as error:
        if attempt.end() and not isinstance(error, Exception):
            _uncancel(task)
        if attempt.is_over:
            raise attempt.error() from _cause(error)
        raise
    if attempt.end():
        raise attempt.error()
    return result


def _to_the_end(in_thread: InThread) -> InThread:
    """Let what runs in a thread come to its end also when the one who waits for it is cancelled.

    It could not be stopped, and what it opened would never be closed.
    """

    async def run(function: Callable[[], Any]) -> Any:
        work = asyncio.create_task(in_thread(function))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            if not work.cancelled() and work.exception() is not None:
                logger.debug("a cancelled handler had failed already", exc_info=work.exception())
            raise

    return run


async def _aleave(exits: list[Exit], error: BaseException | None) -> Any:
    """Close what was opened, the last first; return what the delivery fails with, if it does."""
    while exits:
        try:
            await exits.pop()(*described(error))
        except BaseException as raised:
            error = worse(error, raised)
    return error


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        logger.debug("the loop of a handler that has timed out is closed")


def _uncancel(task: asyncio.Task[object]) -> None:
    uncancel = getattr(task, "uncancel", None)  # from Python 3.11
    if uncancel is not None:
        uncancel()


def _cause(error: BaseException) -> BaseException | None:
    """Return what is worth telling of: not the cancellation itself."""
    return None if isinstance(error, asyncio.CancelledError) else error
