"""A Celery app whose broker is a virtual host of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pika
import pytest
from celery import Celery

from domain_event_broker.handoff import sender
from tests.harness.rabbitmq import PrivateRabbitMQ

#: One for the process: a shared task belongs to the first app that it meets, for good.
app = Celery("tests", set_as_current=True)
app.set_default()


@pytest.fixture
def celery_url(rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]) -> str:
    """A virtual host of our own: Celery's queue has a fixed name."""
    return rabbitmq_server.add_vhost(fresh_name("celery"))


@pytest.fixture
def celery_app(celery_url: str) -> Iterator[Celery]:
    """The app, with a broker that is there."""
    app.conf.update(broker_url=celery_url, task_always_eager=False, task_ignore_result=True)
    yield app
    sender.close()


class TaskQueue:
    """Celery's queue, seen by a client of the broker."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()

    def take(self) -> tuple[pika.BasicProperties, bytes] | None:
        """Take out the first message; return its properties and its body."""
        method, properties, body = self._channel.basic_get("celery", auto_ack=True)
        return None if method is None else (properties, body)

    def delete(self) -> None:
        """Delete the queue."""
        self._channel.queue_delete("celery")

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


@pytest.fixture
def task_queue(celery_url: str) -> Iterator[TaskQueue]:
    """Celery's queue."""
    queue = TaskQueue(celery_url)
    yield queue
    queue.close()
