"""One stage for all fault tests of a worker, emptied before each; what a test breaks it heals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.apparatus import Stage
from tests.faults.previous import unpack_previous_release


@pytest.fixture(scope="session")
def shared_stage() -> Iterator[Stage]:
    """PostgreSQL and RabbitMQ, each behind a proxy."""
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the code of the release before this one is."""
    directory = tmp_path_factory.mktemp("previous")
    unpack_previous_release(directory)
    return directory


@pytest.fixture
def stage(shared_stage: Stage, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The stage, empty; its programs end with the test, and their last words are shown if it failed."""
    shared_stage.reset()
    yield shared_stage
    print(shared_stage.traces())  # noqa: T201 - pytest shows it where the test failed
    shared_stage.end_programs()
