"""Makes values of an event: its data as a type, words of its routing key, or itself with typed data."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from domain_event_broker.errors import HandlerError, InvalidEventData, MalformedEvent, MissingDependency
from domain_event_broker.events import DomainEvent
from domain_event_broker.injection.signatures import is_union, without_none
from domain_event_broker.routing import matches

#: Makes a value of an event.
Conversion = Callable[[DomainEvent[Any]], Any]


def data_conversion(annotation: Any) -> Conversion | None:
    """Return what makes a value of this type of the data of an event; ``None``: nothing does.

    :raises MissingDependency: it takes pydantic, which is not installed.
    """
    annotation = without_none(annotation)
    if annotation is dict or get_origin(annotation) is dict or annotation is Mapping:
        return _data
    if get_origin(annotation) is Mapping:
        return _data
    if is_event_class(annotation):
        read: Conversion = annotation.from_event
        return read
    if is_union(annotation) and all(map(is_event_class, get_args(annotation))):
        return _one_of(get_args(annotation))
    if _is_data_class(annotation):
        return _validated(annotation)
    return None


def envelope_conversion(annotation: Any) -> Conversion | None:
    """Return what makes the envelope of this type of an event; ``None``: it is none, or the event itself."""
    if get_origin(annotation) is not DomainEvent:
        return None
    read = data_conversion(get_args(annotation)[0])
    if read is None or read is _data:
        return None

    def convert(event: DomainEvent[Any]) -> DomainEvent[Any]:
        typed = copy.copy(event)
        typed.data = read(event)
        return typed

    return convert


def segment_conversion(name: str, annotation: Any, index_of: Callable[[str], int]) -> Conversion:
    """Return what makes a value of one word of a routing key.

    :param name: name of the parameter.
    :param index_of: returns the number of the word in a routing key.
    :raises MissingDependency: it takes pydantic, which is not installed.
    """
    convert = (lambda word: word) if annotation in (str, Any) else _adapter(annotation).validate_python

    def read(event: DomainEvent[Any]) -> Any:
        words = event.routing_key.split(".")
        index = index_of(event.routing_key)
        if not -len(words) <= index < len(words):
            raise MalformedEvent(f"routing key {event.routing_key!r} has no word number {index} for {name!r}")
        try:
            return convert(words[index])
        except ValueError as error:
            raise MalformedEvent(
                f"routing key {event.routing_key!r}, word {words[index]!r} for {name!r}: {_said_by(error)}"
            ) from error

    return read


def is_event_class(annotation: Any) -> bool:
    """Tell whether this is a class of typed events."""
    return isinstance(annotation, type) and hasattr(annotation, "from_event")


def _data(event: DomainEvent[Any]) -> Any:
    if not isinstance(event.data, dict):
        raise InvalidEventData(f"the data is a JSON {type(event.data).__name__}, not an object")
    return event.data


def _one_of(classes: Sequence[Any]) -> Conversion:
    """Return what reads an event by the class whose routing key it has."""

    def read(event: DomainEvent[Any]) -> Any:
        for each in classes:
            if matches(each.binding_key(), event.routing_key):
                return each.from_event(event)
        names = " or ".join(each.__name__ for each in classes)
        raise MalformedEvent(f"routing key {event.routing_key!r} is not that of {names}")

    return read


def _is_data_class(annotation: Any) -> bool:
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, dict) and hasattr(annotation, "__total__"):
        return True  # a TypedDict, be it that of typing or of typing_extensions
    if dataclasses.is_dataclass(annotation):
        return not issubclass(annotation, DomainEvent)
    # Nobody has a subclass of it without having imported it.
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(annotation, pydantic.BaseModel)


def _validated(annotation: Any) -> Conversion:
    validate = _adapter(annotation).validate_json

    def read(event: DomainEvent[Any]) -> Any:
        try:
            # As JSON, which it was: so strict fields, bytes and keys of dicts mean what they meant.
            return validate(json.dumps(event.data))
        except ValueError as error:
            raise InvalidEventData(f"the data is no {annotation.__name__}: {_said_by(error)}") from error

    return read


def _adapter(annotation: Any) -> Any:
    try:
        from pydantic import TypeAdapter
    except ImportError as error:
        shown = getattr(annotation, "__name__", annotation)
        raise MissingDependency(
            f"a parameter of type {shown} is filled by pydantic, which is not installed: "
            "pip install 'django-domain-event-broker[typed]'"
        ) from error
    try:
        return TypeAdapter(annotation)
    except Exception as error:  # whatever it has to say against somebody's class
        raise HandlerError(f"pydantic cannot read values of type {annotation}: {error}") from error


def _said_by(error: ValueError) -> str:
    """Return which fields are wrong and why, without their values: those may be secrets."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    problems = errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}" if each["loc"] else each["msg"]
        for each in problems
    )
