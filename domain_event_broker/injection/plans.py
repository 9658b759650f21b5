"""How a handler is called: worked out once, when it is declared, and followed for each event.

A plan is a list of steps. Each makes one value of the event and of what earlier steps made: data
as a type, a word of the routing key, a dependency. The last of all is the call of the handler.

What was opened on the way is closed in reverse order, and told how the handler ended.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from domain_event_broker.deadlines import Attempt, TimeIsUp, current_attempt
from domain_event_broker.errors import HandlerError, HandlerSignal
from domain_event_broker.events import DomainEvent
from domain_event_broker.injection.signatures import name_of

logger = logging.getLogger("domain_event_broker.subscriber")

Result = TypeVar("Result")

#: Values made so far for one delivery; the first is the event.
Frame = list[Any]
#: Closes what a step opened; it gets what a context manager gets.
Exit = Callable[..., Any]
#: Runs a function that may wait, so that the loop does not.
InThread = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a function is called with, as places in the frame."""

    positional: tuple[int, ...]
    named: tuple[tuple[str, int], ...]

    def call(self, function: Callable[..., Any], frame: Frame) -> Any:
        """Call ``function`` with the values that are at these places now."""
        return function(
            *[frame[place] for place in self.positional],
            **{name: frame[place] for name, place in self.named},
        )


class Step:
    """Makes one value. This one takes nothing but the event, and leaves nothing behind."""

    def __init__(self, convert: Callable[[DomainEvent[Any]], Any]) -> None:
        self._convert = convert

    def enter(self, frame: Frame, exits: list[Exit]) -> Any:
        """Return the value; add to ``exits`` what closes it."""
        return self._convert(frame[0])

    async def aenter(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        """As :meth:`enter`, for an async handler; what closes it is to be awaited."""
        return self._convert(frame[0])


class CallStep(Step):
    """Calls a function."""

    def __init__(self, function: Callable[..., Any], arguments: Arguments) -> None:
        self._function = function
        self._arguments = arguments

    def enter(self, frame: Frame, exits: list[Exit]) -> Any:
        """See :class:`Step`."""
        return self._arguments.call(self._function, frame)

    async def aenter(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        """See :class:`Step`."""
        return await in_thread(functools.partial(self._arguments.call, self._function, frame))


class ContextStep(CallStep):
    """Enters a context manager, or runs a generator up to its ``yield``."""

    def enter(self, frame: Frame, exits: list[Exit]) -> Any:
        """See :class:`Step`."""
        manager = self._manager(frame)
        value = manager.__enter__()
        exits.append(manager.__exit__)
        return value

    async def aenter(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        """See :class:`Step`."""

        def enter() -> Any:
            # In one piece with taking note of its end: this runs on when the handler is cancelled.
            manager = self._manager(frame)
            value = manager.__enter__()
            exits.append(lambda *error: in_thread(lambda: manager.__exit__(*error)))
            return value

        return await in_thread(enter)

    def _manager(self, frame: Frame) -> Any:
        made = self._arguments.call(self._function, frame)
        return made if hasattr(made, "__enter__") else contextlib.contextmanager(lambda: made)()


class AsyncCallStep(CallStep):
    """Awaits a coroutine function."""

    async def aenter(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        """See :class:`Step`."""
        return await self._arguments.call(self._function, frame)


class AsyncContextStep(CallStep):
    """Enters an async context manager, or runs an async generator up to its ``yield``."""

    async def aenter(self, frame: Frame, exits: list[Exit], in_thread: InThread) -> Any:
        """See :class:`Step`."""
        made = self._arguments.call(self._function, frame)
        manager = made if hasattr(made, "__aenter__") else contextlib.asynccontextmanager(lambda: made)()
        value = await manager.__aenter__()
        exits.append(manager.__aexit__)
        return value


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that lead to the call of a handler, and what it is called with."""

    function: Callable[..., Any]
    steps: Sequence[Step]
    arguments: Arguments

    @property
    def is_plain(self) -> bool:
        """Whether the handler takes the event and nothing else, so that it can be called as it is."""
        return not self.steps and self.arguments == Arguments((0,), ())


class Injected:
    """A handler that is called with one event, and calls its function with what that asks for.

    :param plan: how.
    :param timeout: seconds that the making of its arguments and the function itself may take;
        ``None``: no limit.
    """

    def __init__(self, plan: Plan, timeout: float | None = None) -> None:
        functools.update_wrapper(self, plan.function, updated=())
        self.plan = plan
        self.timeout = timeout
        #: Whether a dependency that is not async may hold something open while the handler runs, such as
        #: a transaction: that of an async handler needs a thread to itself.
        self.holds_open = any(isinstance(step, ContextStep) for step in plan.steps)

    @property
    def function(self) -> Callable[..., Any]:
        """What the project wrote."""
        return self.plan.function

    def __call__(self, event: DomainEvent[Any]) -> Any:
        """Call the function, and clean up after it."""
        return self.verified(event, verify_nothing)

    def verified(self, event: DomainEvent[Any], verify: Callable[[], None]) -> Any:
        """Call the function, then ``verify``, and only then clean up.

        :param verify: raises if the effect of the function cannot be kept, so that what was opened
            for it is told.
        :raises HandlerTimeout: it took longer than it may.
        """
        exits: list[Exit] = []
        attempt = attempt_of(self.timeout)
        call = functools.partial(self._call, [event], exits)
        try:
            result = call() if attempt is None else attempt.call(call)
            verify()
        except BaseException as error:
            failure = _leave(exits, translated(error, attempt))
            if failure is error:
                raise
            raise failure  # noqa: B904 - it has its cause, or none
        left_with = _leave(exits, None)
        if left_with is not None:
            raise left_with
        return result

    def _call(self, frame: Frame, exits: list[Exit]) -> Any:
        for step in self.plan.steps:
            frame.append(step.enter(frame, exits))
        result = self.plan.arguments.call(self.plan.function, frame)
        refuse_undone(self.plan.function, result)
        return result


def refuse_undone(function: Any, result: Any) -> None:
    """Refuse what a handler returned if its work has not begun: nobody would do it.

    So a function does that is not ``async`` and wraps one that is: its event would be acknowledged,
    and nothing done.

    :raises HandlerError: it is a coroutine, another awaitable, or a generator.
    """
    if result is None or not _is_undone(result):
        return
    if hasattr(result, "close"):
        result.close()
    raise HandlerError(
        f"{name_of(function)} returned a {type(result).__name__}, which nobody runs; "
        "make it 'async def', and await in it what it calls"
    )


def _is_undone(result: object) -> bool:
    return inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result)


def verify_nothing() -> None:
    """Verify nothing."""


def attempt_of(timeout: float | None) -> Attempt | None:
    """Return the attempt that the subscriber began, or a new one."""
    if timeout is None:
        return None
    begun = current_attempt()
    return begun if begun is not None and begun.is_fresh else Attempt(timeout)


def translated(error: BaseException, attempt: Attempt | None) -> BaseException:
    return attempt.error() if attempt is not None and isinstance(error, TimeIsUp) else error


def _leave(exits: list[Exit], error: BaseException | None) -> Any:
    """Close what was opened, the last first; return what the delivery fails with, if it does."""
    while exits:
        try:
            exits.pop()(*described(error))
        except BaseException as raised:
            error = worse(error, raised)
    return error


def described(error: BaseException | None) -> tuple[Any, Any, Any]:
    # What an exit returns is of no interest: a dependency cannot turn a failure into a success.
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def worse(error: BaseException | None, raised: BaseException) -> BaseException:
    """Return which of two failures counts: the later one, as in Python, but never instead of a signal."""
    if isinstance(error, HandlerSignal) and raised is not error:
        logger.error("a dependency failed while it cleaned up after %r", error, exc_info=raised)
        return error
    return raised
