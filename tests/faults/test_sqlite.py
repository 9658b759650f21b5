"""A SQLite file that somebody else has locked for long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.account import Account
from tests.faults.apparatus import Stage
from tests.harness.waiting import wait_until

EVENT = "the-event"


class File:
    """The database of a stage in a file, looked at from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sql(self, statement: str) -> list[Any]:
        """Run a statement; return its rows."""
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else write or read."""
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")


@pytest.fixture
def file(stage: Stage, tmp_path: Path) -> File:
    """The stage with its database in a file."""
    made = File(tmp_path / "faults.sqlite3")
    stage.environment["FAULTS_DATABASE"] = str(made.path)
    migrating = stage.run("migrate", "--run-syncdb", "-v0")
    assert migrating.wait() == 0, migrating.output()
    return made


def test_locked_for_long_it_makes_publishing_an_error_of_the_caller_and_costs_no_event(
    stage: Stage, file: File
) -> None:
    relay, subscriber = stage.relay(), stage.subscriber("steady")
    stage.publish(20)
    wait_until(lambda: file.count("faults_effect") > 0, 60)
    stage.publish(20)
    with file.locked():
        publisher = stage.run("publish-some", "1", "faults.done", EVENT)
        # The relay has tried for ten seconds, in tries of Django's five.
        wait_until(lambda: "trying again until it is back" in relay.output(), 60)
        assert publisher.wait() == 1
        assert "database is locked" in publisher.output()
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.publish(10)
    wait_until(lambda: file.count("domain_event_broker_archive") == 50, 60)
    wait_until(lambda: file.count("faults_effect") == 50, 60)
    wait_until(lambda: not stage.broker.depths(["steady"])["steady"], 60)
    account = Account.draw(file.sql, stage.broker, ["steady"])
    assert account.violations() == []
    assert account.handlers["steady"].handled == account.published
    assert EVENT not in account.published
    assert relay.output().count("trying again until it is back") == 1
    assert "relaying again" in relay.output()
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_shared_by_many_writers_it_loses_nothing(stage: Stage, file: File) -> None:
    relays, subscriber = [stage.relay(), stage.relay()], stage.subscriber("steady")
    publishers = [stage.publisher(pause=0.02), stage.publisher(pause=0.02)]
    wait_until(lambda: file.count("faults_effect") > 50, 60)
    relays[0].kill()
    wait_until(lambda: file.count("faults_effect") > 100, 60)
    for publisher in publishers:
        publisher.kill()
    wait_until(lambda: file.count("domain_event_broker_outbox") == 0, 60)
    wait_until(lambda: file.count("faults_effect") == file.count("faults_deed"), 60)
    account = Account.draw(file.sql, stage.broker, ["steady"])
    assert account.violations() == []
    assert account.handlers["steady"].handled == account.published
    assert (relays[1].stop(), subscriber.stop()) == (0, 0)
