"""The checklist of bus libraries, rows 45 to 59: security, extension, life cycle, figures, tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from django.db import transaction

from domain_event_broker import (
    DomainEvent,
    Publisher,
    Subscriber,
    config,
    publish_domain_event,
    transports,
)
from domain_event_broker.bus import MemoryBus
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.relay import Relay
from domain_event_broker.subscriber import Consumer, subscription_of
from domain_event_broker.testing import CapturedEvents, TransportContract
from domain_event_broker.transports import memory
from domain_event_broker.transports.memory import MemoryTransport
from tests.checklist.conftest import consuming, declared
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


def event(key: str = "order.placed") -> DomainEvent:
    """Return an event."""
    return DomainEvent(key, {"total": 25})


def test_row_45_tls_with_certificates_on_both_sides_and_no_password_in_a_log(
    caplog: pytest.LogCaptureFixture, fresh_name: Any
) -> None:
    with PrivateRabbitMQ(tls=True, client_cert_required=True) as server, caplog.at_level("DEBUG"):
        server.add_user("till", "very-secret")
        options = f"cafile={server.ca_path}&certfile={server.client_cert}&keyfile={server.client_key}"
        url = f"{server.tls_url('till', 'very-secret')}?{options}"
        seen: list[str] = []
        with Subscriber(url) as subscriber:
            name = fresh_name("tls")
            subscriber.register(lambda event: seen.append(event.routing_key), name, [name])
            with Publisher(url) as direct:
                direct.publish(event(name))
            with consuming(subscriber):
                wait_until(lambda: seen == [name], 30)
        with pytest.raises(BrokerUnavailable) as refused:
            Publisher(server.tls_url("till", "very-secret")).connect()
    assert "very-secret" not in caplog.text + str(refused.value)


class Base64:
    """Any sealing stands for the others: JSON is the one format of an event, and a codec may hide it."""

    name = "base64"

    def seal(self, body: bytes) -> bytes:
        """Hide the body."""
        return base64.b64encode(body)

    def open(self, body: bytes) -> bytes:
        """Show it again."""
        return base64.b64decode(body, validate=True)


VAULT = Base64()


def test_row_46_bodies_are_json_by_decision_and_a_codec_of_the_project_may_seal_them(
    in_memory: Bench,
) -> None:
    settings = {"URL": in_memory.settings.url[0], "CODEC": f"{__name__}.VAULT"}
    parsed = config.parse(settings)
    assert parsed is not None
    bench = Bench(parsed, in_memory.fresh_name)
    seen: list[Any] = []
    handler = declared(bench, lambda event: seen.append(event.data))
    sent = DomainEvent(handler.name, {"total": 25})
    publish_domain_event(sent, connection_settings=settings)  # type: ignore[call-overload]
    with bench.transport() as transport:
        transport.subscribe(subscription_of(handler, parsed.subscriber))
        (delivery,) = transport.receive(1, 1)
    assert json.loads(base64.b64decode(delivery.body))["data"] == {"total": 25}
    with bench.consuming(handler):
        wait_until(lambda: seen == [{"total": 25}], 30)


class Pigeon(MemoryTransport):
    """A transport of somebody else."""

    def __init__(self, settings: BrokerSettings) -> None:
        (url,) = settings.url
        renamed = config.parse(url.replace("pigeon:", "memory:"))
        assert renamed is not None
        super().__init__(renamed)


def test_row_47_a_transport_of_ones_own_is_found_by_its_scheme(
    monkeypatch: pytest.MonkeyPatch, fresh_name: Any
) -> None:
    def found(*, group: str, name: str) -> Sequence[EntryPoint]:
        is_ours = (group, name) == (transports.ENTRY_POINT_GROUP, "pigeon")
        return [EntryPoint("pigeon", f"{__name__}:Pigeon", group)] if is_ours else []

    monkeypatch.setattr("importlib.metadata.entry_points", found)
    loft, seen = fresh_name("loft"), []
    with Subscriber(f"pigeon://{loft}") as subscriber:
        subscriber.register(lambda event: seen.append(event.routing_key), "pigeons", ["order.*"])
        with Publisher(f"pigeon://{loft}") as direct:
            direct.publish(event())
        with consuming(subscriber):
            wait_until(lambda: seen == ["order.placed"], 30)
    memory.forget(loft)


WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
import domain_event_broker
from domain_event_broker.errors import MissingDependency
try:
    {code}
except MissingDependency as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("names", "code", "told"),
    [
        (["pika"], "domain_event_broker.Publisher('amqp://localhost').connect()", "pip install 'pika'"),
        (["pydantic"], "domain_event_broker.EventModel", "pip install"),
    ],
)
def test_row_48_a_missing_extra_is_told_when_it_is_needed_and_not_before(
    names: list[str], code: str, told: str
) -> None:
    program = WITHOUT.format(names=names, code=code)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert told in done.stdout


def test_row_49_with_and_async_with() -> None:
    seen: list[str] = []

    async def program() -> None:
        async with MemoryBus() as bus:
            bus.subscribe("order.*", lambda event: seen.append(event.routing_key))
            bus.publish(event())

    asyncio.run(program())
    assert seen == ["order.placed"]


def test_row_50_consuming_blocks_or_goes_on_in_a_thread_and_can_be_started_again(bench: Bench) -> None:
    seen: list[str] = []
    name = bench.fresh_name("handler")
    with Subscriber(bench.settings.url[0]) as subscriber, Publisher(bench.settings.url[0]) as direct:
        subscriber.register(lambda event: seen.append(event.uuid_string), name, [name])
        for _ in range(2):
            with consuming(subscriber):
                sent = event(name)
                direct.publish(sent)
                wait_until(lambda: sent.uuid_string in seen, 30)  # noqa: B023
        began = time.monotonic()
        subscriber.start_consuming(timeout=0.3)
    assert time.monotonic() - began >= 0.3, "it blocks until its time is up"


def test_row_51_a_stop_finishes_the_handler_at_work_and_is_quick_when_idle(bench: Bench) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), []

    def handle(event: DomainEvent) -> None:
        began.set()
        may_end.wait(30)
        ended.append(event.data["value"])

    handler = declared(bench, handle, prefetch=10)
    consumer = Consumer([handler], bench.settings)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    bench.publish(handler, 1, 2, 3)
    assert began.wait(30)
    consumer.stop()
    threading.Timer(0.3, may_end.set).start()
    thread.join(30)
    assert ended == [1]
    wait_until(lambda: bench.stats(handler).ready == 2, 30)
    idle = Consumer([declared(bench, lambda event: None)], bench.settings)
    thread = threading.Thread(target=idle.run)
    thread.start()
    wait_until(lambda: idle.stats.connected_at, 30)
    asked = time.monotonic()
    idle.stop()
    thread.join(30)
    assert time.monotonic() - asked < 10


def test_row_52_figures_are_ready_for_json(bench: Bench) -> None:
    name = bench.fresh_name("handler")
    with Subscriber(bench.settings.url[0]) as subscriber, Publisher(bench.settings.url[0]) as direct:
        subscriber.register(lambda event: None, name, [name])
        direct.publish(event(name))
        with consuming(subscriber):
            wait_until(lambda: subscriber.stats.events_processed_success, 30)
        published, consumed = (json.loads(json.dumps(each.stats.as_dict())) for each in (direct, subscriber))
    assert (published["events_published"], published["publish_confirms"]) == (1, 1)
    assert (consumed["events_consumed"], consumed["events_processed_success"]) == (1, 1)
    assert consumed["connected_at"] <= consumed["last_consume_at"]
    assert consumed["reconnections"] == 0


def test_row_53_queues_can_be_looked_at(bench: Bench) -> None:
    handler = declared(bench, lambda event: None)
    bench.publish(handler, 1, 2)
    wait_until(lambda: bench.stats(handler).ready == 2, 30)
    stats = bench.stats(handler)
    assert (stats.exists, stats.delayed, stats.dead) == (True, 0, 0)
    with bench.transport() as transport:
        assert transport.stats(["nobody"])["nobody"].exists is False


def test_row_54_health_tells_a_bus_that_was_shut_down() -> None:
    bus = MemoryBus()
    bus.subscribe("order.*", lambda event: None)
    assert bus.health_check()["healthy"] is True
    bus.shutdown()
    assert bus.health_check() == {"healthy": False, "closed": True, "handlers_not_served": []}


def test_row_57_a_call_that_takes_too_long_is_ended(bench: Bench) -> None:
    def spin(event: DomainEvent) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass

    handler = declared(bench, spin, timeout=0.3)
    with bench.consuming(handler):
        bench.publish(handler, 1)
        (letter,) = bench.dead_letters(handler, 1)
    assert letter.failure is not None
    assert letter.failure.reason == "timeout"


@pytest.mark.django_db(transaction=True)
def test_row_58_an_event_is_a_row_of_the_business_transaction_and_a_relay_sends_it(
    in_memory: Bench, settings: Any
) -> None:
    settings.DOMAIN_EVENT_BROKER = in_memory.settings.url[0]
    handler = declared(in_memory, lambda event: None)
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        publish_domain_event(handler.name, {})
        raise ZeroDivisionError
    assert not OutboxEvent.objects.exists()
    with transaction.atomic():
        publish_domain_event(handler.name, {})
    assert in_memory.stats(handler).ready == 0
    assert Relay(DjangoRelayOutbox(), in_memory.settings).drain().sent == 1
    assert in_memory.stats(handler).ready == 1
    assert not OutboxEvent.objects.exists()


def test_row_59_published_events_are_recorded(captured_events: CapturedEvents) -> None:
    publish_domain_event("order.placed", {"total": 25}, connection_settings="amqp://localhost:1")
    captured_events.assert_published("order.placed", {"total": 25})


class TestRow59ConformanceSuite(TransportContract):
    """The suite is public, and holds the transport of somebody else to its promises."""

    title = "somebody's own"

    @pytest.fixture(autouse=True)
    def _loft(self) -> Iterator[None]:
        self.loft = self.fresh_name()
        yield
        memory.forget(self.loft)

    def open(self) -> Pigeon:
        settings = config.parse(f"pigeon://{self.loft}")
        assert settings is not None
        return Pigeon(settings)
