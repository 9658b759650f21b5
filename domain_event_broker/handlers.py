"""Handlers: how they are declared, found and checked. Nothing connects here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from domain_event_broker.errors import HandlerError, NoEventDeclared
from domain_event_broker.events import DomainEvent
from domain_event_broker.handoff import TaskHandler, is_task
from domain_event_broker.injection import Injected, bind, binding_key_of, is_async
from domain_event_broker.retry import Backoff, BackoffFunction, RetryPolicy
from domain_event_broker.routing import check_binding_key, check_queue_name

HandlerFunction = Callable[..., Any]
Function = TypeVar("Function", bound=HandlerFunction)

#: Longest time that dead letters may be kept, in seconds: a broker keeps it in milliseconds as 32 bits.
_LONGEST_TTL = 49 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """How long, and how many, dead letters are kept. What goes beyond that is lost, as you asked for.

    :param ttl: seconds (or a ``timedelta``) after which a dead letter is deleted; ``None``: never.
    :param max_length: dead letters that are kept; one more deletes the oldest. ``None``: all.
    :raises HandlerError: a limit makes no sense.
    """

    ttl: float | timedelta | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        seconds: Any = self.seconds
        most: Any = self.max_length
        if seconds is not None and not (_is_number(seconds) and 0.001 <= seconds <= _LONGEST_TTL):
            raise HandlerError(f"{self!r}: ttl must be 0.001 to {_LONGEST_TTL:.0f} seconds")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise HandlerError(f"{self!r}: max_length must be an integer of 1 or more")

    @property
    def seconds(self) -> float | None:
        """The time to live in seconds."""
        return self.ttl.total_seconds() if isinstance(self.ttl, timedelta) else self.ttl


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that handles events, and how it wants to have them.

    ``None`` stands for the default of the settings (``DOMAIN_EVENT_BROKER["SUBSCRIBER"]``).

    :param call: what handles an event. It is called with what its parameters ask for; what becomes
        of this field is called with one :class:`~domain_event_broker.DomainEvent`.
    :param name: name of the handler, of its queue and, with ``-dl`` added, of its dead letters.
    :param binding_keys: which events it gets; ``*`` stands for one word, ``#`` for any number, and
        ``{name}`` for one word that a parameter may ask for. A class of events stands for its key.
    :param max_retries: retries before an event is dead-lettered.
    :param backoff: delays of retries for exceptions, see ``retry_on``; or a function of the number
        of the retry and the error, which returns seconds, or ``None`` for the dead letters.
    :param retry_on: exceptions that lead to a retry; empty: all if a backoff is given, else
        only ``Retry``.
    :param timeout: seconds that one call may take. One that takes longer is interrupted, and failed.
    :param dead_letter: keep what failed for good; ``False`` drops it, with a line in the log. A
        :class:`DeadLetter` says how long.
    :param concurrency: events that it works on at once in one process; 1 keeps their order.
    :param prefetch: events fetched ahead.
    :param idempotent: take effect once per event (needs an inbox, which Django has).
    :param can_handle: returns whether it handles a given event; others are acknowledged.
    :param dependencies: what ``Depends(...)`` returned, made before the handler is called.
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
    backoff: Backoff | BackoffFunction | None = None
    retry_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    dead_letter: bool | DeadLetter = True
    concurrency: int | None = None
    prefetch: int | None = None
    idempotent: bool = True
    can_handle: Callable[[DomainEvent], bool] | None = None
    dependencies: tuple[Any, ...] = ()
    queue_type: str | None = None
    adopt: bool = False
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    #: Whether what :attr:`call` returns has to be awaited.
    is_async: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        check_queue_name(self.name)
        if not self.binding_keys:
            raise HandlerError(f"handler {self.name!r} has no binding key; use '#' for all events")
        templates = [_template_of(key) for key in self.binding_keys]
        keys = tuple(binding_key_of(each) for each in templates)
        for key in keys:
            check_binding_key(key)
        _check_callable(self.name, self.call)
        _check_options(self)
        object.__setattr__(self, "binding_keys", tuple(dict.fromkeys(keys)))
        object.__setattr__(self, "call", self._bound(templates))
        object.__setattr__(self, "is_async", is_async(self.call))

    def policy(self, default_max_retries: int) -> RetryPolicy:
        """Return the retry policy, with the default filled in."""
        retries = default_max_retries if self.max_retries is None else self.max_retries
        return RetryPolicy(retries, self.retry_on, self.backoff)

    def _bound(self, templates: list[str]) -> HandlerFunction:
        try:
            return bind(self.call, templates, self.dependencies, self.timeout)
        except HandlerError as error:
            raise HandlerError(f"handler {self.name!r}: {error}") from error


class Registry:
    """The handlers of a program, by name."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Add a handler.

        :raises HandlerError: another one has this name: they would share one queue and each
            get a part of the events. The same one again, as when its module is imported anew, is none.
        """
        known = self._handlers.get(handler.name)
        if known is not None and not _same_function(known.call, handler.call):
            raise HandlerError(
                f"two handlers are named {handler.name!r}: {describe(known.call)} and "
                f"{describe(handler.call)}; give one of them another name="
            )
        if known is not None and known.binding_keys != handler.binding_keys:
            raise HandlerError(
                f"two handlers are named {handler.name!r}: {describe(handler.call)} is there for "
                f"{', '.join(known.binding_keys)}, and for {', '.join(handler.binding_keys)}; give one of "
                "them another name=, or name all events in one @subscribe(...)"
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
    *events: Any,
    name: str | None = None,
    max_retries: int | None = None,
    retries: int | None = None,
    backoff: Backoff | BackoffFunction | None = None,
    retry_on: Iterable[type[BaseException]] | type[BaseException] | None = None,
    retry_interval: float | None = None,
    timeout: float | None = None,
    dead_letter: bool | DeadLetter = True,
    concurrency: int | None = None,
    prefetch: int | None = None,
    idempotent: bool = True,
    can_handle: Callable[[DomainEvent], bool] | None = None,
    dependencies: Iterable[Any] = (),
    queue_type: str | None = None,
    task: Any = None,
    to: Registry | None = None,
) -> Callable[[Function], Function]:
    """Declare the decorated function, or class, as a handler of ``events``.

    A function stays as it is and can be called in tests. ``manage.py run_subscriber`` finds it in
    the ``subscribers`` module of an installed app.

    A class is a subscriber: an instance of it, made at once and without arguments, handles events
    with its method ``handle``. It may say which in a method ``subscribed_to``, and refuse some in a
    method ``can_handle``.

    :param events: binding keys, classes of events, or a mixture.
    :param name: default: module and function name; the name of the queue, so it should not
        change as long as events are in it.
    :param retries: another name for ``max_retries``.
    :param retry_interval: seconds before each retry; short for ``backoff=Backoff.fixed(...)``.
    :param task: a Celery task that is started for each event; see :mod:`domain_event_broker.handoff`.
        It is a handler at once; a function that is decorated then makes its argument of the event.
    :param to: registry to add it to; default: the one of the program.

    The other parameters are those of :class:`Handler`.

    :raises HandlerError: it cannot be served as declared.
    :raises NoEventDeclared: nothing says which events it gets.
    """
    options = normalised(
        name=name,
        max_retries=max_retries,
        retries=retries,
        backoff=backoff,
        retry_on=retry_on,
        retry_interval=retry_interval,
        timeout=timeout,
        dead_letter=dead_letter,
        concurrency=concurrency,
        prefetch=prefetch,
        idempotent=idempotent,
        can_handle=can_handle,
        dependencies=dependencies,
        queue_type=queue_type,
    )

    def decorate(function: Function) -> Function:
        declare(function, events, options, to)
        return function

    if task is not None:
        handler = TaskHandler(task)
        declare(handler, events, options, to)
        return handler.prepared_by
    if len(events) == 1 and callable(events[0]) and not is_event_class(events[0]):
        raise HandlerError("@subscribe needs parentheses, and the events: @subscribe('order.placed')")
    return decorate


def declare(target: Any, events: Iterable[Any], options: Mapping[str, Any], to: Registry | None) -> None:
    """Add a handler to a registry, as :func:`subscribe` does.

    :param options: what :func:`normalised` returned.
    """
    target = TaskHandler(target) if is_task(target) else target
    subscriber = target() if isinstance(target, type) and hasattr(target, "handle") else target
    keys = tuple(events) or _asked_for(subscriber)
    if not keys:
        raise NoEventDeclared(
            f"{describe(target)} is bound to no event: neither does its @subscribe(...) name one, nor has it "
            "a method subscribed_to(); use '#' for all events"
        )
    can_handle = getattr(subscriber, "can_handle", None) if hasattr(subscriber, "handle") else None
    given = {"can_handle": can_handle, **{key: value for key, value in options.items() if value is not None}}
    if "name" not in given:
        given["name"] = default_name(target)
    handler = Handler(call=getattr(subscriber, "handle", subscriber), binding_keys=keys, **given)
    (registry if to is None else to).add(handler)


def normalised(**given: Any) -> dict[str, Any]:
    """Return options of handlers with each thing said in one way.

    :raises HandlerError: a thing is said twice.
    """
    retries, interval = given.pop("retries", None), given.pop("retry_interval", None)
    if retries is not None:
        _refuse_both(given, "max_retries", "retries")
        given["max_retries"] = retries
    if interval is not None:
        _refuse_both(given, "backoff", "retry_interval")
        given["backoff"] = Backoff.fixed(interval)
    retry_on = given.get("retry_on", ())
    if retry_on is not None:
        given["retry_on"] = (retry_on,) if isinstance(retry_on, type) else tuple(retry_on)
    if given.get("dependencies") is not None:
        given["dependencies"] = tuple(given["dependencies"])
    return given


def is_event_class(kind: Any) -> bool:
    """Tell whether this is a class of typed events, such as those of ``EventModel``."""
    return isinstance(kind, type) and hasattr(kind, "binding_key")


def default_name(function: Any) -> str:
    """Return the name a handler has if it is given none: ``shop.payments.charge``."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", type(function).__qualname__).replace(".<locals>", "")
    return f"{module.removesuffix('.subscribers')}.{name}".lstrip(".")


def describe(function: Any) -> str:
    """Return where a function is written, for messages."""
    if isinstance(function, Injected):
        function = function.function
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", repr(function))
    return f"{module}.{name}".lstrip(".")


def _template_of(event: Any) -> str:
    """Return the key of an event, with the names of the words that have one."""
    if is_event_class(event):
        event.binding_key()  # a class without one says so
        template: str = event.__event__.routing_key
        return template
    if isinstance(event, type):
        raise HandlerError(f"{describe(event)} is no class of events: it has no routing key; see EventModel")
    return event if isinstance(event, str) else check_binding_key(event)


def _asked_for(subscriber: Any) -> tuple[Any, ...]:
    """Return the events that a subscriber says it wants."""
    ask = getattr(subscriber, "subscribed_to", None)
    asked = ask() if callable(ask) else ()
    return (asked,) if isinstance(asked, str) else tuple(asked)


def _refuse_both(given: Mapping[str, Any], one: str, other: str) -> None:
    if given.get(one) is not None:
        raise HandlerError(f"both {one}={given[one]!r} and {other}= are given, which say the same; drop one")


def _check_callable(name: str, function: Any) -> None:
    if not callable(function):
        raise HandlerError(f"handler {name!r} is {function!r}, which cannot be called")


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


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
    _check_behaviour(handler)
    transient = handler.exclusive or handler.auto_delete or not handler.durable
    if transient and handler.queue_type == "quorum":
        raise HandlerError(
            f"handler {handler.name!r}: a quorum queue is always durable, shared and kept; "
            "use queue_type='classic' with exclusive, auto_delete or durable=False"
        )


def _check_behaviour(handler: Handler) -> None:
    # Any: what projects give is not always what the signature asks for.
    timeout: Any = handler.timeout
    backoff: Any = handler.backoff
    can_handle: Any = handler.can_handle
    dead_letter: Any = handler.dead_letter
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        raise HandlerError(
            f"handler {handler.name!r}: timeout={timeout!r} is not a number of seconds above 0"
        )
    if backoff is not None and not isinstance(backoff, Backoff) and not callable(backoff):
        raise HandlerError(
            f"handler {handler.name!r}: backoff={backoff!r}; use Backoff.exponential(1, max=300) or a "
            "function of the number of the retry and the error"
        )
    if can_handle is not None and (not callable(can_handle) or is_async(can_handle)):
        raise HandlerError(
            f"handler {handler.name!r}: can_handle={can_handle!r} is not a function of the event, or is async"
        )
    if not isinstance(dead_letter, (bool, DeadLetter)):
        raise HandlerError(
            f"handler {handler.name!r}: dead_letter={dead_letter!r}; use True, False or "
            "DeadLetter(ttl=..., max_length=...)"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_function(one: Any, other: Any) -> bool:
    return one is other or (describe(one) == describe(other) and "<lambda>" not in describe(one))
