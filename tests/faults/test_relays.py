"""Relays that are killed between two steps, or stand still there until another has taken over."""

from __future__ import annotations

import signal

import pytest

from tests.faults.apparatus import Program, Stage
from tests.harness.waiting import wait_until

KILLED = -9
BATCH = 100
LEASE_SECONDS = 3.0


@pytest.mark.parametrize(("point", "again"), [("fetched", False), ("confirmed", True), ("settled", False)])
def test_killed_between_two_steps_it_leaves_all_to_the_next(stage: Stage, point: str, again: bool) -> None:
    stage.publish(300)
    victim = stage.relay(FAULTS_CRASH=point)
    assert victim.wait() == KILLED
    stage.relay()
    wait_until(lambda: not stage.waiting(), 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert bool(account.sent_again) is again
    assert account.sent_again <= BATCH


@pytest.mark.parametrize("point", ["fetched", "sending"])
def test_frozen_past_its_lease_at_the_worst_line_it_sends_a_batch_again_at_most(
    stage: Stage, point: str
) -> None:
    """Frozen with rows in its hands, it wakes when another has sent these and later ones of their keys."""
    stage.publish(200)
    frozen = stage.relay(FAULTS_CRASH=point, FAULTS_CRASH_SIGNAL="SIGSTOP")
    wait_until(lambda: _is_stopped(frozen), 20)
    stage.relay()
    wait_until(lambda: not stage.waiting(), 30)
    stage.publish(100)
    wait_until(lambda: stage.archived() == 300, 30)
    frozen.send(signal.SIGCONT)
    wait_until(lambda: _owners(stage) == 2, 20)
    stage.publish(100)
    wait_until(lambda: stage.archived() == 400, 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.sent_again <= BATCH
    assert frozen.stop() == 0


def test_frozen_and_woken_while_events_are_published_relays_keep_the_order_of_each_key(stage: Stage) -> None:
    relays = [stage.relay(), stage.relay()]
    publisher = stage.publisher()
    wait_until(lambda: _owners(stage) == 2, 20)
    for victim in relays:
        wait_until(lambda: stage.archived() > 0, 20)
        victim.send(signal.SIGSTOP)
        wait_until(lambda: _owners(stage) == 1, 20)
        victim.send(signal.SIGCONT)
        wait_until(lambda: _owners(stage) == 2, 20)
    publisher.kill()
    wait_until(lambda: not stage.waiting(), 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.sent_again <= 2 * BATCH
    assert [relay.stop() for relay in relays] == [0, 0]


def _owners(stage: Stage) -> int:
    """How many relays own buckets that are not free, all of them taken."""
    rows = stage.sql(
        "SELECT owner, count(*) FROM domain_event_broker_lease "
        "WHERE lease_until > extract(epoch FROM clock_timestamp()) GROUP BY owner"
    )
    return len(rows) if sum(count for _, count in rows) == 64 else 0


def _is_stopped(program: Program) -> bool:
    with open(f"/proc/{program.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
