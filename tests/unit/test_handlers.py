"""How handlers are declared, and what is refused at the start."""

from __future__ import annotations

from typing import Any

import pytest

from domain_event_broker import Backoff, DomainEvent, Subscriber, subscribe
from domain_event_broker.errors import HandlerError
from domain_event_broker.handlers import Handler, Registry


@pytest.fixture
def handlers() -> Registry:
    return Registry()


def test_the_decorated_function_stays_what_it_is(handlers: Registry) -> None:
    @subscribe("order.placed", name="billing", to=handlers)
    def charge(event: DomainEvent) -> str:
        return event.routing_key

    assert charge(DomainEvent("order.placed")) == "order.placed"
    assert [each.name for each in handlers.all()] == ["billing"]
    assert handlers.all()[0].call is charge


def test_a_handler_is_named_after_its_function(handlers: Registry) -> None:
    def charge(event: DomainEvent) -> None: ...

    charge.__module__, charge.__qualname__ = "shop.payments.subscribers", "charge"
    subscribe("order.placed", to=handlers)(charge)
    assert handlers.all()[0].name == "shop.payments.charge"


def test_two_handlers_of_one_name_are_refused_naming_both(handlers: Registry) -> None:
    def one(event: DomainEvent) -> None: ...

    def other(event: DomainEvent) -> None: ...

    subscribe("a", name="same", to=handlers)(one)
    with pytest.raises(HandlerError, match=r"two handlers are named 'same': .*one and .*other"):
        subscribe("b", name="same", to=handlers)(other)


def test_one_function_under_two_subscribes_of_one_name_is_refused(handlers: Registry) -> None:
    def charge(event: DomainEvent) -> None: ...

    subscribe("order.placed", to=handlers)(charge)
    with pytest.raises(HandlerError, match=r"for order\.placed, and for order\.paid; .*in one @subscribe"):
        subscribe("order.paid", to=handlers)(charge)
    assert handlers.all()[0].binding_keys == ("order.placed",)


def test_a_module_that_is_imported_anew_declares_its_handlers_anew(handlers: Registry) -> None:
    def declare() -> Any:
        def charge(event: DomainEvent) -> None: ...

        return subscribe("order.placed", to=handlers)(charge)

    declare()
    newer = declare()
    assert [each.call for each in handlers.all()] == [newer]


def test_a_subscriber_may_ask_for_one_event_as_text(handlers: Registry) -> None:
    @subscribe(name="billing", to=handlers)
    class Billing:
        def subscribed_to(self) -> str:
            return "order.placed"

        def handle(self, event: DomainEvent) -> None: ...

    assert handlers.all()[0].binding_keys == ("order.placed",)


def test_the_older_subscriber_takes_all_words_for_retries() -> None:
    printer = Subscriber(None)
    printer.register(lambda event: None, "one", ["a"], retries=3)
    printer.register(lambda event: None, "other", ["a"], max_retries=2)
    printer.register(lambda event: None, "none", ["a"])
    retries = {each.name: each.max_retries for each in printer._registry.all()}
    assert retries == {"one": 3, "other": 2, "none": 0}


def test_unknown_names_list_the_known(handlers: Registry) -> None:
    subscribe("a", name="known", to=handlers)(lambda event: None)
    with pytest.raises(HandlerError, match="no handler is named 'wrong'; known are: known"):
        handlers.select(["wrong"])
    assert [each.name for each in handlers.select([])] == ["known"]
    assert [each.name for each in handlers.select(["known", "known"])] == ["known"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"call": "text"}, "which cannot be called"),
        ({"call": lambda: None}, "cannot be called with one argument"),
        ({"call": lambda a, b: None}, "cannot be called with one argument"),
        ({"binding_keys": ()}, "has no binding key"),
        ({"binding_keys": ("order*",)}, "binding key 'order\\*'"),
        ({"binding_keys": (7,)}, "binding key 7 is of type int"),
        ({"name": ""}, "handler name '' is empty"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"max_retries": True}, "max_retries=True"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"prefetch": 1.5}, "prefetch=1.5"),
        ({"queue_type": "stream"}, "queue_type='stream'"),
        ({"retry_on": ("OSError",)}, "not an exception class"),
        ({"queue_type": "quorum", "exclusive": True}, "a quorum queue is always durable"),
    ],
)
def test_a_handler_that_cannot_be_served_is_refused_at_declaration(
    arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(HandlerError, match=complaint):
        Handler(**{"call": lambda event: None, "name": "n", "binding_keys": ("a",), **arguments})


def test_a_bound_method_a_class_instance_and_a_builtin_can_be_handlers() -> None:
    class Shop:
        def handle(self, event: DomainEvent) -> None: ...

        def __call__(self, event: DomainEvent) -> None: ...

    for call in (Shop().handle, Shop(), print, [].append):
        assert Handler(call, "n", ("a",)).call is not None


def test_the_policy_fills_in_the_default_of_the_settings() -> None:
    assert Handler(print, "n", ("a",)).policy(3).max_retries == 3
    assert Handler(print, "n", ("a",), max_retries=0, backoff=Backoff.fixed(1)).policy(3).max_retries == 0
