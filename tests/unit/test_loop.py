"""The loop of async handlers: nothing that one of them does ends it for the others."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import pytest

from domain_event_broker.loop import LoopPool
from domain_event_broker.pool import Job
from tests.harness.waiting import wait_until


async def leave() -> None:
    sys.exit(1)


class Work:
    """What the jobs of these tests do, by name."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_end = threading.Event()

    async def __call__(self, name: str, threads: Executor) -> str:
        return str(await getattr(self, name)())

    async def exits(self) -> str:
        try:
            await asyncio.create_task(leave())
        except SystemExit:
            return "it was told"
        return "never"

    async def works(self) -> str:
        return "done"

    async def is_slow_to_end(self) -> str:
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            while not self.let_end.is_set():
                await asyncio.sleep(0.01)
        return "ended by itself"


@pytest.fixture
def work() -> Work:
    return Work()


def serving(work: Work) -> LoopPool[str, str]:
    return LoopPool(work, {"lane": 10}, 10, lambda: None)


@pytest.fixture
def pool(work: Work) -> Iterator[LoopPool[str, str]]:
    made = serving(work)
    yield made
    made.close()


def answer(pool: LoopPool[str, str]) -> str:
    found: list[Any] = []
    wait_until(lambda: found.extend(pool.answers()) or found, 30, "an answer")
    return str(found[0])


def test_a_task_that_exits_ends_its_handler_and_no_other(pool: LoopPool[str, str]) -> None:
    pool.submit([Job("lane", "exits")])
    assert answer(pool) == "it was told"
    pool.submit([Job("lane", "works")])
    assert answer(pool) == "done"


def test_a_cancelled_handler_has_the_loop_until_it_has_ended(work: Work) -> None:
    pool = serving(work)
    pool.submit([Job("lane", "is_slow_to_end")])
    assert work.begun.wait(30)
    pool.close()
    threading.Timer(2.5, work.let_end.set).start()
    assert answer(pool) == "ended by itself"
