"""What a parameter says about where its value comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from domain_event_broker.errors import HandlerError


@dataclass(frozen=True, slots=True)
class Dependency:
    """What :func:`Depends` returns.

    :param call: makes the value.
    :param use_cache: whether all places of one delivery that ask for it share one value.
    """

    call: Callable[..., Any]
    use_cache: bool = True


def Depends(dependency: Callable[..., Any], *, use_cache: bool = True) -> Any:
    """Say that a parameter gets what ``dependency`` makes, anew for each delivery.

    As a default value, ``session=Depends(get_session)``, or in the annotation,
    ``session: Annotated[Session, Depends(get_session)]``. The parameters of ``dependency`` are
    filled as those of a handler are, so it may ask for the event, its data and further
    dependencies.

    :param dependency: a function; a generator function, whose code after ``yield`` cleans up; a
        function made by ``contextlib.contextmanager``, or a class of context managers, which is
        entered. For ``async`` handlers also the ``async`` kinds of these.
    :param use_cache: ``False``: made anew for each parameter that asks for it.
    :raises HandlerError: ``dependency`` cannot be called.
    """
    if not callable(dependency):
        raise HandlerError(f"Depends({dependency!r}): a dependency is something to call, such as a function")
    return Dependency(dependency, use_cache)


@dataclass(frozen=True, slots=True)
class RoutingKeySegment:
    """Says that a parameter gets one word of the routing key: ``Annotated[str, RoutingKeySegment(1)]``.

    The word is converted to the type, and held to the constraints, that the annotation has beside
    this; an event whose word does not fit is dead-lettered.

    :param place: number of the word, from 0, or from the end if negative; or the name that it has
        in the key of the event's class or of the handler: ``"country"`` of
        ``"order.{country}.placed"``. ``None``: the name of the parameter.
    """

    place: int | str | None = None
