"""What a test says about events that were published, and what it is told when it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload

from domain_event_broker import config
from domain_event_broker.codecs import PLAIN_BODIES, bodies_of
from domain_event_broker.events import DomainEvent, Message, encode
from domain_event_broker.publisher import to_event
from domain_event_broker.routing import matches

#: Events that a failed assertion lists, and characters of the data of each.
MOST_LISTED, MOST_CHARACTERS = 20, 200


def always() -> bool:
    """The fate of what nothing can take back."""
    return True


@dataclass(frozen=True, slots=True)
class Published:
    """One event as it was published.

    :param message: what a broker gets: body and headers.
    :param deliver_at: not sent before this time.
    :param is_there: tells whether its transaction was not rolled back.
    """

    message: Message
    deliver_at: datetime | None = None
    is_there: Callable[[], bool] = always

    @property
    def event(self) -> DomainEvent:
        """The event as handlers get it."""
        return event_in(self.message)


def event_in(message: Message) -> DomainEvent:
    """Return the event in a message; one without data where the body is of another kind."""
    settings = config.current()
    bodies = PLAIN_BODIES if settings is None else bodies_of(settings)
    try:
        return bodies.decode(message.body, message.headers, message.event_id)
    except ValueError:
        return DomainEvent(message.routing_key, {}, message.ordering_key, message.event_id)


class PublishedEvents(Sequence[DomainEvent]):
    """The events that were published, oldest first; those that were rolled back are not among them."""

    def __init__(self) -> None:
        self._published: list[Published] = []

    # --- reading ---------------------------------------------------------------------------

    @property
    def routing_keys(self) -> list[str]:
        """The routing keys of the events, in order."""
        return [each.message.routing_key for each in self._there()]

    @property
    def messages(self) -> list[Message]:
        """The events as a broker gets them, with their headers, in order."""
        return [each.message for each in self._there()]

    def of(self, kind: Any) -> list[DomainEvent]:
        """Return the events of one kind.

        :param kind: a routing key, a binding key such as ``"order.*"``, or a typed event's class.
        """
        return [event for event in self if _is_of(kind, event)]

    def clear(self) -> None:
        """Forget what was published so far."""
        self._published.clear()

    def __len__(self) -> int:
        return len(self._there())

    def __iter__(self) -> Iterator[DomainEvent]:
        return iter([each.event for each in self._there()])

    @overload
    def __getitem__(self, index: int) -> DomainEvent: ...

    @overload
    def __getitem__(self, index: slice) -> list[DomainEvent]: ...

    def __getitem__(self, index: int | slice) -> DomainEvent | list[DomainEvent]:
        return list(self)[index]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.routing_keys}>"

    # --- asserting -------------------------------------------------------------------------

    def assert_published(
        self,
        kind: Any,
        data: Any = ...,
        *,
        including: Mapping[str, Any] | None = None,
        domain_object_id: Any = ...,
        times: int | None = 1,
    ) -> DomainEvent:
        """Assert that such an event was published, and return it (the first, of several).

        :param kind: a routing key, a binding key such as ``"order.*"``, a class of typed events, or an
            event, typed or not: one with its key, its data and its object.
        :param data: all of its data.
        :param including: a part of its data.
        :param domain_object_id: the object it happened to.
        :param times: how often, exactly; ``None``: once or more.
        :raises AssertionError: it was not; the message says what was published instead.
        """
        __tracebackhide__ = True
        wanted = _Wanted.read(kind, data, including, domain_object_id)
        found = [event for event in self if not wanted.differences(event)]
        if len(found) == times or (found and times is None):
            return found[0] if found else DomainEvent()
        often = (
            f", but {_times(len(found))} instead of {_times(times)}" if found and times is not None else ""
        )
        verb = "was published" if found else "was not published"
        raise AssertionError(f"{wanted} {verb}{often}. {self._listing(wanted)}")

    def assert_not_published(
        self,
        kind: Any = "#",
        data: Any = ...,
        *,
        including: Mapping[str, Any] | None = None,
        domain_object_id: Any = ...,
    ) -> None:
        """Assert that no such event was published; without arguments: none at all.

        The parameters are those of :meth:`assert_published`.

        :raises AssertionError: one was; the message says which.
        """
        __tracebackhide__ = True
        wanted = _Wanted.read(kind, data, including, domain_object_id)
        found = [event for event in self if not wanted.differences(event)]
        if found:
            raise AssertionError(f"{wanted} was published ({_times(len(found))}). {self._listing(wanted)}")

    def _there(self) -> list[Published]:
        return [each for each in self._published if each.is_there()]

    def _listing(self, wanted: _Wanted) -> str:
        events, taken_back = list(self), len(self._published) - len(self)
        lines = [_line(event, wanted) for event in events[:MOST_LISTED]]
        if len(events) > MOST_LISTED:
            lines.append(f"  ... and {len(events) - MOST_LISTED} more")
        text = (
            "\n".join(["Published were:", *lines])
            if events
            else "Nothing was published" + self._why_nothing()
        )
        if taken_back:
            text += f"\n{taken_back} more in transactions that were rolled back."
        return text

    def _why_nothing(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an assertion looks for. ``...`` stands for anything."""

    kind: Any
    data: Any
    including: Mapping[str, Any] | None
    domain_object_id: Any

    @classmethod
    def read(
        cls, kind: Any, data: Any, including: Mapping[str, Any] | None, domain_object_id: Any
    ) -> _Wanted:
        if not isinstance(kind, (str, type)):
            wanted = event_in(encode(to_event(kind)))
            data = wanted.data if data is ... else data
            domain_object_id = wanted.domain_object_id if domain_object_id is ... else domain_object_id
        key = domain_object_id if domain_object_id in (..., None) else str(domain_object_id)
        return cls(kind, data, including, key)

    def differences(self, event: DomainEvent) -> list[str]:
        """Return what is not as it is wanted, in words; the kind first."""
        if not _is_of(self.kind, event):
            return ["another kind"]
        found = []
        if self.data is not ... and event.data != self.data:
            found.append(_difference(self.data, event.data))
        found += [_field(name, want, event.data) for name, want in (self.including or {}).items()]
        if self.domain_object_id is not ... and event.domain_object_id != self.domain_object_id:
            found.append(f"domain_object_id is {event.domain_object_id!r}, not {self.domain_object_id!r}")
        return [difference for difference in found if difference]

    def __str__(self) -> str:
        parts = [name_of_kind(self.kind)]
        parts += [f"with data {_short(self.data)}"] if self.data is not ... else []
        parts += [f"with {_short(dict(self.including))} in its data"] if self.including else []
        parts += [f"of {self.domain_object_id!r}"] if self.domain_object_id is not ... else []
        return " ".join(parts)


def name_of_kind(kind: Any) -> str:
    """Return how a message speaks of a kind of events."""
    return kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)


def _is_of(kind: Any, event: DomainEvent) -> bool:
    if isinstance(kind, str):
        return matches(kind, event.routing_key)
    if isinstance(kind, type) and hasattr(kind, "binding_key"):
        return matches(kind.binding_key(), event.routing_key)
    if isinstance(kind, type) or not (isinstance(kind, DomainEvent) or hasattr(kind, "to_event")):
        raise TypeError(
            f"{kind!r} is no kind of events: use a routing key, a binding key such as 'order.*', or a class "
            "of typed events"
        )
    return event.routing_key == to_event(kind).routing_key


def _difference(want: Any, data: Any) -> str:
    if not (isinstance(want, dict) and isinstance(data, dict)):
        return f"data is {_short(data)}"
    names = [*want, *(name for name in data if name not in want)]
    found = [_field(name, want[name], data) if name in want else f"{name} is there" for name in names]
    return "; ".join(difference for difference in found if difference)


def _field(name: str, want: Any, data: Any) -> str:
    if not isinstance(data, dict) or name not in data:
        return f"{name} is missing"
    return "" if data[name] == want else f"{name} is {_short(data[name])}, not {_short(want)}"


def _line(event: DomainEvent, wanted: _Wanted) -> str:
    of = f" of {event.domain_object_id!r}" if event.domain_object_id else ""
    line = f"  {event.routing_key}{of} {_short(event.data)}"
    differences = wanted.differences(event)
    is_close = differences and differences != ["another kind"]
    return f"{line}\n    but {'; '.join(differences)}" if is_close else line


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def _times(number: int | None) -> str:
    return "once" if number == 1 else f"{number} times"
