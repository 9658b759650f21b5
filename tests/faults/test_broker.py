"""A broker that stops, runs short of memory, loses queues or refuses us."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pika
import pytest

from tests.faults.apparatus import Stage, healing
from tests.faults.project.fates import event_id_for
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until


def _broker(stage: Stage) -> PrivateRabbitMQ:
    assert stage.rabbitmq is not None
    return stage.rabbitmq


def test_retries_that_come_due_while_the_broker_is_stopped_come_afterwards(stage: Stage) -> None:
    events = [event_id_for("retry", number) for number in range(40)]
    stage.publish(40, event_ids=events)
    stage.relay()
    subscriber = stage.subscriber("moody")
    wait_until(lambda: stage.broker.depths(["moody"])["moody"] > 10 and not stage.waiting(), 20)
    _broker(stage).stop()
    longest = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > longest)
    _broker(stage).start()
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events)
    assert subscriber.stop() == 0


def test_short_of_memory_the_broker_takes_nothing_in_and_all_is_kept_in_the_outbox(stage: Stage) -> None:
    events = [event_id_for("retry", number) for number in range(40)]
    stage.publish(40, event_ids=events)
    relay, subscriber = stage.relay(), stage.subscriber("moody")
    wait_until(lambda: stage.broker.depths(["moody"])["moody"] > 10, 20)

    def enough() -> None:
        _broker(stage).ctl("set_vm_memory_high_watermark", "absolute", "1GB")

    with healing(enough):
        _broker(stage).ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        stage.publish(60)
        later = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > later)
        assert stage.waiting() > 0
        assert relay.exit_code is None
        assert subscriber.exit_code is None
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert set(events) <= account.handlers["moody"].handled
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_queues_deleted_under_our_feet_are_made_again(stage: Stage) -> None:
    stage.relay()
    subscriber = stage.subscriber("moody")
    stage.publish(5, event_ids=[event_id_for("fine", number) for number in range(5)])
    wait_until(lambda: stage.effects("moody") == 5, 20)
    events = [event_id_for("retry", number) for number in range(5)]
    events += [event_id_for("error", number) for number in range(5)]
    with healing(stage.declare):
        for name in ("moody", "moody-dl", "moody-wait-300", "moody-wait-1000", "moody-wait-2000"):
            _broker(stage).ctl("delete_queue", name)
        wait_until(lambda: _is_bound(stage, "moody"), 30)
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
    wait_until(lambda: stage.effects("steady") > 10, 20)
    with healing(lambda: _welcome(broker)):
        revoke(broker)
        stage.broker_proxy.cut()
        wait_until(lambda: "trying again" in relay.output() and "trying again" in subscriber.output(), 20)
        publisher.kill()
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.wait_until_quiet(["steady", "moody"])
    assert stage.account().violations() == []
    assert "guest:guest" not in relay.output() + subscriber.output()
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_an_exchange_deleted_under_our_feet_is_made_again_and_what_it_cost_is_marked(stage: Stage) -> None:
    """Its bindings go with it: what is published until subscribers are started again finds no queue."""
    stage.relay()
    subscriber = stage.subscriber("moody")
    stage.publish(5)
    wait_until(lambda: stage.archived() == 5, 20)
    with healing(stage.declare):
        with closing(pika.BlockingConnection(pika.URLParameters(_broker(stage).url()))) as connection:
            connection.channel().exchange_delete("domain-events")
        stage.publish(5)
        wait_until(lambda: stage.archived() == 10, 30)
    marked = stage.sql("SELECT event_id FROM domain_event_broker_archive WHERE unroutable")
    stage.publish(5)
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.handlers["moody"].lost == {event_id for (event_id,) in marked}
    assert len(marked) == 5
    assert len(account.handlers["moody"].handled | set(account.handlers["moody"].dead)) == 10
    assert subscriber.stop() == 0
