"""A broker of three nodes that loses its leader, or more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.apparatus import Stage
from tests.harness.rabbitmq import PrivateRabbitMQ, PrivateRabbitMQCluster
from tests.harness.waiting import wait_until

#: Seconds for nodes that find each other, elect leaders and look after dead letters again.
PATIENCE = 180.0
HANDLERS = ("steady", "moody")


@pytest.fixture(scope="module")
def cluster() -> Iterator[PrivateRabbitMQCluster]:
    """Three nodes."""
    with PrivateRabbitMQCluster() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def shared_stage(cluster: PrivateRabbitMQCluster) -> Iterator[Stage]:
    """The stage of this module, which is looked at over the last node."""
    with Stage(rabbitmq=cluster.nodes[-1]) as stage:
        yield stage


@pytest.fixture
def clustered(cluster: PrivateRabbitMQCluster, stage: Stage) -> Stage:
    """A stage whose programs know all nodes."""
    stage.rabbitmq = cluster.nodes[-1]
    stage.environment["FAULTS_BROKER"] = " ".join(f"{url}?heartbeat=3" for url in cluster.urls())
    return stage


def _leader(stage: Stage, queue: str) -> str:
    """Return the name of the node that leads a queue."""
    assert stage.rabbitmq is not None
    rows = stage.rabbitmq.ctl("list_queues", "name", "leader", "--no-table-headers").splitlines()
    return dict(row.split("\t") for row in rows)[queue]


def _work_goes_on(stage: Stage) -> None:
    before = stage.effects("steady")
    wait_until(lambda: stage.effects("steady") > before + 10, PATIENCE, stage.traces)


def _all_run(cluster: PrivateRabbitMQCluster) -> bool:
    return cluster.running() == len(cluster.nodes)


def test_a_cluster_that_loses_one_leader_after_the_other_goes_on_and_loses_no_event(
    cluster: PrivateRabbitMQCluster, clustered: Stage
) -> None:
    stage = clustered
    relay, subscriber = stage.relay(), stage.subscriber(*HANDLERS)
    publisher = stage.publisher()
    _work_goes_on(stage)
    for _ in range(2):
        leader = _leader(stage, "steady")
        node = next(each for each in cluster.nodes if each.node == leader)
        node.kill()
        stage.rabbitmq = next(each for each in cluster.nodes if each is not node)
        _work_goes_on(stage)
        assert _leader(stage, "steady") != leader
        node.start()
        wait_until(lambda: _all_run(cluster), PATIENCE)
    publisher.kill()
    stage.wait_until_quiet(HANDLERS, PATIENCE)
    assert stage.account(HANDLERS).violations() == []
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_without_a_majority_events_wait_in_the_outbox(
    cluster: PrivateRabbitMQCluster, clustered: Stage
) -> None:
    stage, lost = clustered, cluster.nodes[:2]
    relay, subscriber = stage.relay(), stage.subscriber(*HANDLERS)
    publisher = stage.publisher()
    _work_goes_on(stage)
    for node in lost:
        node.kill()
    wait_until(lambda: stage.waiting() > 300, PATIENCE, "publishers go on")
    publisher.kill()
    published, sent = stage.waiting(), stage.archived()
    assert (relay.exit_code, subscriber.exit_code) == (None, None)
    # Neither of them comes up without the other.
    _start_together(lost)
    wait_until(lambda: _all_run(cluster), PATIENCE)
    stage.wait_until_quiet(HANDLERS, PATIENCE)
    assert stage.archived() >= sent + published
    assert stage.account(HANDLERS).violations() == []
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def _start_together(nodes: list[PrivateRabbitMQ]) -> None:
    for node in nodes:
        node.start()
