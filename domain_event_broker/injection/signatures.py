"""Reads what a function wants to be called with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from domain_event_broker.errors import HandlerError

#: Stands for an annotation that is not there.
NOTHING = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An annotation that names something which cannot be found where it is written."""

    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of a function.

    :param annotation: its type, without ``Annotated`` around it; :data:`NOTHING`: none is given.
    :param notes: what ``Annotated`` has beside the type.
    :param default: its default value; :data:`NOTHING`: it has none.
    """

    name: str
    annotation: Any
    notes: tuple[Any, ...]
    default: Any
    is_positional_only: bool
    is_keyword_only: bool

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is NOTHING

    def constrained(self, ours: type[Any]) -> Any:
        """Return its type with what ``Annotated`` has beside it, less what is ours."""
        constraints = [note for note in self.notes if not isinstance(note, ours)]
        return functools.reduce(lambda kind, note: Annotated[kind, note], constraints, self.annotation)


def arguments_of(function: Callable[..., Any]) -> list[Argument] | None:
    """Return the parameters of a function; ``None``: it does not tell.

    ``*args`` and ``**kwargs`` are left out, and what a ``functools.partial`` gives by name.

    :raises HandlerError: it cannot be called at all.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None  # a built-in
    except TypeError as error:
        raise HandlerError(f"{function!r} cannot be called: {error}") from error
    hints = _hints_of(function)
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = function.keywords if isinstance(function, functools.partial) else {}
    return [
        _argument(each, hints) for each in parameters if each.kind not in skipped and each.name not in given
    ]


def takes_any_argument(function: Callable[..., Any]) -> bool:
    """Tell whether a function has ``*args``."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(function).parameters.values())


def name_of(function: Any) -> str:
    """Return where a function is written, for messages."""
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", repr(function))
    return f"{module}.{name}"


def without_none(annotation: Any) -> Any:
    """Return ``X`` of ``X | None``, and any other annotation as it is."""
    if not is_union(annotation):
        return annotation
    kinds = [each for each in get_args(annotation) if each is not NoneType]
    return kinds[0] if len(kinds) == 1 else annotation


def is_union(annotation: Any) -> bool:
    """Tell whether an annotation is ``X | Y``."""
    return get_origin(annotation) in (Union, UnionType)


def _argument(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Argument:
    annotation, notes = hints.get(parameter.name, NOTHING), ()
    if get_origin(without_none(annotation)) is Annotated:
        # Python 3.10 puts "| None" around what has None as its default value.
        annotation = without_none(annotation)
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        notes = tuple(rest)
    return Argument(
        parameter.name,
        annotation,
        notes,
        parameter.default,
        is_positional_only=parameter.kind is parameter.POSITIONAL_ONLY,
        is_keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
    )


def _hints_of(function: Any) -> Mapping[str, Any]:
    carrier = _carrier(function)
    try:
        return get_type_hints(carrier, include_extras=True)
    except Exception:  # one of them names what is not there; the others may still be read
        annotations = getattr(inspect.unwrap(carrier), "__annotations__", {})
        names = {**getattr(inspect.unwrap(carrier), "__globals__", {}), **_names_around(carrier)}
        return {name: _resolve(each, names) for name, each in annotations.items()}


def _names_around(function: Any) -> Mapping[str, Any]:
    """Return the local names of the function that this one is being declared in, as a test may do."""
    outer = getattr(function, "__qualname__", "").rpartition(".<locals>.")[0].rpartition(".")[2]
    frame = inspect.currentframe() if outer else None
    while frame is not None and frame.f_code.co_name != outer:
        frame = frame.f_back
    return frame.f_locals if frame is not None else {}


def _carrier(function: Any) -> Any:
    """Return the function that has the annotations."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        return getattr(function, "__init__")  # noqa: B009 - of this very class
    if inspect.isroutine(function):
        return function
    return type(function).__call__


def _resolve(annotation: Any, names: dict[str, Any]) -> Any:
    holder = type("_Holder", (), {"__annotations__": {"it": annotation}})
    try:
        return get_type_hints(holder, globalns=names, include_extras=True)["it"]
    except Exception as error:  # whatever evaluating somebody's annotation raises
        return Unresolved(str(annotation), f"{type(error).__name__}: {error}")
