"""A project on PostgreSQL and RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.djangoapp.databases import settings_for
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.monitoring.project import Project


@pytest.fixture
def broker_url(rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]) -> str:
    """Return the URL of a virtual host of its own."""
    return rabbitmq_server.add_vhost(fresh_name("watched"))


@pytest.fixture
def make_project(
    tmp_path: Path,
    postgres_server: PrivatePostgreSQL,
    broker_url: str,
    fresh_name: Callable[[str], str],
) -> Callable[..., Project]:
    """Return a function that makes the project, with settings of the broker beside its URL."""

    def make(**settings: Any) -> Project:
        database = settings_for(postgres_server.create_database(fresh_name("watched").replace("-", "_")))
        return Project(tmp_path, database, {"URL": broker_url, **settings})

    return make
