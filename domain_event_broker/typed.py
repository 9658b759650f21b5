"""Typed events: classes that say what an event of one kind holds, checked on both ends of its way.

::

    class OrderPlaced(EventModel, routing_key="order.{country}.placed", version=2, object_id="order_id"):
        order_id: int
        country: str
        total: Decimal

    publish_domain_event(OrderPlaced(order_id=1, country="de", total=Decimal("9.90")))

The fields are those of a pydantic model (https://docs.pydantic.dev/latest/concepts/models/). On the
wire it is an event like any other, with the version of its class in a header: readers that know
nothing of the class get a dict.
"""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar

from domain_event_broker.errors import (
    ConfigurationError,
    InvalidEvent,
    InvalidEventData,
    MalformedEvent,
    MissingDependency,
    NewerSchemaVersion,
)
from domain_event_broker.events import HEADER_SCHEMA_VERSION, DomainEvent
from domain_event_broker.options import EventOptions, listed
from domain_event_broker.routing import check_binding_key

try:
    from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
    from pydantic_core import PydanticSerializationError
except ImportError as error:
    raise MissingDependency(
        f"typed events need the package {error.name!r}; install it with: "
        "pip install 'django-domain-event-broker[typed]'"
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Self

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

#: Problems of one body that a dead letter tells.
_MOST_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the arguments of a class of events say: see :class:`EventModel`."""

    routing_key: str | None = None
    version: int = 1
    object_id: str | None = None
    accept_newer: bool = False
    unversioned: int = 1
    options: tuple[EventOptions, ...] = ()
    upcasters: dict[int, Upcaster] = field(default_factory=dict)

    def words(self) -> list[tuple[str, bool]]:
        """Return the words of the routing key, each with whether it is the name of a field."""
        words = (self.routing_key or "").split(".")
        return [(word[1:-1], True) if _is_placeholder(word) else (word, False) for word in words]


class EventModel(BaseModel):
    """Base of typed events. Instances are immutable: what happened does not change.

    Arguments of a class; one that is not given is that of its base class::

        class OrderPlaced(EventModel, routing_key="order.placed", version=2): ...

    :param routing_key: key that events are published with. A word ``{country}`` stands for the value
        of that field, which must be one word. Without any, the class is a base for others.
    :param version: of the shape of the data; raise it when handlers of the old shape cannot
        read the new one, and register an :meth:`upcast` from the old one.
    :param object_id: field whose value is the ``domain_object_id``.
    :param accept_newer: whether an event of a newer version than this is handled as far as it is
        understood, and not dead-lettered.
    :param unversioned: the version that an event without one has.
    :param options: what the broker is asked to do with these events: see
        :mod:`domain_event_broker.options`.
    """

    model_config = ConfigDict(frozen=True)

    __event__: ClassVar[Declaration] = Declaration()

    _options: tuple[EventOptions, ...] = PrivateAttr(default=())

    # For type checkers, and for those who look at the signature: pydantic calls the one below, when
    # the fields are known.
    def __init_subclass__(
        cls,
        *,
        routing_key: str | None = None,
        version: int | None = None,
        object_id: str | None = None,
        accept_newer: bool | None = None,
        unversioned: int | None = None,
        options: EventOptions | Iterable[EventOptions] | None = None,
        **unknown: Any,
    ) -> None:
        """Refuse what neither this nor pydantic knows; pydantic hands the rest on."""
        if unknown:
            raise ConfigurationError(
                f"{cls.__qualname__}: unknown argument {', '.join(unknown)}; a class of events takes "
                "routing_key, version, object_id, accept_newer, unversioned, options, and what a pydantic "
                "model takes"
            )
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        """Declare the event."""
        super().__pydantic_init_subclass__()
        inherited = cls.__event__
        known = {name: value for name, value in given.items() if value is not None}
        if "options" in known:
            known["options"] = listed(known["options"])
        # A class with a key or a version of its own has another history.
        history = {} if {"routing_key", "version"} & set(known) else inherited.upcasters
        cls.__event__ = replace(inherited, **known, upcasters=history)
        _check_declaration(cls)

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Register the decorated function to lift data of an old version to the next one.

        It takes and returns the dict of the data. An event of version 1 passes through those from
        1, from 2, and so on, until it has the version of the class; then it is validated.

        :raises ConfigurationError: the class has no later version, or there is one for it already.
        """
        declared = cls.__event__
        if not 1 <= from_version < declared.version:
            raise ConfigurationError(
                f"{_name(cls)}.upcast(from_version={from_version!r}): the class has version "
                f"{declared.version}, so there are upcasts from 1 to {declared.version - 1} only"
            )

        def register(function: Upcaster) -> Upcaster:
            if from_version in declared.upcasters:
                raise ConfigurationError(
                    f"{_name(cls)} has two upcasts from version {from_version}: "
                    f"{_name(declared.upcasters[from_version])} and {_name(function)}"
                )
            declared.upcasters[from_version] = function
            return function

        return register

    @classmethod
    def binding_key(cls) -> str:
        """Return the key that a handler of these events is bound with: ``*`` for each ``{field}``.

        :raises ConfigurationError: the class has no routing key.
        """
        _require_routing_key(cls, ConfigurationError)
        return ".".join("*" if is_field else word for word, is_field in cls.__event__.words())

    @classmethod
    def from_event(cls, event: DomainEvent) -> Self:
        """Read what :meth:`to_event` wrote, also if an older release did.

        :raises NewerSchemaVersion: a newer release wrote it, and the class does not accept that.
        :raises InvalidEventData: the data cannot be lifted or do not fit; the message names the fields.
        :raises MalformedEvent: the version is no number.
        """
        data = _lifted(cls, event)
        try:
            # As JSON, which it was: so strict fields, bytes and keys of dicts mean what they meant.
            text = json.dumps(data)
        except (TypeError, ValueError) as error:
            raise InvalidEventData(
                f"an upcast made data of {_name(cls)} that JSON has not: {error}"
            ) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidEventData(f"the data is no {_name(cls)}: {_problems(error)}") from error

    def to_event(self) -> DomainEvent:
        """Return the event that is published for this.

        :raises InvalidEvent: a word of the routing key is missing or unsafe, or a value cannot be
            written as JSON.
        """
        _require_routing_key(type(self), InvalidEvent)
        declared = type(self).__event__
        words = [_word(self, name) if is_field else name for name, is_field in declared.words()]
        key = declared.object_id and _text(self, declared.object_id)
        event: DomainEvent = DomainEvent(".".join(words), _dumped(self), key)
        event.headers = {HEADER_SCHEMA_VERSION: declared.version}
        event.options = (*declared.options, *self._options)
        return event

    def with_options(self, *options: EventOptions) -> Self:
        """Return a copy that is published with these options, on top of those that it has.

        :raises InvalidEvent: something is no options.
        """
        copy = self.model_copy()
        copy._options = (*self._options, *listed(options))
        return copy


def _check_declaration(cls: type[EventModel]) -> None:
    declared = cls.__event__
    for name in ("version", "unversioned"):
        value = getattr(declared, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{_name(cls)}: {name}={value!r} is not an integer of 1 or more")
    wanted = [declared.object_id] if declared.object_id is not None else []
    if declared.routing_key is not None:
        wanted += [word for word, is_field in declared.words() if is_field]
        check_binding_key(cls.binding_key())
    for name in wanted:
        if name not in cls.model_fields:
            raise ConfigurationError(
                f"{_name(cls)} has no field {name!r}, which its routing_key or object_id names; "
                f"it has {', '.join(cls.model_fields) or 'none'}"
            )
    _check_braces(cls)


def _check_braces(cls: type[EventModel]) -> None:
    for word, is_field in cls.__event__.words():
        if not is_field and set(word) & {"{", "}", "*", "#"}:
            raise ConfigurationError(
                f"{_name(cls)}: routing_key={cls.__event__.routing_key!r} has the word {word!r}; a word is "
                "either plain text or the name of one field in braces, as in 'order.{country}.placed'"
            )


def _is_placeholder(word: str) -> bool:
    return word.startswith("{") and word.endswith("}") and word[1:-1].isidentifier()


def _require_routing_key(cls: type[EventModel], kind: type[Exception]) -> None:
    if cls.__event__.routing_key is None:
        raise kind(
            f"{_name(cls)} has no routing key; declare one: "
            f"class {cls.__name__}(EventModel, routing_key='order.placed')"
        )


def _word(event: EventModel, name: str) -> str:
    """Return the value of a field as one word of a routing key. Nothing is escaped: it would not match."""
    text = _text(event, name)
    if not text:
        raise InvalidEvent(
            f"{_name(type(event))}: its routing key needs the field {name!r}, which is {text!r}"
        )
    if not text.isprintable() or any(character in ".*#" or character.isspace() for character in text):
        raise InvalidEvent(
            f"{_name(type(event))}: {name}={text!r} cannot be a word of its routing key: dots, wildcards, "
            "spaces and control characters would make it another key"
        )
    return text


def _text(event: EventModel, name: str) -> str | None:
    value = getattr(event, name)
    while isinstance(value, enum.Enum):
        value = value.value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID, date)):
        raise InvalidEvent(
            f"{_name(type(event))}: {name} is of type {type(value).__name__}; a routing key or "
            "domain_object_id is made of str, int, UUID, date and enumerations of them"
        )
    return str(value)


def _dumped(event: EventModel) -> dict[str, Any]:
    try:
        # By alias, since validation goes by alias. A value that got past validation, through
        # model_construct() or into a list, is refused here, before it is stored.
        return event.model_dump(mode="json", by_alias=True, warnings="error")
    except PydanticSerializationError as error:
        raise InvalidEvent(f"{_name(type(event))} cannot be published: {error}") from error


def _lifted(cls: type[EventModel], event: DomainEvent) -> Any:
    """Return the data of an event in the version of the class."""
    declared, version = cls.__event__, _version(cls, event)
    if version > declared.version and not declared.accept_newer:
        raise NewerSchemaVersion(
            f"the event has version {version} of {_name(cls)}, and this release knows {declared.version} "
            "at most; deploy a newer one and replay it, or declare the class with accept_newer=True"
        )
    if not isinstance(event.data, dict):
        raise InvalidEventData(f"the data of a {_name(cls)} is an object, not a {type(event.data).__name__}")
    data = event.data if version >= declared.version else deepcopy(event.data)
    for number in range(version, declared.version):
        data = _lifted_once(cls, number, data)
    return data


def _lifted_once(cls: type[EventModel], version: int, data: dict[str, Any]) -> dict[str, Any]:
    upcaster = cls.__event__.upcasters.get(version)
    if upcaster is None:
        raise InvalidEventData(
            f"nothing lifts version {version} of {_name(cls)} to version {version + 1}; "
            f"register a function with @{cls.__name__}.upcast(from_version={version})"
        )
    try:
        lifted: Any = upcaster(data)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise InvalidEventData(
            f"{_name(upcaster)} cannot lift version {version} of {_name(cls)}: {text}"
        ) from error
    if not isinstance(lifted, dict):
        raise InvalidEventData(
            f"{_name(upcaster)} lifts {_name(cls)} to a {type(lifted).__name__}; it must return the dict"
        )
    return lifted


def _version(cls: type[EventModel], event: DomainEvent) -> int:
    written = event.headers.get(HEADER_SCHEMA_VERSION, cls.__event__.unversioned)
    try:
        version = int(written)
    except (TypeError, ValueError):
        version = 0
    if version < 1:
        raise MalformedEvent(f"the header {HEADER_SCHEMA_VERSION} is {written!r}, which is no version")
    return version


def _problems(error: ValidationError) -> str:
    """Return what is wrong, field by field, without the values: they may be nobody's business."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, each['loc'])) or 'data'}: {each['msg']}" for each in found[:_MOST_PROBLEMS]]
    more = f" and {len(found) - len(told)} more" if len(found) > len(told) else ""
    return "; ".join(told) + more


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", thing))
