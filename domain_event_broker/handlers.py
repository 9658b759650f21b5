"""Handlers: how they are declared, found and checked. Nothing connects here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from domain_event_broker.errors import HandlerError
from domain_event_broker.events import DomainEvent
from domain_event_broker.retry import Backoff, RetryPolicy
from domain_event_broker.routing import check_binding_key, check_queue_name

HandlerFunction = Callable[[DomainEvent], Any]
Function = TypeVar("Function", bound=HandlerFunction)


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that handles events, and how it wants to have them.

    ``None`` stands for the default of the settings (``DOMAIN_EVENT_BROKER["SUBSCRIBER"]``).

    :param call: called with one :class:`~domain_event_broker.DomainEvent`.
    :param name: name of the handler, of its queue and, with ``-dl`` added, of its dead letters.
    :param binding_keys: which events it gets; ``*`` stands for one word, ``#`` for any number.
    :param max_retries: retries before an event is dead-lettered.
    :param backoff: delays of retries for exceptions; see ``retry_on``.
    :param retry_on: exceptions that lead to a retry; empty: all if a backoff is given, else
        only ``Retry``.
    :param dead_letter: keep what failed for good; ``False`` drops it, with a line in the log.
    :param concurrency: events that it works on at once in one process; 1 keeps their order.
    :param prefetch: events fetched ahead.
    :param idempotent: take effect once per event (needs an inbox, which Django has).
    :param queue_type: ``"quorum"`` or ``"classic"`` (RabbitMQ).
    :param adopt: use the classic queue that an older version made as it is, if there is one.
    :param durable: ``False``: the queue does not survive the broker (classic only).
    :param exclusive: the queue belongs to one connection and ends with it (classic only).
    :param auto_delete: the queue ends with its last consumer (classic only).
    """

    call: HandlerFunction
    name: str
    binding_keys: tuple[str, ...]
    max_retries: int | None = None
    backoff: Backoff | None = None
    retry_on: tuple[type[BaseException], ...] = ()
    dead_letter: bool = True
    concurrency: int | None = None
    prefetch: int | None = None
    idempotent: bool = True
    queue_type: str | None = None
    adopt: bool = False
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False

    def __post_init__(self) -> None:
        check_queue_name(self.name)
        if not self.binding_keys:
            raise HandlerError(f"handler {self.name!r} has no binding key; use '#' for all events")
        for key in self.binding_keys:
            check_binding_key(key)
        _check_callable(self.name, self.call)
        _check_options(self)

    def policy(self, default_max_retries: int) -> RetryPolicy:
        """Return the retry policy, with the default filled in."""
        retries = default_max_retries if self.max_retries is None else self.max_retries
        return RetryPolicy(retries, self.retry_on, self.backoff)


class Registry:
    """The handlers of a program, by name."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Add a handler.

        :raises HandlerError: another one has this name: they would share one queue and each
            get a part of the events.
        """
        known = self._handlers.get(handler.name)
        if known is not None and not _same_function(known.call, handler.call):
            raise HandlerError(
                f"two handlers are named {handler.name!r}: {describe(known.call)} and "
                f"{describe(handler.call)}; give one of them another name="
            )
        self._handlers[handler.name] = handler

    def all(self) -> list[Handler]:
        """Return the handlers, sorted by name."""
        return [self._handlers[name] for name in sorted(self._handlers)]

    def select(self, names: Iterable[str]) -> list[Handler]:
        """Return the named handlers, or all if no name is given.

        :raises HandlerError: a name is not known; the message lists those that are.
        """
        wanted = list(dict.fromkeys(names))
        unknown = [name for name in wanted if name not in self._handlers]
        if unknown:
            known = (
                ", ".join(sorted(self._handlers)) or "none (is there a subscribers.py in an installed app?)"
            )
            raise HandlerError(f"no handler is named {', '.join(map(repr, unknown))}; known are: {known}")
        return [self._handlers[name] for name in wanted] if wanted else self.all()


#: Where :func:`subscribe` puts handlers.
registry = Registry()


def subscribe(
    *binding_keys: str,
    name: str | None = None,
    max_retries: int | None = None,
    backoff: Backoff | None = None,
    retry_on: Iterable[type[BaseException]] | type[BaseException] = (),
    dead_letter: bool = True,
    concurrency: int | None = None,
    prefetch: int | None = None,
    idempotent: bool = True,
    queue_type: str | None = None,
    to: Registry | None = None,
) -> Callable[[Function], Function]:
    """Declare the decorated function as a handler of the events that match ``binding_keys``.

    The function stays as it is and can be called in tests. ``manage.py run_subscriber`` finds
    it in the ``subscribers`` module of an installed app.

    :param name: default: module and function name; the name of the queue, so it should not
        change as long as events are in it.
    :param to: registry to add it to; default: the one of the program.

    The other parameters are those of :class:`Handler`.

    :raises HandlerError: it cannot be served as declared.
    """

    def decorate(function: Function) -> Function:
        handler = Handler(
            call=function,
            name=default_name(function) if name is None else name,
            binding_keys=tuple(binding_keys),
            max_retries=max_retries,
            backoff=backoff,
            retry_on=(retry_on,) if isinstance(retry_on, type) else tuple(retry_on),
            dead_letter=dead_letter,
            concurrency=concurrency,
            prefetch=prefetch,
            idempotent=idempotent,
            queue_type=queue_type,
        )
        (registry if to is None else to).add(handler)
        return function

    if any(callable(key) for key in binding_keys):
        raise HandlerError("@subscribe needs the binding keys: @subscribe('order.placed')")
    return decorate


def default_name(function: Any) -> str:
    """Return the name a handler has if it is given none: ``shop.payments.charge``."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", type(function).__qualname__).replace(".<locals>", "")
    return f"{module.removesuffix('.subscribers')}.{name}".lstrip(".")


def describe(function: Any) -> str:
    """Return where a function is written, for messages."""
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", repr(function))
    return f"{module}.{name}"


def _check_callable(name: str, function: Any) -> None:
    if not callable(function):
        raise HandlerError(f"handler {name!r} is {function!r}, which cannot be called")
    if _is_async(function):
        raise HandlerError(
            f"handler {name!r} ({describe(function)}) is an async function, which is not supported yet; "
            "wrap it with asgiref.sync.async_to_sync"
        )
    try:
        inspect.signature(function).bind(None)
    except ValueError:
        return  # a built-in that does not tell its signature
    except TypeError as error:
        raise HandlerError(
            f"handler {name!r} ({describe(function)}) cannot be called with one argument, the event: {error}"
        ) from error


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004 - of an object, not whether it has one
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _check_options(handler: Handler) -> None:
    for option, least in (("max_retries", 0), ("concurrency", 1), ("prefetch", 1)):
        value = getattr(handler, option)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise HandlerError(
                f"handler {handler.name!r}: {option}={value!r} is not an integer of {least} or more"
            )
    if handler.queue_type not in (None, "quorum", "classic"):
        raise HandlerError(
            f"handler {handler.name!r}: queue_type={handler.queue_type!r}; use 'quorum' or 'classic'"
        )
    for kind in handler.retry_on:
        if not _is_exception_class(kind):
            raise HandlerError(
                f"handler {handler.name!r}: retry_on holds {kind!r}, which is not an exception class"
            )
    transient = handler.exclusive or handler.auto_delete or not handler.durable
    if transient and handler.queue_type == "quorum":
        raise HandlerError(
            f"handler {handler.name!r}: a quorum queue is always durable, shared and kept; "
            "use queue_type='classic' with exclusive, auto_delete or durable=False"
        )


def _same_function(one: Any, other: Any) -> bool:
    return one is other or (describe(one) == describe(other) and "<lambda>" not in describe(one))
