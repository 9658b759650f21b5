"""A handler that returns work which nobody does has failed: its event is not acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from domain_event_broker import DomainEvent
from domain_event_broker.errors import HandlerError
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox, execute
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Action, Delivery
from domain_event_broker.retry import RetryPolicy

EVENT = DomainEvent("order.placed", {"number": 1})


async def bill(event: DomainEvent) -> None:
    raise AssertionError("nobody awaits this")


def forgetful(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is not async, as a decorator does whose author did not think of it."""

    def call(event: DomainEvent) -> Any:
        return function(event)

    return call


async def forgets_to_await(event: DomainEvent) -> Any:
    return bill(event)


async def numbers() -> Any:
    yield 1


UNDONE = {
    "coroutine": forgetful(bill),
    "generator": lambda event: (number for number in range(3)),
    "async_generator": lambda event: numbers(),
}


def handler(call: Callable[..., Any], **options: Any) -> Handler:
    return Handler(call, "shop.bill", ("#",), **options)


def with_data(call: Callable[..., Any]) -> Callable[..., Any]:
    def work(event: DomainEvent, data: dict[str, Any]) -> Any:
        return call(event)

    return work


@pytest.mark.parametrize("kind", UNDONE)
@pytest.mark.parametrize("shape", [lambda call: call, with_data], ids=["plain", "injected"])
def test_what_nobody_would_run_is_refused(kind: str, shape: Callable[..., Any]) -> None:
    with pytest.raises(HandlerError, match=f"returned a {kind}, which nobody runs; make it 'async def'"):
        DirectInbox().run(handler(shape(UNDONE[kind])), EVENT)


@pytest.mark.parametrize("timeout", [None, 60], ids=["plain", "injected"])
def test_an_async_handler_that_forgets_to_await_is_refused(timeout: float | None) -> None:
    with ThreadPoolExecutor() as threads, pytest.raises(HandlerError, match="returned a coroutine"):
        asyncio.run(DirectInbox().arun(handler(forgets_to_await, timeout=timeout), EVENT, threads))


def test_what_a_handler_returns_otherwise_is_its_own_affair() -> None:
    assert DirectInbox().run(handler(lambda event: [event]), EVENT)


def test_the_event_of_undone_work_is_dead_lettered_with_the_reason() -> None:
    message = encode(EVENT)
    delivery = Delivery("shop.bill", message.body, message.routing_key, message.event_id, message.headers)
    ended = execute(delivery, handler(forgetful(bill)), RetryPolicy(0, (), None), DirectInbox())
    assert ended.action is Action.DEAD
    assert ended.failure is not None
    assert "which nobody runs" in ended.failure.message
