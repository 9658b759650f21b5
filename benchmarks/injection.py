"""What the arguments of a handler cost per event, in process: no broker, no database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from benchmarks.program import PAYLOAD, Figure
from domain_event_broker import Depends, DomainEvent, EventModel, RoutingKeySegment
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox, Execution
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Delivery, Inbox
from domain_event_broker.retry import RetryPolicy

#: Rounds in which the variants take turns, so that a slow moment of the machine hits all of them.
ROUNDS = 20


class BenchOrder(EventModel, routing_key="bench.{country}.placed"):
    """The payload of all benchmarks, as a class."""

    order: int
    customer: str
    total: str
    note: str
    country: str = "de"


@dataclass
class Order:
    """The same as a dataclass."""

    order: int
    customer: str
    total: str
    note: str


def get_engine() -> object:
    """A dependency that costs nothing itself."""
    return None


def get_session(engine: Annotated[Any, Depends(get_engine)]) -> Iterator[object]:
    """A dependency that is cleaned up."""
    yield engine


def take_event(event: DomainEvent) -> None:
    """The handler that all others are compared with."""


def take_dict(data: dict[str, Any]) -> None: ...
def take_word(event: DomainEvent, country: Annotated[str, RoutingKeySegment(1)]) -> None: ...
def take_dataclass(order: Order) -> None: ...
def take_model(order: BenchOrder) -> None: ...
def take_function(event: DomainEvent, engine: Annotated[Any, Depends(get_engine)]) -> None: ...
def take_session(event: DomainEvent, session: Annotated[Any, Depends(get_session)]) -> None: ...


class BareInbox(DirectInbox):
    """Calls one function without asking the handler."""

    def __init__(self, function: Callable[[DomainEvent], object]) -> None:
        self._function = function

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        """Call the function."""
        self._function(event)
        return True


def injection(repeat: int, events: int) -> list[Figure]:
    """Microseconds of one event from body to settlement, by what the handler asks for."""
    variants: list[tuple[str, Callable[..., object], Inbox]] = [
        ("the function called bare", take_event, BareInbox(take_event)),
        ("handler of the event alone", take_event, DirectInbox()),
        ("handler of the data as a dict", take_dict, DirectInbox()),
        ("handler of a word of the routing key", take_word, DirectInbox()),
        ("handler with a function as dependency", take_function, DirectInbox()),
        ("handler with nested dependencies, one cleaned up", take_session, DirectInbox()),
        ("handler of a dataclass (pydantic)", take_dataclass, DirectInbox()),
        ("handler of a class of events", take_model, DirectInbox()),
        ("handler of the event alone, with a timeout", take_event, DirectInbox()),
    ]
    executions = [_execution(*variant[1:], timeout="timeout" in variant[0]) for variant in variants]
    figures = [Figure(name, "us") for name, _, _ in variants]
    for _ in range(repeat):
        for figure, sample in zip(figures, _samples(executions, events // ROUNDS), strict=True):
            figure.samples.append(sample)
    share = Figure("event alone, more than bare", "ratio")
    share.samples = [
        alone / bare - 1 for bare, alone in zip(figures[0].samples, figures[1].samples, strict=True)
    ]
    return [*figures, share]


def _execution(call: Callable[..., object], inbox: Inbox, timeout: bool) -> Execution:
    handler = Handler(call, "bench", ("bench.#",), timeout=60 if timeout else None)
    return Execution(handler, RetryPolicy(), inbox)


def _samples(executions: list[Execution], count: int) -> list[float]:
    """Return the best microseconds per event of each, of rounds that they took in turns."""
    message = encode(DomainEvent("bench.de.placed", PAYLOAD))
    delivery = Delivery("bench", message.body, message.routing_key, message.event_id)
    best = [float("inf")] * len(executions)
    for number in range(ROUNDS):
        # Each is first once in a while: the first one pays for what the others find warm.
        for index in [*range(number % len(best), len(best)), *range(number % len(best))]:
            started = time.perf_counter()
            for _ in range(count):
                executions[index].run(delivery)
            best[index] = min(best[index], (time.perf_counter() - started) / count * 1e6)
    return best
