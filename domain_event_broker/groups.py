"""Handlers that have something in common, said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domain_event_broker.errors import HandlerError, NoEventDeclared
from domain_event_broker.handlers import Function, Registry, declare, describe, normalised
from domain_event_broker.handoff import TaskHandler


class HandlerGroup:
    """Defaults for the handlers that are declared with its :meth:`subscribe`.

    ::

        orders = HandlerGroup(prefix="order", max_retries=5, retry_on=ServiceDown)

        @orders.subscribe("placed", "refunded")
        def book(event): ...

    :param events: events of handlers that name none themselves.
    :param prefix: words put before each binding key that is a string: ``"order"`` makes
        ``"order.placed"`` of ``"placed"``. Classes of events have keys of their own.
    :param to: registry that the handlers are added to; default: the one of the program.
    :param options: those of :func:`~domain_event_broker.subscribe`, except ``name``: how the
        handlers fail, what their queues are like, what they depend on.
    :raises HandlerError: an option is not known, or given twice.
    """

    def __init__(self, *events: Any, prefix: str = "", to: Registry | None = None, **options: Any) -> None:
        if "name" in options:
            raise HandlerError("HandlerGroup(name=...): each handler has a name of its own; drop it here")
        self._events = events
        self._prefix = prefix
        self._to = to
        self._options = _checked(options)

    def subscribe(self, *events: Any, **options: Any) -> Callable[[Function], Function]:
        """Declare the decorated function, or class, as a handler.

        :param events: instead of those of the group.
        :param options: instead of those of the group, one by one. ``to``, ``prefix`` and ``task`` are
            options here, too.
        :raises NoEventDeclared: neither this nor the group says which events it gets.
        :raises HandlerError: it cannot be served as declared.
        """
        to, prefix = options.pop("to", self._to), options.pop("prefix", self._prefix)
        task = options.pop("task", None)
        merged = {**self._options, **_checked(options)}
        chosen = [_prefixed(prefix, event) for event in events or self._events]

        def decorate(function: Function) -> Function:
            if not chosen and not hasattr(function, "subscribed_to"):
                raise NoEventDeclared(
                    f"{describe(function)} is bound to no event: neither does its @group.subscribe(...) name "
                    "one, nor HandlerGroup(...); use '#' for all events"
                )
            declare(function, chosen, merged, to)
            return function

        if task is None:
            return decorate
        handler = TaskHandler(task)
        decorate(handler)
        return handler.prepared_by


#: What a group, and a handler in it, may say.
_OPTIONS = frozenset(
    {
        "name",
        "max_retries",
        "backoff",
        "retry_on",
        "timeout",
        "dead_letter",
        "concurrency",
        "prefetch",
        "idempotent",
        "can_handle",
        "dependencies",
        "queue_type",
    }
)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    wanted = normalised(**options)
    if "retry_on" not in options:
        wanted.pop("retry_on", None)
    unknown = sorted(set(wanted) - _OPTIONS)
    if unknown:
        raise HandlerError(
            f"{unknown[0]!r} is not an option of handlers; known are {', '.join(sorted(_OPTIONS))}"
        )
    return wanted


def _prefixed(prefix: str, event: Any) -> Any:
    return f"{prefix}.{event}" if prefix and isinstance(event, str) else event
