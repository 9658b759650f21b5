"""A short torture with a fixed seed for every run; long ones are run by hand: see ``torture.py``."""

from __future__ import annotations

import pytest

from tests.faults.torture import plan, torture


@pytest.mark.parametrize(("transport", "seconds"), [("rabbitmq", 25.0), ("database", 8.0)])
def test_under_random_faults_no_event_is_lost_and_none_takes_effect_twice(
    transport: str, seconds: float
) -> None:
    report, problems = torture(2026, seconds, transport)
    assert problems == [], report


def test_a_seed_gives_the_same_faults_again() -> None:
    assert plan(7, 600, "rabbitmq") == plan(7, 600, "rabbitmq")
    assert plan(7, 600, "rabbitmq") != plan(8, 600, "rabbitmq")
