"""The how-to pages do what they say, in a project as the quickstart leaves it after two sections."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace

import pika
import pytest

from tests.docs.pages import DOCS, Page
from tests.docs.reader import Reader
from tests.harness.ports import lease_port
from tests.harness.waiting import wait_until

#: Files of the quickstart that the pages build on.
START = ("mysite/settings.py", "orders/models.py", "orders/services.py")
#: Pages that need RabbitMQ, or ports of this machine, and have a test of their own.
APART = ("migrate.rst", "celery.rst", "watch.rst")
PAGES = [Page(path) for path in sorted((DOCS / "how-to").glob("*.rst")) if path.name not in APART]

SUBSCRIBER = "python manage.py run_subscriber"


def _start(reader: Reader) -> Reader:
    """Follow the first two sections of the quickstart."""
    reader.start_project("orders")
    taken: set[str] = set()
    for block in Page(DOCS / "quickstart.rst").blocks("python"):
        if block.file and block.file[0] in START and block.file[0] not in taken:
            taken.add(block.file[0])
            reader.do(block)
    reader.run("python manage.py makemigrations orders")
    reader.run("python manage.py migrate")
    return reader


@pytest.fixture
def project(reader: Reader) -> Reader:
    """A reader who has followed the first two sections of the quickstart."""
    return _start(reader)


@pytest.fixture
def broker_project(broker_reader: Reader) -> Reader:
    """The same, with a RabbitMQ at hand."""
    return _start(broker_reader)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_how_to_can_be_followed(page: Page, project: Reader) -> None:
    project.follow(page)


def test_handlers_take_effect_once_however_often_the_event_comes(project: Reader) -> None:
    """What the page on subscribing shows by what is printed, counted in the database."""
    project.start("python manage.py run_relay")
    for block in Page(DOCS / "how-to/subscribe.rst").blocks_in("Take effect once"):
        project.do(block)
    count = "from orders.models import Order; print(Order.objects.filter(total=-1).count())"
    # The handler prints before its transaction commits; the last event commits after the duplicate.
    wait_until(lambda: project.shell(count).split()[-1] == "2", 10, lambda: project.shell(count))
    project.stop(SUBSCRIBER)
    assert project.shell(count).split()[-1] == "2"


def test_services_on_the_older_library_can_be_moved_with_their_queues(
    broker_project: Reader, broker_url: str
) -> None:
    _declare_as_the_older_library(broker_url, "billing-charge", ["order.*"])
    _publish_as_the_older_library(broker_url, "order.placed", {"total": 1})
    reader = broker_project
    for block in Page(DOCS / "how-to/migrate.rst").blocks():
        if "--migrate" in block.text:
            reader.see(["charged {'total': 1}"], SUBSCRIBER)
            reader.stop(SUBSCRIBER)
            _publish_as_the_older_library(broker_url, "order.placed", {"total": 2})
            _publish_as_the_older_library(broker_url, "order.placed", {"total": 0}, "billing-charge-dlx")
        reader.do(block)
    reader.see(["charged {'total': 2}"], SUBSCRIBER)
    reader.shell("from orders.services import place_order; place_order(3)")
    reader.see(["charged {'total': 3}"], SUBSCRIBER)
    reader.run("python manage.py declare_queues --check", ["billing-charge: in place"])
    reader.run("python manage.py replay_dlq billing-charge", ["billing-charge: 1 replayed, ...left"])
    reader.see(["charged {'total': 0}"], SUBSCRIBER)


def test_events_start_tasks_and_tasks_relay_events(broker_project: Reader) -> None:
    broker_project.follow(Page(DOCS / "how-to/celery.rst"))


def test_workers_can_be_watched(project: Reader) -> None:
    ports = {written: lease_port() for written in ("9401", "9402")}
    # Nobody but this machine shall see them, not even in a test.
    here = {**{written: str(lease.port) for written, lease in ports.items()}, "0.0.0.0": "127.0.0.1"}
    for block in Page(DOCS / "how-to/watch.rst").blocks():
        text = block.text
        for written, actual in here.items():
            text = text.replace(written, actual)
        project.do(replace(block, text=text))
    for lease in ports.values():
        lease.release()


def test_settings_of_the_reference_are_accepted(project: Reader) -> None:
    for block in Page(DOCS / "reference/settings.rst").blocks("python"):
        project.do(block)
        project.run("python manage.py check")


def _declare_as_the_older_library(url: str, name: str, keys: list[str]) -> None:
    """Make the queues and exchanges that domain-event-broker 3.0.2 makes for a handler with dead letters."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("domain-events", "topic", durable=True)
        channel.exchange_declare(f"{name}-dlx", "topic")
        channel.exchange_declare(f"{name}-retry", "topic")
        channel.queue_declare(f"{name}-dl", durable=True)
        channel.queue_declare(name, durable=True, arguments={"x-dead-letter-exchange": f"{name}-dlx"})
        for key in keys:
            channel.queue_bind(f"{name}-dl", f"{name}-dlx", key)
            channel.queue_bind(name, "domain-events", key)
            channel.queue_bind(name, f"{name}-retry", key)


def _publish_as_the_older_library(
    url: str, routing_key: str, data: dict[str, int], exchange: str = "domain-events"
) -> None:
    """Send a body of domain-event-broker 3.0.2, with the properties that it sets: none but persistence."""
    fields = {
        "routing_key": routing_key,
        "data": data,
        "domain_object_id": None,
        "uuid_string": str(uuid.uuid4()),
        "timestamp": time.time(),
    }
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        persistent = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish(exchange, routing_key, json.dumps(fields).encode(), persistent, mandatory=True)
