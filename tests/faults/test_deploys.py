"""Deploys: handlers renamed, removed, bound with other keys, their queues rebuilt; two releases at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest

from domain_event_broker import DomainEvent
from tests.faults.apparatus import Program, Stage
from tests.faults.project.fates import event_id_for
from tests.harness.waiting import wait_until

#: Seconds for what takes a moment on a quiet machine.
PATIENCE = 90.0
KILLED = -9
#: Names that the handler of the deploys has had.
NAMES = ("deployed", "renamed")


class Release:
    """One release of the project: its handler has a name, binding keys and a queue type."""

    def __init__(self, stage: Stage, name: str = "deployed", **changes: str) -> None:
        self._stage = stage
        self._environment = {"FAULTS_DEPLOYED": name}
        self._environment |= {f"FAULTS_DEPLOYED_{key.upper()}": value for key, value in changes.items()}

    def start(self, *command: str, **environment: str) -> Program:
        """Start one of its programs."""
        return self._stage.run(*command, direct=True, **self._environment, **environment)

    def run(self, *command: str, expected: int = 0, **environment: str) -> str:
        """Run one of its programs to its end; return what it printed."""
        program = self.start(*command, **environment)
        assert program.wait(PATIENCE) == expected, program.output()
        return program.output()

    def publish(self, count: int, routing_key: str) -> None:
        """Publish so many events past the outbox: to whoever is bound for them."""
        assert self._stage.rabbitmq is not None
        with pika.BlockingConnection(pika.URLParameters(self._stage.rabbitmq.url())) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for _ in range(count):
                body = DomainEvent(routing_key, {}).to_json().encode()
                channel.basic_publish("domain-events", routing_key, body)


@pytest.fixture
def release(stage: Stage) -> Iterator[Callable[..., Release]]:
    """Return a function that makes a release; its queues are gone afterwards."""
    yield lambda name="deployed", **changes: Release(stage, name, **changes)
    stage.end_programs()
    assert stage.rabbitmq is not None
    with pika.BlockingConnection(pika.URLParameters(stage.rabbitmq.url())) as connection:
        listed = stage.rabbitmq.ctl("list_queues", "name", "--no-table-headers").splitlines()
        for queue in listed:
            if queue.startswith(NAMES):
                connection.channel().queue_delete(queue)
    stage.sql("DELETE FROM domain_event_broker_queue WHERE name IN ('deployed', 'renamed')")


def ready(stage: Stage, name: str = "deployed") -> int:
    """How many events are in queue and delays of a handler."""
    return stage.broker.depths([name])[name]


def wait_for_effects(stage: Stage, count: int) -> None:
    """Wait until the handler has had so many effects."""
    wait_until(lambda: stage.effects("deployed") == count, PATIENCE, lambda: f"{stage.effects('deployed')}")


def test_a_handler_that_left_the_code_keeps_its_events_and_status_says_so(
    stage: Stage, release: Callable[..., Release]
) -> None:
    before, after = release(), release(name="")
    before.run("declare_queues", "deployed")
    before.publish(5, "deploy.a")
    wait_until(lambda: ready(stage) == 5, PATIENCE)
    assert "deployed has left the code, and its queue holds 5 events" in after.run("broker_status")
    assert "'deploy.a', 'deploy.b'; --prune takes that away" in after.run("declare_queues", "--check")
    assert "nobody answers; use --yes" in after.run("declare_queues", "--prune", expected=2)
    after.publish(1, "deploy.b")
    wait_until(lambda: ready(stage) == 6, PATIENCE)
    assert "no longer bound with 'deploy.a', 'deploy.b'" in after.run("declare_queues", "--prune", "--yes")
    after.publish(3, "deploy.a")
    # Whoever still has the handler works them off.
    before.start("run_subscriber", "deployed")
    wait_for_effects(stage, 6)
    after.run("declare_queues", "--prune", "--yes")
    assert "deployed" not in after.run("broker_status"), "there is nothing to tell"


def test_a_renamed_handler_gets_a_new_queue_and_the_old_one_is_told_of(
    stage: Stage, release: Callable[..., Release]
) -> None:
    before, after = release(), release(name="renamed")
    before.run("declare_queues", "deployed")
    before.publish(4, "deploy.a")
    after.start("run_subscriber", "renamed")
    wait_until(lambda: (consumers(stage, "renamed") or 0) > 0, PATIENCE)
    after.publish(2, "deploy.a")
    wait_for_effects(stage, 2)
    assert "deployed has left the code, and its queue holds 6 events" in after.run("broker_status")
    before.start("run_subscriber", "deployed")
    wait_for_effects(stage, 8)  # two of them under both names: to the inbox they are two handlers


def test_a_binding_key_taken_away_stays_bound_until_it_is_pruned(
    stage: Stage, release: Callable[..., Release]
) -> None:
    before, after = release(), release(keys="deploy.a")
    before.run("declare_queues", "deployed")
    before.publish(2, "deploy.b")
    assert "deployed still gets 'deploy.b', which it no longer asks for" in after.run("broker_status")
    subscriber = after.start("run_subscriber", "deployed")
    wait_for_effects(stage, 2)
    after.publish(1, "deploy.b")
    wait_for_effects(stage, 3)
    output = after.run("declare_queues", "deployed", "--prune", "--yes")
    assert "deployed: no longer bound with 'deploy.b'; its events stay" in output
    after.publish(2, "deploy.b")
    after.publish(1, "deploy.a")
    wait_for_effects(stage, 4)
    assert ready(stage) == 0
    assert subscriber.stop() == 0
    # The release before binds it again when it is rolled back.
    before.run("declare_queues", "deployed")
    before.publish(2, "deploy.b")
    wait_until(lambda: ready(stage) == 2, PATIENCE)


def test_a_binding_key_added_is_bound_when_the_queues_are_declared(
    stage: Stage, release: Callable[..., Release]
) -> None:
    before, after = release(), release(keys="deploy.a deploy.b deploy.c")
    before.run("declare_queues", "deployed")
    before.publish(1, "deploy.c")
    after.run("declare_queues", "deployed")
    after.publish(2, "deploy.c")
    before.start("run_subscriber", "deployed")
    wait_for_effects(stage, 2)


STEPS = ("helper bound", "queue unbound", "events moved", "queue deleted")


def test_a_classic_queue_becomes_a_quorum_queue_though_the_migration_is_killed_at_every_step(
    stage: Stage, release: Callable[..., Release]
) -> None:
    classic, quorum = release(type="classic"), release(type="quorum")
    classic.run("declare_queues", "deployed")
    classic.publish(30, "deploy.a")
    wait_until(lambda: ready(stage) == 30, PATIENCE)
    refused = quorum.run("run_subscriber", "deployed", expected=1)
    assert "declare_queues --migrate deployed" in refused
    for step in STEPS:
        quorum.run("declare_queues", "deployed", "--migrate", expected=KILLED, FAULTS_CRASH=step)
        quorum.publish(2, "deploy.b")
    assert "deployed: in shape" in quorum.run("declare_queues", "deployed", "--migrate")
    quorum.start("run_subscriber", "deployed")
    wait_for_effects(stage, 38)
    assert ready(stage) == 0


def test_events_that_wait_for_an_old_delay_come_back_to_the_new_release(
    stage: Stage, release: Callable[..., Release]
) -> None:
    before = release(retries="9", delay="4.3")
    after = release(retries="2", delay="0.2")
    before.run("declare_queues", "deployed")
    old = before.start("run_subscriber", "deployed")
    before.publish(5, "deploy.a")
    wait_until(lambda: delayed(stage) == 5, PATIENCE)
    assert old.stop() == 0
    after.start("run_subscriber", "deployed")
    wait_for_effects(stage, 5)


# --- two releases

BOTH = ("retry", "error", "exhaust", "fine")


def test_subscribers_of_two_releases_share_queues_retries_and_dead_letters(
    stage: Stage, previous: Path
) -> None:
    events = [event_id_for(fate, number) for number in range(15) for fate in BOTH]
    bad = {event_id_for(fate, number) for number in range(15) for fate in ("error", "exhaust")}
    stage.publish(len(events), event_ids=events)
    stage.relay()
    stage.run("run_subscriber", "moody", checkout=previous)
    stage.subscriber("moody")
    stage.wait_until_quiet(["moody"], 2 * PATIENCE)
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events) - bad
    assert set(account.handlers["moody"].dead) == bad
    assert not account.handlers["moody"].both


@pytest.mark.parametrize("order", ["the old one first", "the new one first"])
def test_each_release_replays_the_dead_letters_of_the_other(stage: Stage, previous: Path, order: str) -> None:
    assert not (previous / "domain_event_broker/transports/rabbitmq/paging.py").exists()
    old, new = {"checkout": previous}, {}
    first, second = (old, new) if order == "the old one first" else (new, old)
    bad = [event_id_for("error", number) for number in range(10)]
    stage.publish(10, event_ids=bad)
    stage.relay()
    for number, (one, other) in enumerate([(first, second), (second, first)]):
        working = stage.run("run_subscriber", "moody", **one)  # type: ignore[arg-type]
        wait_until(lambda: len(stage.broker.letters("moody")) == 10, PATIENCE)
        assert working.stop() == 0
        looking = stage.run("replay_dlq", "moody", "--dry-run", **other)  # type: ignore[arg-type]
        assert looking.wait(PATIENCE) == 0
        assert "would replay 10 of 10" in looking.output()
        assert "error: ValueError never works (attempt 1)" in looking.output()
        replaying = stage.run("replay_dlq", "moody", **other)  # type: ignore[arg-type]
        assert replaying.wait(PATIENCE) == 0
        assert sorted(stage.broker.queued("moody")) == sorted(bad), f"round {number}"
        assert stage.broker.letters("moody") == []
    assert stage.account(["moody"]).violations() == []


def consumers(stage: Stage, name: str) -> int | None:
    """How many subscribers a queue has; ``None``: it does not exist."""
    assert stage.rabbitmq is not None
    with pika.BlockingConnection(pika.URLParameters(stage.rabbitmq.url())) as connection:
        try:
            declared = connection.channel().queue_declare(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return None
        return int(declared.method.consumer_count)


def delayed(stage: Stage) -> int:
    """How many events wait in delay queues."""
    assert stage.rabbitmq is not None
    listed = stage.rabbitmq.ctl("list_queues", "name", "messages", "--no-table-headers").splitlines()
    waiting = (line.split("\t") for line in listed if line.startswith("deployed-wait-"))
    return sum(int(count) for _, count in waiting)
