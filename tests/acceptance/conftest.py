"""What several acceptance tests need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.rabbitmq import PrivateRabbitMQ

OLD_LIBRARY = "domain-event-broker==3.0.2"


@pytest.fixture
def broker_url(rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]) -> str:
    """A virtual host of our own: the shop's queues have fixed names."""
    return rabbitmq_server.add_vhost(fresh_name("shop"))


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtualenv with the older library, and nothing of ours."""
    virtualenv = tmp_path_factory.mktemp("old") / "virtualenv"
    subprocess.run([sys.executable, "-m", "venv", virtualenv], check=True)
    python = virtualenv / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", OLD_LIBRARY], check=True
    )
    return python
