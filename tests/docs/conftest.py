"""What the tests of the documentation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.reader import Reader
from tests.harness.rabbitmq import PrivateRabbitMQ

#: The URLs of RabbitMQ that pages write.
WRITTEN_URLS = (
    "amqp://guest:guest@localhost:5672/%2F",
    "amqp://user:password@localhost:5672/%2F",
)


@pytest.fixture
def broker_url(rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]) -> str:
    """URL of a virtual host of its own: pages use one name for their handlers."""
    return rabbitmq_server.add_vhost(fresh_name("docs"))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in an empty directory, without RabbitMQ."""
    with Reader(tmp_path) as reader:
        yield reader


@pytest.fixture
def broker_reader(tmp_path: Path, broker_url: str) -> Iterator[Reader]:
    """A reader who finds a RabbitMQ where the pages say that it is."""
    with Reader(tmp_path, replace=dict.fromkeys(WRITTEN_URLS, broker_url)) as reader:
        yield reader
