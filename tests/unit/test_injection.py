"""What handlers are called with, how that is cleaned up, and what is refused when they are declared."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from domain_event_broker import (
    Depends,
    DomainEvent,
    EventModel,
    HandlerGroup,
    Reject,
    Retry,
    RoutingKeySegment,
    subscribe,
)
from domain_event_broker.errors import HandlerError, InvalidEventData, MalformedEvent, NewerSchemaVersion
from domain_event_broker.handlers import Handler, Registry

if TYPE_CHECKING:
    from decimal import Decimal


class OrderPlaced(EventModel, routing_key="order.{country}.placed"):
    number: int
    country: str


class OrderRefunded(EventModel, routing_key="order.refunded"):
    number: int


class Customer(BaseModel):
    name: str
    age: int = Field(ge=0)


@dataclasses.dataclass
class Parcel:
    weight: int
    fragile: bool = False


class Note(TypedDict):
    text: str


def handler(call: Callable[..., Any], *keys: Any, **options: Any) -> Handler:
    return Handler(call, "h", keys or ("#",), **options)


def placed(number: Any = 7, country: str = "de", version: int | None = None) -> DomainEvent:
    event: DomainEvent = DomainEvent(f"order.{country}.placed", {"number": number, "country": country})
    if version is not None:
        event.headers = {"event-schema-version": version}
    return event


# --- the event and its data -------------------------------------------------------------


def test_a_handler_that_takes_only_the_event_is_called_as_it_is() -> None:
    def plain(event: DomainEvent) -> None: ...
    def bare(event): ...  # type: ignore[no-untyped-def]
    def with_default(event: DomainEvent, verbose: bool = False) -> None: ...
    async def unhurried(event: DomainEvent) -> None: ...

    for call in (plain, bare, with_default, unhurried, print, lambda event: None, [].append):
        assert handler(call).call is call


def test_an_annotation_for_type_checkers_only_is_the_event_if_it_says_so() -> None:
    def typed(event: hidden.DomainEvent) -> str:  # type: ignore[name-defined]  # noqa: F821
        return event.routing_key

    assert handler(typed).call is typed


def test_the_data_come_as_a_class_of_events() -> None:
    seen: list[Any] = []

    def take(order: OrderPlaced, event: DomainEvent) -> None:
        seen.extend([order, event.routing_key])

    handler(take, OrderPlaced).call(placed())
    assert seen == [OrderPlaced(number=7, country="de"), "order.de.placed"]


@pytest.mark.parametrize(
    ("annotation", "data", "expected"),
    [
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, Any], {"a": 1}, {"a": 1}),
        (Customer, {"name": "Ann", "age": "41"}, Customer(name="Ann", age=41)),
        (Parcel, {"weight": 3, "colour": "red"}, Parcel(3)),
        (Note, {"text": "x"}, {"text": "x"}),
        (Parcel | None, {"weight": 3}, Parcel(3)),
    ],
)
def test_the_data_come_as_what_the_parameter_says(annotation: Any, data: Any, expected: Any) -> None:
    def take(value: Any) -> Any:
        return value

    take.__annotations__["value"] = annotation
    assert handler(take).call(DomainEvent("x", data)) == expected


def test_the_envelope_may_have_typed_data() -> None:
    def take(event: DomainEvent[OrderPlaced], raw: DomainEvent) -> tuple[Any, Any, Any]:
        return event.data, event.uuid_string == raw.uuid_string, raw.data

    order = OrderPlaced(number=7, country="de")
    assert handler(take).call(placed()) == (order, True, {"number": 7, "country": "de"})


def test_a_union_of_events_is_the_one_with_the_routing_key() -> None:
    def take(order: OrderPlaced | OrderRefunded) -> str:
        return type(order).__name__

    both = handler(take, OrderPlaced, OrderRefunded)
    assert both.binding_keys == ("order.*.placed", "order.refunded")
    assert both.call(placed()) == "OrderPlaced"
    assert both.call(DomainEvent("order.refunded", {"number": 1})) == "OrderRefunded"
    with pytest.raises(MalformedEvent, match="not that of OrderPlaced or OrderRefunded"):
        both.call(DomainEvent("order.lost", {"number": 1}))


@pytest.mark.parametrize(
    ("annotation", "data", "complaint"),
    [
        (OrderRefunded, {"number": "many"}, "number"),
        (Customer, {"name": "Ann", "age": -1}, "Customer: age: "),
        (Parcel, {}, "Parcel: weight: Field required"),
        (Note, {"text": 1}, "Note: text: "),
        (dict, [1], "a JSON list, not an object"),
    ],
)
def test_data_that_do_not_fit_name_their_fields(annotation: Any, data: Any, complaint: str) -> None:
    def take(value: Any) -> None:
        raise AssertionError("not to be called")

    take.__annotations__["value"] = annotation
    with pytest.raises(InvalidEventData, match=complaint):
        handler(take).call(DomainEvent("x", data))


def test_a_newer_version_is_refused_before_the_handler_is_called() -> None:
    def take(order: OrderPlaced) -> None:
        raise AssertionError("not to be called")

    with pytest.raises(NewerSchemaVersion):
        handler(take).call(placed(version=2))


# --- words of the routing key -----------------------------------------------------------


def test_a_word_is_found_by_number_name_and_name_of_the_parameter() -> None:
    def take(
        first: Annotated[str, RoutingKeySegment(0)],
        last: Annotated[str, RoutingKeySegment(-1)],
        land: Annotated[str, RoutingKeySegment("country")],
        country: str,
    ) -> list[str]:
        return [first, last, land, country]

    assert handler(take, OrderPlaced).call(placed(country="fr")) == ["order", "placed", "fr", "fr"]


def test_a_word_is_converted_and_held_to_its_constraints() -> None:
    def take(number: Annotated[int, Field(ge=10), RoutingKeySegment(1)]) -> int:
        return number

    numbered = handler(take, "order.{number}.placed")
    assert numbered.binding_keys == ("order.*.placed",)
    assert numbered.call(DomainEvent("order.12.placed")) == 12
    for wrong in ("9", "many"):
        with pytest.raises(MalformedEvent, match=f"word '{wrong}' for 'number'"):
            numbered.call(DomainEvent(f"order.{wrong}.placed"))


def test_a_name_may_have_another_place_in_each_key() -> None:
    def take(country: str) -> str:
        return country

    both = handler(take, "order.{country}.placed", "{country}.audit")
    assert both.call(DomainEvent("order.de.placed")) == "de"
    assert both.call(DomainEvent("fr.audit")) == "fr"


def test_a_word_that_is_not_there_is_told_of() -> None:
    def take(word: Annotated[str, RoutingKeySegment(3)]) -> None: ...

    with pytest.raises(MalformedEvent, match="has no word number 3 for 'word'"):
        handler(take).call(DomainEvent("order.placed"))


# --- dependencies -----------------------------------------------------------------------


class Log(list[str]):
    """What happened, in order."""

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[str]:
        self.append(f"open {name}")
        try:
            yield name
        except BaseException as error:
            self.append(f"{name} saw {type(error).__name__}")
            raise
        finally:
            self.append(f"close {name}")


LOG = Log()


@pytest.fixture(autouse=True)
def log() -> Log:
    LOG.clear()
    return LOG


def get_engine(event: DomainEvent) -> str:
    LOG.append(f"engine for {event.routing_key}")
    return "engine"


def get_session(engine: Annotated[str, Depends(get_engine)]) -> Iterator[str]:
    with LOG.opened(f"session on {engine}"):
        yield "session"


@contextlib.contextmanager
def get_lock(engine: str = Depends(get_engine)) -> Iterator[str]:
    with LOG.opened("lock"):
        yield "lock"


class Connection:
    def __init__(self, data: dict[str, Any]) -> None:
        self.name = data["name"]

    def __enter__(self) -> str:
        LOG.append(f"open {self.name}")
        return self.name

    def __exit__(self, *error: object) -> bool:
        LOG.append(f"close {self.name} {error[1]!r}")
        return True


def test_dependencies_are_nested_cached_and_cleaned_up_in_reverse_order(log: Log) -> None:
    def take(session: Annotated[str, Depends(get_session)], lock: str = Depends(get_lock)) -> None:
        log.append(f"handle with {session} and {lock}")

    handler(take).call(DomainEvent("x"))
    assert log == [
        "engine for x",
        "open session on engine",
        "open lock",
        "handle with session and lock",
        "close lock",
        "close session on engine",
    ]


def test_each_delivery_has_dependencies_of_its_own(log: Log) -> None:
    def take(engine: str = Depends(get_engine)) -> None: ...

    once = handler(take)
    once.call(DomainEvent("x"))
    once.call(DomainEvent("x"))
    assert log == ["engine for x"] * 2


def test_a_dependency_may_have_none_as_default_value(log: Log) -> None:
    def take(event: DomainEvent, engine: Annotated[str | None, Depends(get_engine)] = None) -> str | None:
        return engine

    assert handler(take).call(DomainEvent("x")) == "engine"


def test_without_the_cache_each_place_has_its_own(log: Log) -> None:
    def take(
        one: str = Depends(get_engine, use_cache=False), two: str = Depends(get_engine, use_cache=False)
    ) -> None: ...

    handler(take).call(DomainEvent("x"))
    assert log == ["engine for x"] * 2


@pytest.mark.parametrize("error", [ValueError("no"), Retry(3), Reject(), KeyboardInterrupt()])
def test_dependencies_are_told_of_the_failure(log: Log, error: BaseException) -> None:
    def take(session: str = Depends(get_session), lock: str = Depends(get_lock)) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        handler(take).call(DomainEvent("x"))
    assert raised.value is error
    name = type(error).__name__
    assert log[3:] == [
        f"lock saw {name}",
        "close lock",
        f"session on engine saw {name}",
        "close session on engine",
    ]


def test_a_dependency_that_swallows_the_failure_does_not_make_it_a_success(log: Log) -> None:
    def tolerant() -> Iterator[None]:
        with contextlib.suppress(ValueError):
            yield
        log.append("suppressed")

    def take(data: dict[str, Any], one: None = Depends(tolerant), two: str = Depends(Connection)) -> None:
        raise ValueError(data["name"])

    with pytest.raises(ValueError, match="c"):
        handler(take).call(DomainEvent("x", {"name": "c"}))
    assert log == ["open c", "close c ValueError('c')", "suppressed"]


def test_a_dependency_that_fails_is_a_failure_that_those_before_it_see(log: Log) -> None:
    def broken() -> Iterator[None]:
        yield
        raise OSError("disk full")

    def take(session: str = Depends(get_session), last: None = Depends(broken)) -> None:
        log.append("handled")

    with pytest.raises(OSError, match="disk full"):
        handler(take).call(DomainEvent("x"))
    assert log[2:] == ["handled", "session on engine saw OSError", "close session on engine"]


def test_a_handler_is_not_called_when_a_dependency_cannot_be_made(log: Log) -> None:
    def refuse(session: str = Depends(get_session)) -> None:
        raise LookupError("none there")

    def take(nothing: None = Depends(refuse)) -> None:
        log.append("handled")

    with pytest.raises(LookupError):
        handler(take).call(DomainEvent("x"))
    assert log[1:] == [
        "open session on engine",
        "session on engine saw LookupError",
        "close session on engine",
    ]


def test_a_dependency_may_translate_a_failure_but_not_take_a_signal_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def translate() -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            raise RuntimeError("while it cleaned up") from error

    def take(data: dict[str, Any], nothing: None = Depends(translate)) -> None:
        raise Retry(5) if data["retry"] else ValueError

    with pytest.raises(RuntimeError):
        handler(take).call(DomainEvent("x", {"retry": False}))
    with pytest.raises(Retry):
        handler(take).call(DomainEvent("x", {"retry": True}))
    assert "a dependency failed while it cleaned up" in caplog.text


def test_dependencies_nobody_asks_for_are_made_first(log: Log) -> None:
    def take(lock: str = Depends(get_lock)) -> None:
        log.append("handled")

    handler(take, dependencies=(Depends(get_session),)).call(DomainEvent("x"))
    assert log[1:] == [
        "open session on engine",
        "open lock",
        "handled",
        "close lock",
        "close session on engine",
    ]


# --- async ------------------------------------------------------------------------------


async def aget_engine() -> str:
    await asyncio.sleep(0)
    return "async engine"


async def aget_session(engine: str = Depends(aget_engine)) -> AsyncIterator[str]:
    with LOG.opened(f"session on {engine}"):
        yield "async session"


@contextlib.asynccontextmanager
async def aget_lock() -> AsyncIterator[str]:
    with LOG.opened("async lock"):
        yield "async lock"


def test_an_async_handler_has_dependencies_of_both_kinds(log: Log) -> None:
    async def take(
        session: str = Depends(aget_session),
        lock: str = Depends(aget_lock),
        other: str = Depends(get_session),
        named: str = Depends(Connection),
    ) -> None:
        await asyncio.sleep(0)
        log.append(", ".join([session, lock, other, named]))

    bound = handler(take)
    assert bound.is_async
    asyncio.run(bound.call(DomainEvent("x", {"name": "c"})))
    assert log == [
        "open session on async engine",
        "open async lock",
        "engine for x",
        "open session on engine",
        "open c",
        "async session, async lock, session, c",
        "close c None",
        "close session on engine",
        "close async lock",
        "close session on async engine",
    ]


def test_async_dependencies_are_told_of_the_failure(log: Log) -> None:
    async def take(session: str = Depends(aget_session), other: str = Depends(get_session)) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(handler(take).call(DomainEvent("x")))
    assert log[-4:] == [
        "session on engine saw ValueError",
        "close session on engine",
        "session on async engine saw ValueError",
        "close session on async engine",
    ]


# --- what is refused --------------------------------------------------------------------


def circle_one(two: Annotated[str, Depends(lambda: circle_two)]) -> str: ...
def circle_two(three: Annotated[str, Depends(circle_one)]) -> str: ...


class Snake:
    def __init__(self, tail: Annotated[Any, Depends(lambda: None)]) -> None: ...


Snake.__init__.__annotations__["tail"] = Annotated[Any, Depends(Snake)]


def generator(event: DomainEvent) -> Iterator[None]:
    yield


def async_dependency_in_sync(session: str = Depends(aget_session)) -> None: ...


def unknown_type(event: DomainEvent, amount: complex) -> None: ...


def hidden_type(amount: Decimal) -> None: ...


def unknown_word(event: DomainEvent, land: Annotated[str, RoutingKeySegment("country")]) -> None: ...


def needs_too_much(number: int) -> str: ...


def through_dependency(value: str = Depends(needs_too_much)) -> None: ...


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: None, "it takes none"),
        (lambda event, other: None, "the parameter 'other'"),
        (lambda *, event: None, "the parameter 'event'|^$"),
        (unknown_type, r"'amount' of type <class 'complex'>"),
        (hidden_type, "of type Decimal, which cannot be found"),
        (unknown_word, "no key of it has that name"),
        (generator, "is a generator function"),
        (async_dependency_in_sync, "which is async, and is not async itself"),
        (through_dependency, "a dependency of .*through_dependency, .*'number'"),
        (Snake, "go round in a circle: .*Snake -> .*Snake"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__qualname__,
)
def test_what_cannot_be_called_is_refused_at_declaration(call: Callable[..., Any], complaint: str) -> None:
    if complaint.endswith("^$"):
        assert handler(call).call(DomainEvent("x")) is None
        return
    with pytest.raises(HandlerError, match=complaint):
        handler(call)


def test_what_is_no_dependency_is_refused() -> None:
    with pytest.raises(HandlerError, match="something to call"):
        Depends("session")  # type: ignore[arg-type]
    with pytest.raises(HandlerError, match="among its dependencies"):
        handler(print, dependencies=(get_session,))


def test_handlers_without_pydantic_work_without_pydantic() -> None:
    code = """
import sys
sys.modules["pydantic"] = None
from typing import Annotated
from domain_event_broker import Depends, DomainEvent, RoutingKeySegment
from domain_event_broker.errors import MissingDependency
from domain_event_broker.handlers import Handler
import dataclasses

@dataclasses.dataclass
class Parcel:
    weight: int

def engine(): return "engine"
First = Annotated[str, RoutingKeySegment(0)]
def take(event: DomainEvent, data: dict, engine: Annotated[str, Depends(engine)], word: First):
    return data["a"], engine, word
def typed(parcel: Parcel): ...
print(Handler(take, "h", ("#",)).call(DomainEvent("x.y", {"a": 1})))
try:
    Handler(typed, "h", ("#",))
except MissingDependency as error:
    print(error)
print("asyncio.run" if "domain_event_broker.injection.asynchronous" in sys.modules else "no loop")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "(1, 'engine', 'x')",
        "a parameter of type Parcel is filled by pydantic, which is not installed: "
        "pip install 'django-domain-event-broker[typed]'",
        "no loop",
    ]


# --- where handlers are declared --------------------------------------------------------


@pytest.fixture
def handlers() -> Registry:
    return Registry()


def test_one_handler_has_many_events_and_one_event_many_handlers(handlers: Registry) -> None:
    @subscribe(OrderPlaced, "user.#", OrderRefunded, name="one", to=handlers)
    def one(event: DomainEvent) -> None: ...

    @subscribe("order.*.placed", name="two", to=handlers)
    def two(order: OrderPlaced) -> None: ...

    assert [each.binding_keys for each in handlers.all()] == [
        ("order.*.placed", "user.#", "order.refunded"),
        ("order.*.placed",),
    ]


def test_a_class_says_itself_what_it_handles(handlers: Registry) -> None:
    @subscribe(to=handlers)
    class Projection:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def subscribed_to(self) -> list[Any]:
            return [OrderPlaced, "order.lost"]

        def can_handle(self, event: DomainEvent) -> bool:
            return event.routing_key != "order.lost"

        def handle(self, order: OrderPlaced) -> int:
            self.seen.append(order.number)
            return len(self.seen)

    (declared,) = handlers.all()
    assert declared.name.endswith("Projection")
    assert declared.binding_keys == ("order.*.placed", "order.lost")
    assert declared.can_handle is not None
    assert not declared.can_handle(DomainEvent("order.lost"))
    assert [declared.call(placed()), declared.call(placed())] == [1, 2]
    assert Projection().subscribed_to()


def test_an_object_can_be_a_subscriber_with_other_events_than_it_says(handlers: Registry) -> None:
    class Audit:
        def subscribed_to(self) -> list[str]:
            return ["#"]

        def handle(self, event: DomainEvent) -> str:
            return event.routing_key

    audit = subscribe("user.*", name="audit", to=handlers)(Audit())
    assert isinstance(audit, Audit)
    assert handlers.all()[0].binding_keys == ("user.*",)
    assert handlers.all()[0].call(DomainEvent("user.new")) == "user.new"


def test_a_group_has_defaults_that_a_handler_overrides(handlers: Registry) -> None:
    group = HandlerGroup("placed", prefix="order", to=handlers, retries=5, timeout=9, queue_type="classic")

    @group.subscribe(name="a")
    def a(event: DomainEvent) -> None: ...

    @group.subscribe("refunded", OrderPlaced, name="b", max_retries=1, timeout=3)
    def b(event: DomainEvent) -> None: ...

    @group.subscribe("user.*", prefix="", name="c", retry_interval=2)
    def c(event: DomainEvent) -> None: ...

    seen = [(h.binding_keys, h.max_retries, h.timeout, h.queue_type) for h in handlers.all()]
    assert seen == [
        (("order.placed",), 5, 9, "classic"),
        (("order.refunded", "order.*.placed"), 1, 3, "classic"),
        (("user.*",), 5, 9, "classic"),
    ]
    assert handlers.all()[2].policy(0).next_delay(ValueError(), 4) == 2
    assert handlers.all()[2].policy(0).known_delays() == (2,)


def test_dependencies_of_a_group_are_made_for_each_of_its_handlers(handlers: Registry, log: Log) -> None:
    group = HandlerGroup("#", dependencies=[Depends(get_session)], to=handlers)

    @group.subscribe(name="a")
    def a(event: DomainEvent) -> None:
        log.append("handled")

    handlers.all()[0].call(DomainEvent("x"))
    assert log[1:] == ["open session on engine", "handled", "close session on engine"]


def test_no_event_anywhere_is_a_type_error_that_names_both_places(handlers: Registry) -> None:
    group = HandlerGroup(prefix="order", to=handlers)
    with pytest.raises(TypeError, match=r"@group.subscribe\(...\) name one, nor HandlerGroup\(...\)"):
        group.subscribe(name="a")(lambda event: None)
    with pytest.raises(TypeError, match=r"@subscribe\(...\) name one, nor has it a method subscribed_to"):
        subscribe(name="a", to=handlers)(lambda event: None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"colour": "red"}, "'colour' is not an option"),
        ({"name": "all"}, "each handler has a name of its own"),
        ({"retries": 1, "max_retries": 2}, "both max_retries=2 and retries="),
    ],
)
def test_a_group_with_options_that_make_no_sense_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(HandlerError, match=complaint):
        HandlerGroup("#", **options)


def test_a_class_without_a_routing_key_is_no_event(handlers: Registry) -> None:
    with pytest.raises(HandlerError, match="is no class of events"):
        subscribe(Customer, "x", name="a", to=handlers)(lambda event: None)


def test_what_a_partial_gives_by_name_stays_as_it_is() -> None:
    seen: list[tuple[str, int]] = []

    @dataclasses.dataclass
    class Configuration:
        number: int

    def work(event: DomainEvent, configuration: Configuration) -> None:
        seen.append((event.routing_key, configuration.number))

    call = Handler(functools.partial(work, configuration=Configuration(7)), "work", ("#",)).call
    call(DomainEvent("a.b", {"number": 1}))
    assert seen == [("a.b", 7)]
