"""Workers that are closed leave nobody behind."""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from typing import Any

import pytest

from domain_event_broker import DomainEvent
from domain_event_broker.errors import InboxUnavailable
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox, Execution
from domain_event_broker.handlers import Handler
from domain_event_broker.patience import StopFlag
from domain_event_broker.ports import Delivery
from domain_event_broker.retry import RetryPolicy
from domain_event_broker.workers import Workers
from tests.harness.waiting import wait_until


class Away:
    """An inbox whose database is away."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        self.asked.set()
        raise InboxUnavailable("away")

    async def arun(self, handler: Handler, event: DomainEvent, threads: Executor) -> bool:
        return self.run(handler, event)


async def abill(event: DomainEvent) -> None: ...


def bill(event: DomainEvent) -> None: ...


class Broken(Execution):
    """The library fails while it handles an event."""

    def run(self, *given: Any) -> Any:
        raise RuntimeError("broken")

    async def arun(self, *given: Any) -> Any:
        raise RuntimeError("broken")


@pytest.mark.parametrize("call", [bill, abill], ids=["thread", "loop"])
@pytest.mark.parametrize(("dead_letter", "outcome"), [(True, "dead-lettered"), (False, "dropped")])
def test_what_becomes_of_an_event_whose_result_is_not_known_is_told_as_it_is(
    call: Any, dead_letter: bool, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = encode(DomainEvent("order.placed"))
    execution = Broken(Handler(call, "bill", ("#",), dead_letter=dead_letter), RetryPolicy(0), DirectInbox())
    workers = Workers({"bill": execution}, {"bill": 1}, None, StopFlag(), lambda: None, lambda: True)
    workers.begin_session()
    workers.submit([Delivery("bill", message.body, message.routing_key, message.event_id, message.headers)])
    settled = wait_until(workers.settlements, 30, "the delivery has ended")
    workers.close()
    assert [each.outcome for each in settled] == [outcome]
    assert f"its event is {outcome}" in caplog.text


@pytest.mark.parametrize("call", [bill, abill], ids=["thread", "loop"])
def test_workers_that_are_closed_do_not_wait_for_a_database_that_is_away(call: Any) -> None:
    inbox, message = Away(), encode(DomainEvent("order.placed"))
    execution = Execution(Handler(call, "bill", ("#",)), RetryPolicy(0), inbox)
    workers = Workers({"bill": execution}, {"bill": 1}, None, StopFlag(), lambda: None, lambda: True)
    workers.begin_session()
    workers.submit([Delivery("bill", message.body, message.routing_key, message.event_id, message.headers)])
    assert inbox.asked.wait(30)
    workers.close()
    wait_until(lambda: workers.running == 0, 30, "the handler has ended")
    assert workers.at_work() == []
