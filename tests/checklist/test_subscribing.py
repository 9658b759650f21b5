"""The checklist of bus libraries, rows 9 and 14 to 24: subscribing, and handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import pytest

from domain_event_broker import (
    Depends,
    DomainEvent,
    EventModel,
    HandlerGroup,
    Publisher,
    Reject,
    Subscriber,
)
from domain_event_broker.bus import MemoryBus
from domain_event_broker.errors import ConfirmTimeout, HandlerError
from domain_event_broker.events import encode
from domain_event_broker.handlers import Registry
from domain_event_broker.transports.rabbitmq import publishing
from tests.checklist.conftest import consuming, declared
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


class Placed(EventModel, routing_key="order.placed"):
    """A typed event."""

    total: int = 0


def publish(bench: Bench, *keys: str) -> None:
    """Publish an event for each routing key."""
    with Publisher(bench.settings.url[0]) as direct:
        for key in keys:
            direct.publish(DomainEvent(key, {"total": 1}))


def test_row_09_a_timeout_of_the_broker_calls_on_timeout_whether_it_is_async_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, str]] = []

    def plain(event: DomainEvent) -> None:
        told.append(("plain", event.uuid_string))

    async def coroutine(event: DomainEvent) -> None:
        told.append(("coroutine", event.uuid_string))

    event = DomainEvent("order.placed", {})
    with PrivateRabbitMQ() as server:
        for callback in (plain, coroutine):
            direct = Publisher(server.url(), on_timeout=callback)
            direct.connect()
            direct.publish(DomainEvent("order.placed", {}))
            server.freeze()
            with monkeypatch.context() as patch:
                patch.setattr(publishing, "CONFIRM_TIMEOUT", 0.5)
                with pytest.raises(ConfirmTimeout):
                    direct.publish(event)
            server.thaw()
            direct.disconnect()
    assert told == [("plain", event.uuid_string), ("coroutine", event.uuid_string)]


def test_row_14_star_hash_and_exact_bindings(bench: Bench) -> None:
    seen: dict[str, list[str]] = {"exact": [], "star": [], "hash": []}
    word = bench.fresh_name("w")
    keys = {"exact": f"{word}.a.b", "star": f"{word}.*.b", "hash": f"{word}.#"}
    handlers = [
        declared(bench, lambda event, kind=kind: seen[kind].append(event.routing_key), key)
        for kind, key in keys.items()
    ]
    with bench.consuming(*handlers):
        publish(bench, f"{word}.a.b", f"{word}.c.b", f"{word}.a.b.c", word)
        wait_until(lambda: sum(map(len, seen.values())) >= 7, 30)
    assert seen["exact"] == [f"{word}.a.b"]
    assert seen["star"] == [f"{word}.a.b", f"{word}.c.b"]
    assert seen["hash"] == [f"{word}.a.b", f"{word}.c.b", f"{word}.a.b.c", word]


@pytest.mark.parametrize(("kind", "reached"), [("topic", 2), ("direct", 1), ("fanout", 3), ("headers", 3)])
def test_row_15_topic_direct_fanout_and_headers_exchanges(
    on_rabbitmq: Bench, kind: str, reached: int
) -> None:
    exchange = on_rabbitmq.fresh_name(kind)
    on_rabbitmq.settings = replace(on_rabbitmq.settings, exchange=exchange, exchange_type=kind)
    for key in ("order.placed", "order.*" if kind != "direct" else "order.paid", "user.left"):
        declared(on_rabbitmq, lambda event: None, key, name=f"{exchange}-{key.partition('*')[0]}")
    names = [f"{exchange}-{key}" for key in ("order.placed", "order.", "order.paid", "user.left")]
    direct = Publisher(on_rabbitmq.settings.url[0], exchange, kind)
    direct.publish(DomainEvent("order.placed", {}))
    direct.disconnect()
    with on_rabbitmq.transport() as transport:
        wait_until(lambda: sum(each.ready for each in transport.stats(names).values()) == reached, 30)


def test_row_16_bindings_are_added_at_run_time(bench: Bench) -> None:
    seen: list[str] = []
    word = bench.fresh_name("w")
    with Subscriber(bench.settings.url[0]) as subscriber:
        subscriber.register(lambda event: seen.append(event.routing_key), word, [f"{word}.one"])
        publish(bench, f"{word}.one", f"{word}.two")
        subscriber.register(lambda event: seen.append(event.routing_key), f"{word}-2", [f"{word}.two"])
        publish(bench, f"{word}.two")
        with consuming(subscriber):
            wait_until(lambda: len(seen) >= 2, 30)
    assert sorted(seen) == [f"{word}.one", f"{word}.two"]


def test_row_16_classes_of_events_are_bound_at_run_time() -> None:
    seen: list[int] = []

    def note(order: Placed) -> None:
        seen.append(order.total)

    with MemoryBus() as bus:
        bus.subscribe(Placed, note)
        bus.publish(Placed(total=7))
    assert seen == [7]


def test_row_17_one_handler_that_fails_stops_no_other(bench: Bench) -> None:
    seen: list[str] = []
    word = bench.fresh_name("w")

    def fail(event: DomainEvent) -> None:
        raise ValueError("no")

    failing = declared(bench, fail, f"{word}.*")
    others = [declared(bench, lambda event: seen.append(event.routing_key), f"{word}.*") for _ in range(2)]
    with bench.consuming(failing, *others):
        publish(bench, f"{word}.a", f"{word}.b")
        wait_until(lambda: len(seen) == 4, 30)
        assert len(bench.dead_letters(failing, 2)) == 2


def test_row_18_a_wildcard_subscriber_receives_every_event(bench: Bench) -> None:
    seen: list[str] = []
    # An exchange of its own: the queue stays, and would get the events of all other tests, too.
    bench.settings = replace(bench.settings, exchange=bench.fresh_name("exchange"))
    handler = declared(bench, lambda event: seen.append(event.routing_key), "#")
    keys = ["order.placed", "one-word", "a.b.c.d"]
    with bench.consuming(handler):
        bench.send([encode(DomainEvent(key, {})) for key in keys])
        wait_until(lambda: len(seen) >= 3, 30)
    assert seen == keys


def test_row_19_a_subscriber_object_declares_its_events(bench: Bench) -> None:
    seen: list[str] = []
    word = bench.fresh_name("w")

    class Projection:
        def subscribed_to(self) -> list[Any]:
            return [f"{word}.placed", f"{word}.cancelled"]

        def handle(self, event: DomainEvent) -> None:
            seen.append(event.routing_key)

    handler = declared(bench, Projection)
    with bench.consuming(handler):
        publish(bench, f"{word}.placed", f"{word}.paid", f"{word}.cancelled")
        wait_until(lambda: len(seen) >= 2, 30)
    assert seen == [f"{word}.placed", f"{word}.cancelled"]


def test_row_20_unsubscribe_tells_whether_and_subscriptions_are_counted_and_cleared() -> None:
    def one(event: DomainEvent) -> None: ...

    def other(event: DomainEvent) -> None: ...

    with MemoryBus() as bus:
        bus.subscribe("order.*", one)
        bus.subscribe("order.*", other)
        bus.subscribe_to_all_events(one)
        assert (bus.get_subscriber_count(), bus.get_subscriber_count("order.*")) == (3, 2)
        assert [bus.unsubscribe("order.*", one), bus.unsubscribe("order.*", one)] == [True, False]
        assert (bus.get_subscriber_count("order.*"), bus.get_wildcard_subscriber_count()) == (1, 1)
        bus.clear_subscribers()
        assert bus.get_subscriber_count() == 0


def test_row_21_a_filter_leaves_events_out(bench: Bench) -> None:
    seen: list[int] = []

    def is_large(event: DomainEvent) -> bool:
        return bool(event.data["value"] > 10)

    handler = declared(bench, lambda event: seen.append(event.data["value"]), can_handle=is_large)
    with bench.consuming(handler) as consumer:
        bench.publish(handler, 1, 11, 2, 12)
        bench.wait_until_empty(handler)
        wait_until(lambda: consumer.outcomes[handler.name, "filtered"] == 2, 30)
    assert seen == [11, 12]
    assert bench.stats(handler).dead == 0


def test_row_22_handlers_may_be_async_or_not(bench: Bench) -> None:
    seen: list[str] = []

    def plain(event: DomainEvent) -> None:
        seen.append("plain")

    async def coroutine(event: DomainEvent) -> None:
        await asyncio.sleep(0)
        seen.append("coroutine")

    word = bench.fresh_name("w")
    handlers = [declared(bench, call, f"{word}.*") for call in (plain, coroutine)]
    with bench.consuming(*handlers):
        publish(bench, f"{word}.placed")
        wait_until(lambda: sorted(seen) == ["coroutine", "plain"], 30)


def test_row_23_a_group_has_defaults_that_a_handler_overrides_and_neither_is_an_error() -> None:
    registry = Registry()
    group = HandlerGroup("placed", prefix="order", max_retries=5, to=registry)

    @group.subscribe(name="default")
    def default(event: DomainEvent) -> None: ...

    @group.subscribe("paid", "user.*", name="own", prefix="", max_retries=1)
    def own(event: DomainEvent) -> None: ...

    one, other = registry.select(["default", "own"])
    assert (one.binding_keys, one.max_retries) == (("order.placed",), 5)
    assert (other.binding_keys, other.max_retries) == (("paid", "user.*"), 1)
    with pytest.raises(TypeError, match=r"HandlerGroup\(...\)"):

        @HandlerGroup(to=registry).subscribe(name="neither")
        def neither(event: DomainEvent) -> None: ...


def test_row_24_dependencies_are_nested_cached_cleaned_up_told_of_failures_and_never_circular(
    bench: Bench,
) -> None:
    story: list[str] = []

    def settings() -> str:
        story.append("settings")
        return "settings"

    def session(used: Annotated[str, Depends(settings)]) -> Iterator[str]:
        story.append("open")
        try:
            yield "session"
            story.append("commit")
        except Exception as error:
            story.append(f"rollback {type(error).__name__}")
            raise
        finally:
            story.append("close")

    def handle(
        event: DomainEvent,
        first: Annotated[str, Depends(session)],
        again: str = Depends(session),
        used: str = Depends(settings),
    ) -> None:
        story.append(f"handle {first} {again} {used}")
        if event.data["value"] == "bad":
            raise Reject("no")

    handler = declared(bench, handle)
    with bench.consuming(handler):
        bench.publish(handler, "good", "bad")
        bench.dead_letters(handler, 1)
        bench.wait_until_empty(handler)
    begin = ["settings", "open", "handle session session settings"]
    assert story == [*begin, "commit", "close", *begin, "rollback Reject", "close"]

    def circular(value: Any = None) -> None: ...

    circular.__defaults__ = (Depends(circular),)
    with pytest.raises(HandlerError, match="circular"):
        declared(bench, circular)
