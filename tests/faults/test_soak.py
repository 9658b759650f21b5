"""The judgement of the soak, and a soak of a few seconds; hours are for the hand: see ``soak.py``."""

from __future__ import annotations

import pytest

from tests.faults.soak import FIGURES, soak, trend

TIMES = [float(minute * 60) for minute in range(40)]
STEADY = [100.0, 101.0, 99.0, 100.0] * 10


@pytest.mark.parametrize(
    ("name", "values", "is_count", "flat"),
    [
        ("relay fds", [12.0] * 40, True, True),
        ("relay fds", [5.0] * 10 + [12.0] * 30, True, True),
        ("relay fds", [12.0] * 39 + [40.0], True, True),
        ("relay fds", [12.0 + minute // 10 for minute in range(40)], True, False),
        ("relay KB", STEADY, False, True),
        ("relay KB", [*STEADY[:20], *(value + 10 for value in STEADY[20:])], False, False),
        ("relay KB", [100.0 - minute for minute in range(40)], False, True),
        ("outbox KB", [40.0 + 10 * minute for minute in range(40)], False, True),
        ("outbox KB", [40.0 + 100 * minute for minute in range(40)], False, False),
    ],
)
def test_a_figure_is_flat_if_it_does_not_grow_after_the_warm_up(
    name: str, values: list[float], is_count: bool, flat: bool
) -> None:
    assert trend(name, TIMES, values, is_count).flat is flat


def test_a_short_soak_looks_at_everything_and_loses_nothing() -> None:
    text, _ = soak(minutes=0.2, rate=30.0, every=2.0, cut_minutes=0.1)
    assert text.endswith("violations: []")
    assert [name for name in FIGURES if name not in text] == []
