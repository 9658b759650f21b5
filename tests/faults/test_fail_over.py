"""The database goes on elsewhere: at another address, on a replica, through a list of hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.apparatus import Stage, healing
from tests.harness.postgres import PrivateStandby
from tests.harness.waiting import wait_until


def test_the_same_data_at_a_new_address_goes_on_where_it_was(stage: Stage) -> None:
    """As behind a name or a virtual address that moves."""
    relay, subscriber, publisher = stage.relay(), stage.subscriber("steady"), stage.publisher()
    wait_until(lambda: stage.effects("steady") > 10, 60)
    stage.postgres.kill()
    stage.postgres.port = stage.postgres.lease_port()
    stage.database_proxy.retarget(stage.postgres.port)
    stage.postgres.start()
    before = stage.effects("steady")
    wait_until(lambda: stage.effects("steady") > before, 60)
    publisher.kill()
    stage.wait_until_quiet(["steady"])
    _assert_all_handled(stage)
    assert (relay.stop(), subscriber.stop()) == (0, 0)


@pytest.mark.parametrize("by", ["a proxy in front", "a list of hosts"])
def test_a_synchronous_replica_that_takes_over_has_every_event_that_was_committed(
    shared_stage: Stage, by: str
) -> None:
    with _replicated(shared_stage) as (stage, standby):
        if by == "a list of hosts":
            stage.environment["FAULTS_PORTS"] = f"{stage.postgres.port},{standby.port}"
        relays = [stage.relay(), stage.relay()]
        subscriber, publisher = stage.subscriber("steady"), stage.publisher()
        wait_until(lambda: stage.effects("steady") > 20, 60)
        primary = stage.postgres
        with healing(lambda: setattr(stage, "postgres", primary)):
            primary.kill()
            standby.promote()
            stage.database_proxy.retarget(standby.port)
            stage.postgres = standby
            before = stage.effects("steady")
            wait_until(lambda: stage.effects("steady") > before + 20, 60)
            publisher.kill()
            stage.wait_until_quiet(["steady"])
            _assert_all_handled(stage)
            assert [each.stop() for each in (*relays, subscriber)] == [0, 0, 0]


def test_a_replica_that_lagged_behind_goes_on_with_what_it_has(shared_stage: Stage) -> None:
    """What it never got is gone with the primary; what it got, and what comes later, is all sent.

    It gives ids once more that relays have seen, and their leases are those of before.
    """
    with _replicated(shared_stage, synchronous=False) as (stage, standby):
        relays = [stage.relay(), stage.relay()]
        publisher = stage.publisher(pause=0.002)
        wait_until(lambda: stage.archived() > 100, 60)
        primary = stage.postgres
        with healing(lambda: setattr(stage, "postgres", primary)):
            standby.sever()
            wait_until(lambda: not stage.sql("SELECT 1 FROM pg_stat_replication"), 30)
            before = stage.archived()
            wait_until(lambda: stage.archived() > before + 100, 60)
            primary.kill()
            standby.promote()
            stage.database_proxy.retarget(standby.port)
            stage.postgres = standby
            kept = stage.archived()
            assert kept < before + 100, "it lacks the last events"
            wait_until(lambda: stage.archived() > kept + 200, 60)
            publisher.kill()
            wait_until(lambda: not stage.waiting(), 60)
            account = stage.account(["spy"])
            spy = account.handlers["spy"]
            assert not spy.lost
            assert not account.disordered
            # Sent before the primary died, and unknown to the replica.
            assert spy.phantom <= _said_to_be_done(stage)
            assert [relay.stop() for relay in relays] == [0, 0]


@contextmanager
def _replicated(shared: Stage, synchronous: bool = True) -> Iterator[tuple[Stage, PrivateStandby]]:
    """A stage whose database has a replica; with the broker of another stage, empty before and after."""
    shared.reset()
    with Stage(rabbitmq=shared.rabbitmq) as stage, PrivateStandby(stage.postgres) as standby:
        if synchronous:
            stage.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            stage.sql("SELECT pg_reload_conf()")
        state = "sync" if synchronous else "async"
        wait_until(lambda: stage.sql("SELECT sync_state FROM pg_stat_replication") == [(state,)], 30)
        yield stage, standby
    shared.reset()


def _assert_all_handled(stage: Stage) -> None:
    account = stage.account(["steady"])
    assert account.violations() == [], stage.traces()
    assert account.handlers["steady"].handled == account.published
    assert _said_to_be_done(stage) <= account.published


def _said_to_be_done(stage: Stage) -> set[str]:
    """The events of which the database said that they are committed."""
    lines = stage.published_log.read_text().splitlines()
    return {event_id for word, event_id in map(str.split, lines) if word == "done"}
