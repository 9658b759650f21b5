"""Works out how a handler is called, and refuses what cannot be called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_origin

from domain_event_broker.errors import HandlerError
from domain_event_broker.events import DomainEvent
from domain_event_broker.injection import conversion
from domain_event_broker.injection.markers import Dependency, RoutingKeySegment
from domain_event_broker.injection.plans import (
    Arguments,
    AsyncCallStep,
    AsyncContextStep,
    CallStep,
    ContextStep,
    Injected,
    Plan,
    Step,
)
from domain_event_broker.injection.signatures import (
    NOTHING,
    Argument,
    Unresolved,
    arguments_of,
    name_of,
    takes_any_argument,
    without_none,
)
from domain_event_broker.routing import matches

#: Place of the event in a frame.
_EVENT = 0


def bind(
    function: Callable[..., Any],
    templates: Sequence[str] = (),
    dependencies: Sequence[Any] = (),
    timeout: float | None = None,
) -> Callable[[DomainEvent[Any]], Any]:
    """Return what calls ``function`` with what it asks for, given an event.

    One that takes nothing but the event is returned as it is, and costs nothing.

    :param templates: routing keys with names in them, such as ``"order.{country}.placed"``.
    :param dependencies: what ``Depends`` returned; made before the others, for what they do.
    :param timeout: seconds that the function may take.
    :raises HandlerError: it asks for something that nobody has.
    :raises MissingDependency: filling a parameter takes a package that is not installed.
    """
    if isinstance(function, Injected):
        return function
    plan = _Compiler(function, templates).plan(dependencies)
    if plan.is_plain and timeout is None:
        return function
    if not is_async(function):
        return Injected(plan, timeout)
    # Late, as it imports asyncio, which a program without async handlers has no use for.
    from domain_event_broker.injection.asynchronous import AsyncInjected

    return AsyncInjected(plan, timeout)


def is_async(function: Any) -> bool:
    """Tell whether what a function returns has to be awaited."""
    return inspect.iscoroutinefunction(_called(function))


class _Compiler:
    """Makes the plan of one handler."""

    def __init__(self, function: Callable[..., Any], templates: Sequence[str]) -> None:
        self._function = function
        self._words = _Words(templates)
        self._is_async = is_async(function)
        self._steps: list[Step] = []
        self._known: dict[Hashable, int] = {}
        self._path: list[Any] = []

    def plan(self, dependencies: Sequence[Any]) -> Plan:
        """Return the plan."""
        inside = inspect.unwrap(_called(self._function))
        if inspect.isgeneratorfunction(inside) or inspect.isasyncgenfunction(inside):
            raise self._refusal(self._function, "is a generator function: calling it would do nothing")
        for each in dependencies:
            if not isinstance(each, Dependency):
                raise self._refusal(self._function, f"has {each!r} among its dependencies; use Depends(...)")
            self._dependency(each)
        arguments = self._arguments(self._function, is_handler=True)
        return Plan(self._function, tuple(self._steps), arguments)

    def _arguments(self, function: Callable[..., Any], is_handler: bool = False) -> Arguments:
        arguments = arguments_of(function)
        if arguments is None:
            return Arguments((_EVENT,), ()) if is_handler else Arguments((), ())
        positional: list[int] = []
        named: list[tuple[str, int]] = []
        for number, each in enumerate(arguments):
            place = self._place(function, each, is_first=number == 0)
            if place is None:
                continue
            if each.is_positional_only or (number == 0 and not each.is_keyword_only):
                positional.append(place)
            else:
                named.append((each.name, place))
        if is_handler and not positional and not named:
            if not takes_any_argument(function):
                raise self._refusal(function, "cannot be called with one argument, the event: it takes none")
            positional.append(_EVENT)
        return Arguments(tuple(positional), tuple(named))

    def _place(self, function: Callable[..., Any], argument: Argument, is_first: bool) -> int | None:
        """Return where the value of a parameter is in the frame; ``None``: its default will do."""
        dependency = _noted(argument, Dependency)
        if dependency is not None:
            return self._dependency(dependency)
        segment = _noted(argument, RoutingKeySegment)
        if segment is not None:
            return self._segment(function, argument, segment.place)
        if isinstance(argument.annotation, Unresolved):
            return self._unresolved(function, argument, argument.annotation)
        if _is_envelope(argument, is_first):
            convert = conversion.envelope_conversion(argument.annotation)
            return _EVENT if convert is None else self._step(argument.annotation, Step(convert))
        convert = conversion.data_conversion(argument.annotation)
        if convert is not None:
            return self._step(argument.annotation, Step(convert))
        if argument.name in self._words.names:
            return self._segment(function, argument, argument.name)
        if not argument.is_required:
            return None
        raise self._unknown(function, argument)

    def _unresolved(self, function: Callable[..., Any], argument: Argument, found: Unresolved) -> int | None:
        # Imported for type checkers only, as is usual for what is an annotation and nothing else.
        if found.text.rpartition(".")[2] == DomainEvent.__name__:
            return _EVENT
        if not argument.is_required:
            return None
        raise self._refusal(
            function,
            f"has the parameter {argument.name!r} of type {found.text}, which cannot be found "
            f"({found.problem}); import it for more than type checking, and at the top of the module",
        )

    def _step(self, key: Hashable, step: Step) -> int:
        """Add a step, unless there is one that makes the same; return its place."""
        try:
            known = self._known.get(key)
        except TypeError:  # an annotation that cannot be hashed
            return self._add(step)
        if known is None:
            known = self._known[key] = self._add(step)
        return known

    def _add(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._steps)

    def _segment(self, function: Callable[..., Any], argument: Argument, place: int | str | None) -> int:
        place = argument.name if place is None else place
        if isinstance(place, str) and place not in self._words.names:
            known = ", ".join(sorted(self._words.names)) or "none"
            raise self._refusal(
                function,
                f"asks for the word {place!r} of the routing key, but no key of it has that name; known are: "
                f"{known}. Write one like 'order.{{{place}}}.placed', or give the number of the word",
            )
        index_of = self._words.finder(place)
        annotation = str if argument.annotation is NOTHING else argument.constrained(RoutingKeySegment)
        return self._add(Step(conversion.segment_conversion(argument.name, annotation, index_of)))

    def _dependency(self, dependency: Dependency) -> int:
        known = self._known.get(dependency) if dependency.use_cache else None
        if known is not None:
            return known
        with self._entered(dependency.call):
            arguments = self._arguments(dependency.call)
        place = self._add(self._kind_of(dependency.call)(dependency.call, arguments))
        if dependency.use_cache:
            self._known[dependency] = place
        return place

    @contextmanager
    def _entered(self, function: Any) -> Iterator[None]:
        if function in self._path:
            circle = " -> ".join(name_of(each) for each in [*self._path, function])
            raise self._refusal(self._function, f"has dependencies that go round in a circle: {circle}")
        self._path.append(function)
        yield
        self._path.pop()

    def _kind_of(self, function: Any) -> type[CallStep]:
        called = _called(function)
        inside = inspect.unwrap(called)
        kind: type[CallStep] = CallStep
        if inspect.isgeneratorfunction(inside) or _is_class_with(function, "__enter__"):
            kind = ContextStep
        elif inspect.isasyncgenfunction(inside) or _is_class_with(function, "__aenter__"):
            kind = AsyncContextStep
        elif inspect.iscoroutinefunction(called):
            kind = AsyncCallStep
        if kind in (AsyncContextStep, AsyncCallStep) and not self._is_async:
            raise self._refusal(
                self._function,
                f"depends on {name_of(function)}, which is async, and is not async itself; "
                "make it 'async def', or give it a dependency that is not",
            )
        return kind

    def _unknown(self, function: Callable[..., Any], argument: Argument) -> HandlerError:
        start = "cannot be called with one argument, the event: nobody knows what to give for the parameter"
        kind = "" if argument.annotation is NOTHING else f" of type {argument.annotation}"
        return self._refusal(
            function,
            f"{start} {argument.name!r}{kind}. Annotate it as DomainEvent, as a class of events or data, as "
            "dict, or as Annotated[str, RoutingKeySegment(1)]; or give it the default Depends(...)",
        )

    def _refusal(self, function: Any, problem: str) -> HandlerError:
        if function is self._function:
            return HandlerError(f"{name_of(function)} {problem}")
        return HandlerError(f"{name_of(function)}, a dependency of {name_of(self._function)}, {problem}")


class _Words:
    """The words of routing keys that have a name, such as ``country`` of ``order.{country}.placed``."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._templates = [tuple(each.split(".")) for each in templates]
        self.names = {name_in(word) for words in self._templates for word in words} - {""}

    def finder(self, place: int | str) -> Callable[[str], int]:
        """Return what tells the number of a word in a routing key."""
        if isinstance(place, int):
            return lambda routing_key: place
        found = [
            (binding_key_of(".".join(words)), words.index(f"{{{place}}}"))
            for words in self._templates
            if f"{{{place}}}" in words
        ]
        if len({index for _, index in found}) == 1:
            only = found[0][1]
            return lambda routing_key: only
        return functools.partial(_index_in, found, place)


def binding_key_of(template: str) -> str:
    """Return a key with ``*`` for each word that has a name: ``order.*.placed``."""
    return ".".join("*" if name_in(word) else word for word in template.split("."))


def name_in(word: str) -> str:
    """Return the name that a word of a key stands for; empty: it stands for itself."""
    name = word[1:-1]
    return name if word == f"{{{name}}}" and name.isidentifier() else ""


def _index_in(found: Sequence[tuple[str, int]], name: str, routing_key: str) -> int:
    return next((index for key, index in found if matches(key, routing_key)), len(routing_key))


def _noted(argument: Argument, kind: type[Any]) -> Any:
    """Return what a parameter has of this kind, as its default value or in its annotation."""
    places = (argument.default, *argument.notes)
    return next((each for each in places if isinstance(each, kind)), None)


def _is_envelope(argument: Argument, is_first: bool) -> bool:
    annotation = without_none(argument.annotation)
    if annotation is NOTHING or annotation in (Any, object):
        return is_first and argument.is_required
    if get_origin(annotation) is DomainEvent:
        return True
    return annotation in DomainEvent.__mro__ or (is_first and getattr(annotation, "_is_protocol", False))


def _is_class_with(function: Any, method: str) -> bool:
    return isinstance(function, type) and hasattr(function, method)


def _called(function: Any) -> Any:
    """Return the function that runs when ``function`` is called."""
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type) or inspect.isroutine(function):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004 - of an object, not whether it has one
