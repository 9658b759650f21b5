"""Relays that are killed, stopped or frozen between two steps, come and go, and are told wrong times."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.apparatus import Program, Stage
from tests.harness.postgres import ClockedPostgreSQL
from tests.harness.waiting import wait_until

KILLED = -9
BATCH = 100
LEASE_SECONDS = 3.0
BUCKETS = 64


@pytest.mark.parametrize(
    ("point", "again"),
    [
        ("leased", range(1)),
        ("fetched", range(1)),
        ("sending", range(1)),
        ("written", range(BATCH + 1)),
        ("confirmed", range(1, BATCH + 1)),
        ("taken out", range(1, BATCH + 1)),
        ("settled", range(1)),
    ],
)
def test_killed_between_two_steps_it_leaves_all_to_the_next(stage: Stage, point: str, again: range) -> None:
    stage.publish(300)
    victim = stage.relay(FAULTS_CRASH=point)
    assert victim.wait() == KILLED
    stage.relay()
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again in again


@pytest.mark.parametrize(
    "point", ["leased", "fetched", "sending", "written", "confirmed", "taken out", "settled"]
)
def test_told_to_stop_between_two_steps_it_finishes_what_it_sent_and_nothing_is_sent_again(
    stage: Stage, point: str
) -> None:
    stage.publish(300)
    stopped = stage.relay(FAULTS_CRASH=point, FAULTS_CRASH_SIGNAL="SIGTERM")
    assert stopped.wait() == 0
    assert stage.sql("SELECT count(*) FROM domain_event_broker_lease WHERE owner <> ''") == [(0,)]
    assert stage.archived() + stage.waiting() == 300
    assert stage.waiting() >= 300 - BATCH, "it went no further"
    stage.relay()
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again == 0


def test_of_four_relays_each_has_its_share_and_two_that_are_killed_are_replaced(stage: Stage) -> None:
    relays = [stage.relay() for _ in range(4)]
    publisher = stage.publisher(pause=0.002)
    wait_until(lambda: _shares(stage) == [16, 16, 16, 16], 60, lambda: f"{_shares(stage)}")
    relays[0].kill()
    relays[2].kill()
    wait_until(lambda: _shares(stage) == [32, 32], 60, lambda: f"{_shares(stage)}")
    relays += [stage.relay(), stage.relay()]
    wait_until(lambda: _shares(stage) == [16, 16, 16, 16], 60, lambda: f"{_shares(stage)}")
    publisher.kill()
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again <= 2 * BATCH
    assert [relays[number].stop() for number in (1, 3, 4, 5)] == [0, 0, 0, 0]


def test_one_that_joins_late_has_its_half_within_seconds_and_one_that_stops_leaves_it_at_once(
    stage: Stage,
) -> None:
    first = stage.relay()
    wait_until(lambda: _shares(stage) == [BUCKETS], 60)
    second = stage.relay()
    wait_until(lambda: second.is_ready, 60)
    # Two rounds, each a third of the lease: of one second here, of five where it is set as it comes.
    wait_until(lambda: _shares(stage) == [32, 32], 30, lambda: f"{_shares(stage)}")
    assert first.stop() == 0
    assert len(_shares(stage)) <= 1, "nobody has to wait for the end of its lease"
    wait_until(lambda: _shares(stage) == [BUCKETS], 30, lambda: f"{_shares(stage)}")
    assert second.stop() == 0


def test_a_lease_table_that_is_lost_is_written_again_and_costs_neither_events_nor_order(stage: Stage) -> None:
    relays = [stage.relay(), stage.relay()]
    publisher = stage.publisher(pause=0.002)
    wait_until(lambda: _shares(stage) == [32, 32], 30)
    for _ in range(3):
        stage.sql("TRUNCATE domain_event_broker_lease")
        wait_until(lambda: _shares(stage) == [32, 32], 60, lambda: f"{_shares(stage)}")
    stage.sql("TRUNCATE domain_event_broker_lease, domain_event_broker_relay")
    wait_until(lambda: _shares(stage) == [32, 32], 60, lambda: f"{_shares(stage)}")
    before = stage.archived()
    wait_until(lambda: stage.archived() > before, 30)
    publisher.kill()
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert [relay.stop() for relay in relays] == [0, 0]


def test_a_clock_of_the_database_that_jumps_costs_neither_events_nor_order(shared_stage: Stage) -> None:
    """Two hours ahead, all leases are over at once; back again, they end in two hours."""
    shared_stage.reset()
    with Stage(postgres=ClockedPostgreSQL(), rabbitmq=shared_stage.rabbitmq) as stage:
        clock = stage.postgres
        assert isinstance(clock, ClockedPostgreSQL)
        relays = [stage.relay(), stage.relay()]
        publisher = stage.publisher(pause=0.002)
        wait_until(lambda: _shares(stage) == [32, 32], 30)
        for seconds in (7200, -7200):
            clock.set_clock(seconds)
            # Longer than a lease that ends too far ahead is believed in.
            _let_pass(stage, 3.5 * LEASE_SECONDS)
            wait_until(lambda: _shares(stage) == [32, 32], 30, lambda: f"{_shares(stage)}")
        clock.set_clock(7200)
        wait_until(lambda: _shares(stage) == [32, 32], 30, lambda: f"{_shares(stage)}")
        relays[0].kill()
        clock.set_clock(0)
        wait_until(lambda: _shares(stage) == [BUCKETS], 60, lambda: f"{_shares(stage)}")
        publisher.kill()
        wait_until(lambda: not stage.waiting(), 60)
        account = stage.account(["spy"])
        assert account.violations() == [], stage.traces()
        assert account.handlers["spy"].queued == account.published
        assert relays[1].stop() == 0
    shared_stage.reset()


def _let_pass(stage: Stage, seconds: float) -> None:
    """Wait, and see events being sent all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = stage.archived()
        wait_until(lambda: stage.archived() > before, 30)  # noqa: B023 - called in this turn


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
    shares = _shares(stage)
    return len(shares) if sum(shares) == BUCKETS else 0


def _shares(stage: Stage) -> list[int]:
    """How many buckets each relay owns whose lease has not ended, and ends as leases do."""
    now = "extract(epoch FROM clock_timestamp())"
    rows = stage.sql(
        "SELECT count(*) FROM domain_event_broker_lease WHERE owner <> '' "
        f"AND lease_until BETWEEN {now} AND {now} + {LEASE_SECONDS} GROUP BY owner ORDER BY owner"
    )
    return [count for (count,) in rows]


def _is_stopped(program: Program) -> bool:
    with open(f"/proc/{program.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
