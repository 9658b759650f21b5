"""The testing kit in a program without Django: nothing is sent, everything is seen."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from domain_event_broker import (
    Backoff,
    DomainEvent,
    Publisher,
    Reject,
    Retry,
    publish_domain_event,
    publisher,
)
from domain_event_broker.errors import HandlerError, InvalidEvent
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler, Registry, subscribe
from domain_event_broker.ports import Action
from domain_event_broker.subscriber import install_inbox, installed_inbox
from domain_event_broker.testing import (
    CapturedEvents,
    capture_events,
    make_delivery,
    make_event,
    run_handlers,
)
from domain_event_broker.typed import EventModel


@pytest.fixture(autouse=True)
def _no_django() -> Iterator[None]:
    """Neither outbox nor inbox, as in a program that has no database."""
    outbox, inbox = publisher.installed_outbox(), installed_inbox()
    publisher.install_outbox(None)
    install_inbox(DirectInbox())
    yield
    publisher.install_outbox(outbox)
    install_inbox(inbox)


def handler(call, name: str, *keys: str, **options) -> Handler:
    """Return a handler that belongs to one test."""
    return Handler(call=call, name=name, binding_keys=keys or ("order.*",), **options)


def place(total: int = 25, **fields) -> DomainEvent:
    """Publish what tests look for."""
    return publish_domain_event("order.placed", {"total": total, "note": "ü"}, domain_object_id="7", **fields)


# --- capturing ----------------------------------------------------------------------------


def test_what_is_published_is_seen_and_not_sent(captured_events: CapturedEvents) -> None:
    event = place()
    assert list(captured_events) == [event]
    assert captured_events.routing_keys == ["order.placed"]
    assert captured_events[0].data == {"total": 25, "note": "ü"}


def test_what_goes_to_another_broker_or_through_a_publisher_is_seen_too(captured_events) -> None:
    place(connection_settings="amqp://nobody:nothing@127.0.0.1:1/%2F")
    with Publisher("amqp://nobody:nothing@127.0.0.1:1/%2F") as direct:
        direct.publish(DomainEvent("order.paid", {}))
    assert captured_events.routing_keys == ["order.placed", "order.paid"]


def test_one_capture_within_another_lets_both_see() -> None:
    with capture_events() as outer:
        place()
        with capture_events() as inner:
            place()
    assert (len(outer), len(inner)) == (1, 1)


def test_nothing_is_captured_after_the_end(captured_events) -> None:
    with capture_events() as inner:
        pass
    place()
    assert len(inner) == 0
    assert len(captured_events) == 1


def test_an_event_that_cannot_be_published_is_refused_as_ever(captured_events) -> None:
    with pytest.raises(InvalidEvent):
        publish_domain_event("order.placed", {"when": object()})
    captured_events.assert_not_published()


# --- asserting ----------------------------------------------------------------------------


def test_an_assertion_returns_the_event_it_is_about(captured_events) -> None:
    event = place()
    place(30)
    found = captured_events.assert_published("order.*", including={"total": 25}, domain_object_id=7)
    assert found == event
    captured_events.assert_published("order.placed", times=2)
    captured_events.assert_published("order.#", times=None)
    captured_events.assert_published("order.placed", {"total": 30, "note": "ü"})
    captured_events.assert_not_published("order.placed", including={"total": 31})
    assert [event.data["total"] for event in captured_events.of("order.placed")] == [25, 30]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (("order.paid",), ["order.paid was not published", "order.placed of '7'"]),
        (("order.placed", {"total": 1}), ["but total is 25, not 1; note is there"]),
        (("order.placed", [1]), ['but data is {"total": 25, "note": "ü"}']),
    ],
)
def test_an_assertion_that_fails_says_what_was_published_instead(captured_events, wanted, told) -> None:
    place()
    with pytest.raises(AssertionError) as failed:
        captured_events.assert_published(*wanted)
    for words in told:
        assert words in str(failed.value)


def test_an_assertion_names_what_differs(captured_events) -> None:
    place()
    with pytest.raises(AssertionError, match="colour is missing"):
        captured_events.assert_published("order.placed", including={"colour": "red"})
    with pytest.raises(AssertionError, match="domain_object_id is '7', not '8'"):
        captured_events.assert_published("order.placed", domain_object_id=8)
    with pytest.raises(AssertionError, match="was published, but once instead of 2 times"):
        captured_events.assert_published("order.placed", times=2)
    with pytest.raises(AssertionError, match=r"order.placed was published \(once\)"):
        captured_events.assert_not_published("order.placed")
    captured_events.clear()
    with pytest.raises(AssertionError, match=r"Nothing was published\."):
        captured_events.assert_published("order.placed")


def test_a_long_list_is_cut(captured_events) -> None:
    for number in range(30):
        place(number)
    with pytest.raises(AssertionError, match="and 10 more"):
        captured_events.assert_published("order.paid")


# --- handlers -----------------------------------------------------------------------------


def test_handlers_get_what_was_published_and_what_they_publish(captured_events) -> None:
    calls: list[str] = []

    def charge(event: DomainEvent) -> None:
        calls.append(f"charge {event.data['total']}")
        publish_domain_event("payment.charged", {}, domain_object_id=event.domain_object_id)

    def ship(event: DomainEvent) -> None:
        calls.append(f"ship {event.domain_object_id}")

    place()
    report = captured_events.run_handlers([handler(charge, "charge"), handler(ship, "ship", "payment.*")])
    assert calls == ["charge 25", "ship 7"]
    report.assert_handled("charge")
    report.assert_handled("ship", times=1)
    charged = captured_events.assert_published("payment.charged")
    assert charged.causation_id == captured_events[0].uuid_string


def test_an_event_is_given_once_however_often_handlers_are_run(captured_events) -> None:
    calls: list[str] = []
    place()
    captured_events.run_handlers([handler(lambda event: calls.append(event.routing_key), "one")])
    captured_events.run_handlers()
    place()
    captured_events.run_handlers()
    assert calls == ["order.placed"] * 2


def test_retries_come_after_their_delays_without_waiting() -> None:
    seen: list[int] = []

    def fail_twice(event: DomainEvent) -> None:
        seen.append(event.retries)
        if event.retries < 2:
            raise Retry(3600)

    report = run_handlers(make_event("order.placed"), handlers=[handler(fail_twice, "slow", max_retries=5)])
    assert seen == [0, 1, 2]
    assert 7200 <= report.seconds < 7260
    report.assert_retried("slow", times=2)
    report.assert_handled("slow")


def test_a_backoff_is_followed_until_the_retries_are_used_up() -> None:
    def fail(event: DomainEvent) -> None:
        raise ConnectionError("nobody there")

    failing = handler(fail, "mail", max_retries=3, backoff=Backoff.exponential(10, factor=2, jitter=0))
    report = run_handlers(make_event("order.placed"), handlers=[failing], allow_dead_letters=True)
    assert [run.delay for run in report.of("mail", Action.RETRY)] == [10, 20, 40]
    letter = report.assert_dead_lettered("mail", ConnectionError)
    assert letter.failure is not None
    assert (letter.failure.reason, letter.failure.attempts) == ("retries-exhausted", 4)


def test_a_dead_letter_fails_the_test_that_does_not_expect_it() -> None:
    def refuse(event: DomainEvent) -> None:
        raise Reject("too large")

    with pytest.raises(AssertionError) as failed:
        run_handlers(make_event("order.placed"), handlers=[handler(refuse, "risk")])
    told = str(failed.value)
    assert "risk order.placed: rejected domain_event_broker.errors.Reject too large" in told
    assert "in refuse" in told


def test_an_assertion_about_handlers_says_what_they_did() -> None:
    report = run_handlers(make_event("order.placed"), handlers=[handler(lambda event: None, "one")])
    with pytest.raises(AssertionError, match=r"one order\.placed, try 1: handled"):
        report.assert_handled("one", times=2)
    with pytest.raises(AssertionError, match="no event of one was dead-lettered because of ValueError"):
        report.assert_dead_lettered("one", ValueError)
    with pytest.raises(AssertionError, match="one retried 0 events"):
        report.assert_retried("one")


def test_dead_letters_can_be_replayed(captured_events) -> None:
    works: list[bool] = []

    def charge(event: DomainEvent) -> None:
        if not works:
            raise ConnectionError("the provider is down")

    place()
    captured_events.run_handlers([handler(charge, "charge")], allow_dead_letters=True)
    works.append(True)
    report = captured_events.replay_dead_letters("charge")
    report.assert_handled("charge")
    assert report.dead_letters == []


def test_one_that_drops_what_fails_has_no_dead_letters() -> None:
    def fail(event: DomainEvent) -> None:
        raise ValueError

    report = run_handlers(make_event("order.placed"), handlers=[handler(fail, "x", dead_letter=False)])
    assert report.dead_letters == []
    assert [run.action for run in report.runs] == [Action.DEAD]


def test_events_that_nobody_handles_are_told() -> None:
    report = run_handlers(make_event("nobody.cares"), handlers=[handler(lambda event: None, "one")])
    assert [event.routing_key for event in report.unhandled] == ["nobody.cares"]
    assert report.runs == []


def test_handlers_that_go_round_in_a_ring_are_stopped() -> None:
    def again(event: DomainEvent) -> None:
        publish_domain_event("order.placed", {})

    with pytest.raises(AssertionError, match="50 deliveries, and still more"):
        run_handlers(make_event("order.placed"), handlers=[handler(again, "ring")], max_deliveries=50)


def test_a_handler_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(HandlerError, match="'nobody' is no handler"):
        run_handlers(make_event(), handlers=["nobody"])


# --- factories ----------------------------------------------------------------------------


def test_an_event_of_the_factory_went_to_json_and_back() -> None:
    event = make_event("order.placed", {"items": (1, 2)}, 7, retries=2)
    assert (event.data, event.domain_object_id, event.retries) == ({"items": [1, 2]}, "7", 2)
    with pytest.raises(InvalidEvent):
        make_event("order.placed", {"items": {1, 2}})


def test_a_delivery_of_the_factory_holds_the_event_or_what_is_none() -> None:
    event = make_event("order.placed", {"total": 25})
    delivery = make_delivery(event, queue="billing", retries=1, headers={"tenant": "blue"})
    assert DomainEvent.from_json(delivery.body) == event
    assert (delivery.queue, delivery.retries, delivery.headers["tenant"]) == ("billing", 1, "blue")
    assert make_delivery("order.placed", body=b"no JSON").body == b"no JSON"


# --- typed events ---------------------------------------------------------------------------


class Placed(EventModel, routing_key="order.{country}.placed", object_id="number"):
    """A typed event."""

    country: str
    number: int
    total: Decimal


PLACED = Placed(country="nl", number=7, total=Decimal("25.50"))


def test_typed_events_are_asserted_by_their_class_or_as_they_are(captured_events: CapturedEvents) -> None:
    publish_domain_event(PLACED)
    captured_events.assert_published(Placed, including={"country": "nl"}, domain_object_id=7)
    captured_events.assert_published(PLACED)
    captured_events.assert_not_published(PLACED.model_copy(update={"country": "be"}))
    with pytest.raises(AssertionError, match=r"(?s)Placed with data .*but total is "):
        captured_events.assert_published(PLACED.model_copy(update={"total": Decimal(1)}))
    with pytest.raises(TypeError, match="is no kind of events"):
        captured_events.of(int)


def test_typed_events_can_be_given_to_handlers() -> None:
    seen: list[Placed] = []

    def take(event: Placed) -> None:
        seen.append(event)

    typed = Handler(call=take, name="typed", binding_keys=(Placed,))
    report = run_handlers(PLACED, make_event(PLACED, retries=1), handlers=[typed])
    report.assert_handled("typed", times=2)
    assert seen == [PLACED, PLACED]


def test_a_handler_is_named_or_given_as_it_was_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Registry()
    monkeypatch.setattr("domain_event_broker.testing.running.known_handlers", lambda: known)

    @subscribe("order.*", name="function", to=known)
    def function(event: Placed) -> None: ...

    @subscribe("order.#", name="class", to=known)
    class Class:
        def handle(self, event: DomainEvent) -> None: ...

    assert run_handlers(make_event("order.x"), handlers=["class"]).of(Class)
    report = run_handlers(PLACED)
    report.assert_handled(Class)
    assert not report.of(function), "its binding key has two words, and the event three"


def test_a_method_of_an_object_is_found_among_the_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ledger:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def book(self, event: DomainEvent) -> None:
            self.seen.append(event.routing_key)

    ledger, other, known = Ledger(), Ledger(), Registry()
    for name, each in (("ledger-book", ledger), ("other-book", other)):
        subscribe("ledger.*", name=name, to=known)(each.book)
    monkeypatch.setattr("domain_event_broker.testing.running.known_handlers", lambda: known)
    run_handlers(make_event("ledger.booked"), handlers=[ledger.book])
    assert (ledger.seen, other.seen) == (["ledger.booked"], [])
