"""A project with a real Celery worker and beat, and no relay process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
import psycopg
import pytest

from domain_event_broker.events import HEADER_CAUSATION_ID, HEADER_CORRELATION_ID, DomainEvent
from tests.acceptance.shop import developers_environment, run
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.waiting import wait_until

HERE = Path(__file__).parent
#: Seconds in which processes start, and an event gets to its end on a busy machine.
PATIENCE = 90


class Project:
    """The project, its processes, and a queue that is bound to all its events."""

    def __init__(self, folder: Path, database: str, broker: str) -> None:
        self._folder = folder
        self._database = database
        self._environment = developers_environment(
            DJANGO_SETTINGS_MODULE="invoicing.settings",
            INVOICING_DATABASE=database,
            INVOICING_EVENTS=broker,
            INVOICING_CELERY=broker,
        )
        self._environment["PYTHONPATH"] += f":{HERE}"
        self._environment["INVOICING_RELAY_TASK"] = "0"
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(pika.BlockingConnection(pika.URLParameters(broker)))
        self._channel = self._connection.channel()
        self._channel.exchange_declare("domain-events", "topic", durable=True)
        self._channel.queue_declare("spy", durable=True)
        self._channel.queue_bind("spy", "domain-events", "#")
        self.seen: list[tuple[DomainEvent, dict[str, Any]]] = []
        self.manage("migrate")

    def close(self) -> None:
        """End what was started, by its id."""
        self._stack.close()

    def manage(self, *words: str) -> str:
        """Run a command of Django to its end."""
        done = run([sys.executable, "-m", "django", *words], self._environment, HERE)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, name: str, ready: str, *words: str) -> Path:
        """Start a process, wait until it says that it is ready, and return the file of its output."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._stack.callback(_end, process)
        wait_until(lambda: ready in log.read_text() or process.poll(), PATIENCE, log.read_text)
        assert process.poll() is None, log.read_text()
        return log

    def start_worker(self) -> Path:
        """Start a Celery worker with two processes."""
        words = ("celery", "-A", "invoicing", "worker", "--loglevel", "INFO", "--concurrency", "2")
        return self.start("worker", " ready.", *words, "--without-gossip", "--without-mingle")

    def start_beat(self) -> Path:
        """Start Celery beat."""
        return self.start("beat", "beat: Starting", "celery", "-A", "invoicing", "beat", "--loglevel", "INFO")

    def start_subscriber(self) -> Path:
        """Start ``run_subscriber``."""
        return self.start("subscriber", "Ctrl-C stops", "django", "run_subscriber")

    def set(self, **settings: str) -> None:
        """Let processes that are started from now on have other settings: ``INVOICING_<NAME>``."""
        self._environment.update({f"INVOICING_{name.upper()}": value for name, value in settings.items()})

    def place(self, story: str, count: int = 1) -> str:
        """Publish orders; return what that printed."""
        done = run([sys.executable, "-m", "invoicing.place", story, str(count)], self._environment, HERE)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def arrived(self, routing_key: str) -> list[tuple[DomainEvent, dict[str, Any]]]:
        """Return the events of one kind that the exchange has seen, with their correlation and headers."""
        while True:
            method, properties, body = self._channel.basic_get("spy", auto_ack=True)
            if method is None:
                return [each for each in self.seen if each[0].routing_key == routing_key]
            headers = {**(properties.headers or {}), HEADER_CORRELATION_ID: properties.correlation_id}
            self.seen.append((DomainEvent.from_json(body), headers))

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        with psycopg.connect(self._database) as connection:
            row = connection.execute(f"SELECT count(*) FROM domain_event_broker_{table}").fetchone()
        assert row is not None
        return int(row[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def project(
    postgres_server: PrivatePostgreSQL,
    fresh_name: Callable[[str], str],
    broker_url: str,
    tmp_path: Path,
) -> Iterator[Project]:
    """The project with an empty database; one RabbitMQ has the events and the tasks."""
    database = postgres_server.create_database(fresh_name("invoicing").replace("-", "_"))
    project = Project(tmp_path, database, broker_url)
    yield project
    project.close()


def test_an_event_becomes_a_task_and_its_story_goes_on_there(project: Project) -> None:
    project.set(relay_task="1")
    project.manage("declare_queues")
    worker = project.start_worker()
    project.start_subscriber()
    placed = project.place("story-7").strip()
    wait_until(lambda: project.arrived("invoice.archived"), PATIENCE, worker.read_text)
    ((order, _),) = project.arrived("order.placed")
    ((invoice, headers),) = project.arrived("invoice.sent")
    assert invoice.data["task_id"] == placed == order.uuid_string
    assert invoice.data["event"] == {**order.extra, **order.event_data}
    assert headers[HEADER_CORRELATION_ID] == "story-7"
    assert headers[HEADER_CAUSATION_ID] == placed
    ((_, archived_headers),) = project.arrived("invoice.archived")
    assert archived_headers[HEADER_CORRELATION_ID] == "story-7", (
        "a task that a task starts belongs to it, too"
    )
    wait_until(lambda: project.count("outbox") == 0, PATIENCE, worker.read_text)


def test_beat_relays_and_purges_where_nothing_else_does(project: Project) -> None:
    worker = project.start_worker()
    beat = project.start_beat()
    project.place("story", 20)
    wait_until(lambda: len(project.arrived("order.placed")) == 20, PATIENCE, worker.read_text)
    orders = [event.domain_object_id for event, _ in project.arrived("order.placed")]
    assert orders == [f"order-{number}" for number in range(20)]
    wait_until(lambda: project.count("outbox") == project.count("archive") == 0, PATIENCE, worker.read_text)
    assert "Sending due task relay" in beat.read_text()
    assert "ERROR" not in worker.read_text(), "overlapping tasks do not disturb each other"


def test_commits_go_on_while_the_broker_of_celery_is_away_and_beat_makes_up_for_it(
    project: Project, broker_url: str
) -> None:
    project.set(relay_task="1", celery="amqp://guest:very-secret@127.0.0.1:1//")
    printed = project.place("story", 30)
    assert printed.count("a commit could not start the relay task") == 1
    assert "very-secret" not in printed
    assert "Traceback" not in printed
    assert project.count("outbox") == 30
    project.set(relay_task="0", celery=broker_url)
    worker = project.start_worker()
    project.start_beat()
    wait_until(lambda: len(project.arrived("order.placed")) == 30, PATIENCE, worker.read_text)
