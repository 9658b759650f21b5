"""The threads that run handlers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from domain_event_broker.pool import HandlerPool, Job
from tests.harness.waiting import wait_until


class Gate:
    """Work that stays at a gate until it is opened, and counts who is there."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside: list[str] = []
        self.most: dict[str, int] = {}
        self.order: list[str] = []
        self._lock = threading.Lock()

    def pass_through(self, name: str) -> str:
        lane = name.split("-")[0]
        with self._lock:
            self.order.append(name)
            self.inside.append(lane)
            self.most[lane] = max(self.most.get(lane, 0), self.inside.count(lane))
        assert self.open.wait(30)
        with self._lock:
            self.inside.remove(lane)
        return name


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def pool(gate: Gate) -> Iterator[HandlerPool[str, str]]:
    made = HandlerPool(gate.pass_through, {"a": 1, "b": 2}, threads=3, on_answer=lambda: None)
    yield made
    gate.open.set()
    made.close()


def jobs(lane: str, count: int) -> list[Job[str]]:
    return [Job(lane, f"{lane}-{number}") for number in range(count)]


def test_a_lane_runs_as_many_jobs_at_once_as_it_allows(gate: Gate, pool: HandlerPool[str, str]) -> None:
    pool.submit(jobs("a", 3) + jobs("b", 3))
    wait_until(lambda: len(gate.inside) == 3, 10, "three jobs inside")
    gate.open.set()
    wait_until(lambda: pool.running == 0 and len(gate.order) == 6, 10, "all jobs done")
    assert gate.most == {"a": 1, "b": 2}
    assert sorted(pool.answers()) == sorted(job.work for job in jobs("a", 3) + jobs("b", 3))


def test_jobs_of_a_lane_start_in_their_order(gate: Gate, pool: HandlerPool[str, str]) -> None:
    gate.open.set()
    pool.submit(jobs("a", 200))
    wait_until(lambda: len(gate.order) == 200, 10, "all jobs started")
    assert gate.order == [job.work for job in jobs("a", 200)]


def test_waiting_jobs_can_be_taken_back(gate: Gate, pool: HandlerPool[str, str]) -> None:
    pool.submit(jobs("a", 5))
    wait_until(lambda: len(gate.inside) == 1, 10, "one job inside")
    assert pool.drop_waiting() == ["a-1", "a-2", "a-3", "a-4"]
    assert pool.busy
    gate.open.set()
    wait_until(lambda: pool.answers() == ["a-0"], 10, "the answer of the job that ran")
    assert not pool.busy


def test_a_closed_pool_starts_nothing_more(gate: Gate, pool: HandlerPool[str, str]) -> None:
    pool.submit(jobs("a", 2))
    wait_until(lambda: len(gate.inside) == 1, 10, "one job inside")
    pool.close()
    gate.open.set()
    wait_until(lambda: pool.running == 0, 10, "the running job done")
    assert gate.order == ["a-0"]
