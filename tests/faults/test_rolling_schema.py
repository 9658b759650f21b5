"""Two releases at work at once: old code on the new schema, new code on the old one, and the way between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.apparatus import Program, Stage
from tests.harness.waiting import wait_until

MIGRATE = "run 'manage.py migrate"


@pytest.fixture
def before(stage: Stage, previous: Path, fresh_name: Callable[[str], str]) -> Iterator[Stage]:
    """The stage with a database that the previous release has migrated."""
    name = fresh_name("before")
    stage.postgres.create_database(name)
    stage.database = name
    migrating = stage.run("migrate", "--run-syncdb", "-v0", checkout=previous)
    assert migrating.wait() == 0, migrating.output()
    yield stage
    stage.end_programs()
    stage.postgres.drop_database(name)
    stage.reset()


def test_the_previous_release_publishes_relays_and_handles_beside_this_one_on_the_new_schema(
    stage: Stage, previous: Path
) -> None:
    relays = [stage.relay(), stage.run("run_relay", checkout=previous)]
    subscribers = [stage.subscriber("steady"), stage.run("run_subscriber", "steady", checkout=previous)]
    wait_until(lambda: _relays_with_work(stage) == 2, 60)
    publishers = [stage.publisher(), _old_publisher(stage, previous)]
    wait_until(lambda: _handling_processes(stage) == {each.pid for each in subscribers}, 60)
    wait_until(lambda: stage.effects("steady") > 100, 60)
    _end(publishers)
    stage.wait_until_quiet(["steady"])
    _assert_all_handled(stage)
    assert [each.stop() for each in (*relays, *subscribers)] == [0, 0, 0, 0]


def test_the_previous_release_alone_goes_on_on_the_new_schema(stage: Stage, previous: Path) -> None:
    """As after a deploy that was taken back, whose migrations stay."""
    stage.publish(30)
    publisher = _old_publisher(stage, previous)
    relay = stage.run("run_relay", checkout=previous)
    subscriber = stage.run("run_subscriber", "steady", checkout=previous)
    wait_until(lambda: stage.effects("steady") > 60, 60)
    _end([publisher])
    stage.wait_until_quiet(["steady"])
    _assert_all_handled(stage)
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_on_the_old_schema_this_release_says_what_to_do_loses_nothing_and_goes_on_once_it_is_done(
    before: Stage, previous: Path
) -> None:
    old_publisher = _old_publisher(before, previous)
    wait_until(lambda: _deeds(before) > 20, 60)
    _end([old_publisher])
    published = _deeds(before)
    publisher = before.run("publish-some", "1", "faults.done", "too-early")
    assert publisher.wait() == 1
    assert MIGRATE in publisher.output()
    relay, subscriber = before.relay(), before.subscriber("steady")
    wait_until(lambda: MIGRATE in relay.output(), 60)
    assert before.waiting() == published == _deeds(before), "the event went with its transaction"
    _migrate(before)
    wait_until(lambda: before.effects("steady") == published, 60)
    before.publish(10)
    before.wait_until_quiet(["steady"])
    _assert_all_handled(before)
    assert relay.output().count(MIGRATE) == 1
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_deploy_under_load_from_the_old_schema_to_the_last_old_process_costs_nothing(
    before: Stage, previous: Path
) -> None:
    old = [before.run("run_relay", checkout=previous), before.run("run_relay", checkout=previous)]
    old += [before.run("run_subscriber", "steady", checkout=previous)]
    old_publisher = _old_publisher(before, previous)
    wait_until(lambda: before.effects("steady") > 30, 60)
    _migrate(before)
    new, publisher = [before.relay(), before.subscriber("steady")], before.publisher()
    wait_until(lambda: _relays_with_work(before) == 3, 60)
    wait_until(lambda: new[1].pid in _handling_processes(before), 60)
    _end([old_publisher])
    assert [each.stop() for each in old] == [0, 0, 0]
    handled = before.effects("steady")
    wait_until(lambda: before.effects("steady") > handled + 30, 60)
    _end([publisher])
    before.wait_until_quiet(["steady"])
    _assert_all_handled(before)
    assert [each.stop() for each in new] == [0, 0]


def _old_publisher(stage: Stage, previous: Path) -> Program:
    return stage.run("publish", str(stage.directory / "published-before"), "2", "0.01", checkout=previous)


def _end(publishers: list[Program]) -> None:
    for publisher in publishers:
        publisher.kill()


def _migrate(stage: Stage) -> None:
    migrating = stage.run("migrate", "-v0")
    assert migrating.wait() == 0, migrating.output()


def _deeds(stage: Stage) -> int:
    return int(stage.sql("SELECT count(*) FROM faults_deed")[0][0])


def _relays_with_work(stage: Stage) -> int:
    return len(stage.sql("SELECT owner FROM domain_event_broker_lease WHERE owner <> '' GROUP BY owner"))


def _handling_processes(stage: Stage) -> set[int]:
    return {pid for (pid,) in stage.sql("SELECT DISTINCT pid FROM faults_effect")}


def _assert_all_handled(stage: Stage) -> None:
    account = stage.account(["steady"])
    assert account.violations() == []
    assert account.handlers["steady"].handled == account.published
