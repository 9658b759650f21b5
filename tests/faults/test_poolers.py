"""PgBouncer in front of publishers, relays and subscribers."""

from __future__ import annotations

import time

import pytest

from domain_event_broker.django.waiting import PROOF_SECONDS
from tests.faults.apparatus import DATABASE, Stage
from tests.harness.pgbouncer import PrivatePgBouncer
from tests.harness.waiting import wait_until

#: As it comes.
POLL_SECONDS = 1.0
DEAF = "so this relay polls from now on"


def test_sessions_shared_between_transactions_cost_no_event_and_relays_poll_and_say_so_once(
    stage: Stage,
) -> None:
    """With fewer sessions than clients, so that each transaction may have another one."""
    with PrivatePgBouncer(stage.postgres, "transaction", {"default_pool_size": "4"}) as pooler:
        stage.environment["FAULTS_DATABASE"] = pooler.url(DATABASE)
        relays = [stage.relay(), stage.relay()]
        subscriber = stage.subscriber("steady")
        publishers = [stage.publisher(pause=0.002), stage.publisher(pause=0.002)]
        wait_until(lambda: stage.effects("steady") > 50, 60)
        wait_until(lambda: all(DEAF in relay.output() for relay in relays), 60)
        assert _listeners(stage) <= len(relays)
        before = stage.effects("steady")
        wait_until(lambda: stage.effects("steady") > before + 50, 60)
        for publisher in publishers:
            publisher.kill()
        stage.wait_until_quiet(["steady"])
        account = stage.account(["steady"])
        assert account.violations() == []
        assert account.handlers["steady"].handled == account.published
        assert [relay.output().count(DEAF) for relay in relays] == [1, 1]
        assert [each.stop() for each in (*relays, subscriber)] == [0, 0, 0]


def test_a_session_for_each_client_lets_relays_listen(stage: Stage) -> None:
    with PrivatePgBouncer(stage.postgres, "session") as pooler:
        relay = stage.relay(FAULTS_DATABASE=pooler.url(DATABASE))
        wait_until(lambda: _listeners(stage) == 1, 60)
        stage.publish(5)
        wait_until(lambda: stage.archived() == 5, 60)
        proof = time.monotonic() + PROOF_SECONDS + 3 * POLL_SECONDS
        wait_until(lambda: time.monotonic() > proof, 60)
        assert DEAF not in relay.output()
        assert stage.account(["spy"]).violations() == []
        assert relay.stop() == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_pooler_that_is_restarted_is_found_again(stage: Stage, end: str) -> None:
    with PrivatePgBouncer(stage.postgres, "transaction") as pooler:
        stage.environment["FAULTS_DATABASE"] = pooler.url(DATABASE)
        relay, subscriber, publisher = stage.relay(), stage.subscriber("steady"), stage.publisher()
        wait_until(lambda: stage.effects("steady") > 10, 60)
        getattr(pooler, end)()
        wait_until(lambda: "trying again until it is back" in relay.output(), 60)
        pooler.start()
        before = stage.effects("steady")
        wait_until(lambda: stage.effects("steady") > before, 60)
        publisher.kill()
        stage.wait_until_quiet(["steady"])
        account = stage.account(["steady"])
        assert account.violations() == []
        assert account.handlers["steady"].handled == account.published
        assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_server_behind_a_pooler_that_is_killed_costs_no_event(stage: Stage) -> None:
    """The pooler keeps its clients meanwhile, so that a connection leads to another server process."""
    with PrivatePgBouncer(stage.postgres, "transaction") as pooler:
        stage.environment["FAULTS_DATABASE"] = pooler.url(DATABASE)
        relay, subscriber, publisher = stage.relay(), stage.subscriber("steady"), stage.publisher()
        wait_until(lambda: stage.effects("steady") > 10, 60)
        stage.postgres.kill()
        stage.postgres.start()
        before = stage.effects("steady")
        wait_until(lambda: stage.effects("steady") > before, 60)
        publisher.kill()
        stage.wait_until_quiet(["steady"])
        account = stage.account(["steady"])
        assert account.violations() == []
        assert account.handlers["steady"].handled == account.published
        assert (relay.stop(), subscriber.stop()) == (0, 0)


def _listeners(stage: Stage) -> int:
    """How many sessions have done nothing since they began to listen."""
    rows = stage.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    return int(rows[0][0])
