"""A broker that stops, runs short of memory, loses queues or refuses us."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pika
import pytest

from tests.faults.apparatus import Program, Stage, healing
from tests.faults.project.fates import event_id_for
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until

#: Seconds for what takes a few on a machine that has nothing else to do.
PATIENCE = 90.0


def _broker(stage: Stage) -> PrivateRabbitMQ:
    assert stage.rabbitmq is not None
    return stage.rabbitmq


def _pass(seconds: float) -> None:
    """Let so much time pass: for what is to be seen not to happen."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, seconds + PATIENCE)


def _wait_for_effects(stage: Stage) -> None:
    before = stage.effects("steady")
    wait_until(lambda: stage.effects("steady") > before, PATIENCE)


def _wait_for_sending(stage: Stage) -> None:
    before = stage.archived()
    wait_until(lambda: stage.archived() > before or not stage.waiting(), PATIENCE)


def _is_away(program: Program) -> bool:
    """Tell whether a program says that the broker is away."""
    return "trying again" in program.output()


stopped_or_killed = pytest.mark.parametrize(
    "end", [PrivateRabbitMQ.stop, PrivateRabbitMQ.kill], ids=["stopped", "killed"]
)


@stopped_or_killed
def test_a_broker_that_goes_and_comes_back_while_events_are_published_costs_none(
    stage: Stage, end: Callable[[PrivateRabbitMQ], None]
) -> None:
    broker = _broker(stage)
    relay, subscriber = stage.relay(), stage.subscriber("steady", "moody")
    publisher = stage.publisher()
    wait_until(lambda: stage.effects("steady") > 20, PATIENCE)
    for times in (1, 2):
        end(broker)
        wait_until(lambda: stage.waiting() > 20, PATIENCE, "publishers go on without it")
        broker.start()
        back = time.monotonic()
        _wait_for_effects(stage)
        # Five seconds between two tries at most, and many for a machine that has other things to do.
        assert time.monotonic() - back < 30
        wait_until(lambda: relay.output().count("relaying again") == times, PATIENCE)  # noqa: B023
        wait_until(lambda: subscriber.output().count("consuming") == times + 1, PATIENCE)  # noqa: B023
    publisher.kill()
    stage.wait_until_quiet(["steady", "moody"], PATIENCE)
    assert stage.account().violations() == []
    # Said once when it is lost and once when it is back; by subscribers once also of two outages in a row.
    assert relay.output().count("trying again until it is back") == 2
    assert 1 <= subscriber.output().count("trying again until it is back") <= 2
    assert relay.output().count("relaying again") == 2
    assert subscriber.output().count("consuming steady, moody from") == 3
    assert (relay.stop(), subscriber.stop()) == (0, 0)


@stopped_or_killed
def test_deliveries_under_way_when_the_broker_goes_come_again_and_take_effect_once(
    stage: Stage, end: Callable[[PrivateRabbitMQ], None]
) -> None:
    stage.publish(12, "slow.done", seconds=3)
    stage.relay()
    subscriber = stage.subscriber("slow")
    wait_until(lambda: len(list(stage.directory.glob("began-*"))) == 4, PATIENCE, "four at once")
    end(_broker(stage))
    wait_until(lambda: stage.effects("slow") == 4, PATIENCE, "what runs is finished")
    _broker(stage).start()
    wait_until(lambda: stage.effects("slow") == 12, PATIENCE)
    stage.wait_until_quiet(["slow"], PATIENCE)
    account = stage.account(["slow"])
    assert account.violations() == []
    assert len(account.handlers["slow"].handled) == 12
    assert subscriber.stop() == 0


@stopped_or_killed
def test_retries_that_come_due_while_the_broker_is_away_come_afterwards(
    stage: Stage, end: Callable[[PrivateRabbitMQ], None]
) -> None:
    events = [event_id_for("retry", number) for number in range(40)]
    stage.publish(40, event_ids=events)
    stage.relay()
    subscriber = stage.subscriber("moody")
    wait_until(lambda: stage.broker.depths(["moody"])["moody"] > 10 and not stage.waiting(), PATIENCE)
    end(_broker(stage))
    _pass(2.5)
    _broker(stage).start()
    stage.wait_until_quiet(["moody"], PATIENCE)
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events)
    assert subscriber.stop() == 0


ALARMS = {
    "memory": (
        ("set_vm_memory_high_watermark", "absolute", "1MB"),
        ("set_vm_memory_high_watermark", "absolute", "1GB"),
    ),
    "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
}


@pytest.mark.parametrize("short_of", ALARMS)
def test_a_broker_short_of_memory_or_disk_is_waited_for_and_events_in_its_queues_are_handled(
    stage: Stage, short_of: str
) -> None:
    failing = [event_id_for("retry", number) for number in range(20)]
    fine = [event_id_for("fine", number) for number in range(40)]
    stage.publish(60, event_ids=[*failing, *fine])
    relay = stage.relay()
    wait_until(lambda: stage.broker.depths(["moody"])["moody"] == 60, PATIENCE)
    alarm, all_clear = ALARMS[short_of]
    with healing(lambda: _broker(stage).ctl(*all_clear)):
        _broker(stage).ctl(*alarm)
        subscriber = stage.subscriber("moody")
        stage.publish(60)
        wait_until(lambda: stage.effects("moody") == 40, PATIENCE, "what needs no copy is handled")
        assert stage.waiting() == 60, "what is published waits in the outbox"
        wait_until(lambda: "takes nothing in" in relay.output(), PATIENCE)
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.wait_until_quiet(["moody"], PATIENCE)
    account = stage.account(["moody"])
    assert account.violations() == []
    assert {*failing, *fine} <= account.handlers["moody"].handled
    assert relay.output().count("takes nothing in") == relay.output().count("relaying again") == 1
    assert subscriber.output().count("takes nothing in") == 1
    assert subscriber.output().count("takes events in again") == 1
    assert subscriber.output().count("consuming moody") == 1, "it never lost its connection"
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_queue_that_is_full_holds_events_back_and_parks_none(stage: Stage) -> None:
    with healing(lambda: _broker(stage).ctl("clear_policy", "full")):
        _broker(stage).ctl("set_policy", "full", "^moody$", '{"max-length": 10}', "--apply-to", "queues")
        stage.relay(FAULTS_ATTEMPTS="1")
        stage.publish(60)
        wait_until(lambda: stage.sql("SELECT 1 FROM domain_event_broker_held WHERE attempts > 2"), PATIENCE)
        assert stage.account(["moody"]).parked == set()
        subscriber = stage.subscriber("steady", "moody")
        stage.wait_until_quiet(["moody"], PATIENCE)
    account = stage.account()
    assert (account.parked, account.handlers["moody"].lost) == (set(), set())
    assert account.handlers["moody"].twice == account.handlers["steady"].twice == set()
    assert subscriber.stop() == 0


def test_a_broker_that_freezes_is_left_and_found_again(stage: Stage) -> None:
    relay, subscriber = stage.relay(), stage.subscriber("steady", "moody")
    publisher = stage.publisher()
    wait_until(lambda: stage.effects("steady") > 20, PATIENCE)
    with healing(_broker(stage).thaw):
        _broker(stage).freeze()
        for program in (relay, subscriber):
            wait_until(partial(_is_away, program), PATIENCE)
    _wait_for_effects(stage)
    publisher.kill()
    stage.wait_until_quiet(["steady", "moody"], PATIENCE)
    assert stage.account().violations() == []
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_connections_torn_cut_and_closed_in_the_middle_of_batches_cost_no_event(stage: Stage) -> None:
    broker, proxy = _broker(stage), stage.broker_proxy
    stage.publish(1200)
    relay, subscriber = stage.relay(), stage.subscriber("steady", "moody")
    faults = (proxy.cut, proxy.tear, lambda: broker.ctl("close_all_connections", "maintenance"))
    for fault in faults * 3:
        _wait_for_sending(stage)
        fault()
    stage.wait_until_quiet(["steady", "moody"], 2 * PATIENCE)
    account = stage.account()
    assert account.violations() == []
    assert len(account.handlers["steady"].handled) == 1200
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_handler_that_outlasts_the_brokers_patience_takes_effect_once(stage: Stage) -> None:
    """The broker takes an event back that had no answer for consumer_timeout, and closes the channel."""
    broker = _broker(stage)

    def patient() -> None:
        broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
        broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")

    with healing(patient):
        broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 3000).")
        broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        stage.publish(2, "slow.done", seconds=8)
        stage.relay()
        subscriber = stage.subscriber("slow")
        wait_until(lambda: "longer than consumer_timeout" in subscriber.output(), PATIENCE)
        wait_until(lambda: stage.effects("slow") == 2, PATIENCE)
        stage.wait_until_quiet(["slow"], PATIENCE)
    account = stage.account(["slow"])
    assert account.violations() == []
    assert len(account.handlers["slow"].handled) == 2
    assert account.handlers["slow"].dead == {}
    assert subscriber.stop() == 0


def test_queues_deleted_under_our_feet_are_made_again(stage: Stage) -> None:
    stage.relay()
    subscriber = stage.subscriber("moody")
    stage.publish(5, event_ids=[event_id_for("fine", number) for number in range(5)])
    wait_until(lambda: stage.effects("moody") == 5, PATIENCE)
    events = [event_id_for("retry", number) for number in range(5)]
    events += [event_id_for("error", number) for number in range(5)]
    with healing(stage.declare):
        for name in ("moody", "moody-dl", "moody-wait-300", "moody-wait-1000", "moody-wait-2000"):
            _broker(stage).ctl("delete_queue", name)
        wait_until(lambda: _is_bound(stage, "moody"), PATIENCE)
        stage.publish(10, event_ids=events)
        stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert set(account.handlers["moody"].dead) == set(events[5:])
    assert subscriber.stop() == 0


def _is_bound(stage: Stage, name: str) -> bool:
    """Tell whether events reach the queue: consumers of a deleted one are listed for a while longer."""
    rows = _broker(stage).ctl("list_bindings", "-q", "source_name", "destination_name").splitlines()
    return f"domain-events\t{name}" in rows


def _wrong_password(broker: PrivateRabbitMQ) -> None:
    broker.ctl("change_password", "guest", "another")


def _no_permissions(broker: PrivateRabbitMQ) -> None:
    broker.ctl("clear_permissions", "guest")


def _no_user(broker: PrivateRabbitMQ) -> None:
    broker.ctl("delete_user", "guest")


def _welcome(broker: PrivateRabbitMQ) -> None:
    if "guest" not in broker.ctl("list_users"):
        broker.ctl("add_user", "guest", "guest")
    broker.ctl("change_password", "guest", "guest")
    broker.ctl("set_permissions", "guest", ".*", ".*", ".*")


@pytest.mark.parametrize("revoke", [_wrong_password, _no_permissions, _no_user])
def test_credentials_revoked_and_restored_cost_no_event(
    stage: Stage, revoke: Callable[[PrivateRabbitMQ], None]
) -> None:
    broker = _broker(stage)
    relay, subscriber = stage.relay(), stage.subscriber("steady", "moody")
    publisher = stage.publisher()
    wait_until(lambda: stage.effects("steady") > 10, PATIENCE)
    with healing(lambda: _welcome(broker)):
        revoke(broker)
        stage.broker_proxy.cut()
        wait_until(lambda: _is_away(relay) and _is_away(subscriber), PATIENCE)
        publisher.kill()
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.wait_until_quiet(["steady", "moody"])
    assert stage.account().violations() == []
    assert "guest:guest" not in relay.output() + subscriber.output()
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_an_exchange_deleted_under_our_feet_costs_no_event(stage: Stage) -> None:
    """Its bindings go with it: nothing is sent before the queues of all subscribers are bound again."""
    relay, others = stage.relay(), [stage.subscriber("steady"), stage.subscriber("moody")]
    stage.publish(5)
    wait_until(lambda: stage.effects("steady") == 5, PATIENCE)
    with healing(stage.declare):
        with closing(pika.BlockingConnection(pika.URLParameters(_broker(stage).url()))) as connection:
            connection.channel().exchange_delete("domain-events")
        stage.publish(20)
        wait_until(lambda: stage.archived() == 25, PATIENCE)
        stage.wait_until_quiet(["steady", "moody"], PATIENCE)
    account = stage.account()
    # The spy does not run, so nobody has bound its queue meanwhile.
    assert account.violations() == []
    assert len(account.handlers["steady"].handled) == 25
    assert relay.output().count("was deleted") == relay.output().count("relaying again") == 1
    for each in others:
        assert each.output().count("is gone, and the bindings") == 1
        assert each.output().count("bound to the exchange domain-events again") == 1
        assert each.stop() == 0


def test_a_binding_deleted_under_our_feet_comes_back_while_the_subscriber_runs(stage: Stage) -> None:
    stage.relay()
    subscriber = stage.subscriber("moody", FAULTS_BIND_SECONDS="2")
    stage.publish(5)
    wait_until(lambda: stage.archived() == 5, PATIENCE)
    with healing(stage.declare):
        with closing(pika.BlockingConnection(pika.URLParameters(_broker(stage).url()))) as connection:
            connection.channel().queue_unbind("moody", "domain-events", "faults.#")
        wait_until(lambda: _is_bound(stage, "moody"), PATIENCE, interval=0.5)
    stage.publish(5)
    stage.wait_until_quiet(["moody"], PATIENCE)
    assert stage.account(["moody"]).violations() == []
    assert "trying again" not in subscriber.output()
    assert subscriber.stop() == 0
