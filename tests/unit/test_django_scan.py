"""The bound of scans moves up only past ids that nobody can commit any more."""

from __future__ import annotations

import pytest

from domain_event_broker.django.scan import LOOK_SECONDS, SWEEP_SECONDS, ScanBound
from tests.unit.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def send(bound: ScanBound, *row_ids: int, is_full: bool = False) -> None:
    bound.fetched(row_ids, is_full)
    bound.settled(row_ids)


def look(bound: ScanBound, clock: Clock, oldest: int, following: int) -> None:
    clock.now += LOOK_SECONDS
    assert bound.wants_a_look()
    bound.look(oldest, following)


def settle_down(bound: ScanBound, clock: Clock) -> None:
    """Let the bound move to what was sent: everything that ran has ended."""
    look(bound, clock, 10, 10)  # from now on, ids seen before this are old enough
    look(bound, clock, 20, 20)
    look(bound, clock, 30, 30)
    look(bound, clock, 40, 40)
    bound.fetched([], False)


def test_it_begins_at_nought(clock: Clock) -> None:
    assert ScanBound(clock).start() == 0


def test_sent_rows_alone_do_not_move_it(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 2, 3)
    assert bound.start() == 0


def test_it_moves_when_all_that_ran_has_ended_and_a_scan_came_after(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 2, 3)
    settle_down(bound, clock)
    assert bound.start() == 3


def test_it_waits_for_a_transaction_that_may_hold_a_lower_id(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 3)
    for _ in range(5):
        look(bound, clock, oldest=7, following=9)  # transaction 7 runs on and on
        bound.fetched([], False)
    assert bound.start() == 0
    send(bound, 2)  # it has committed
    look(bound, clock, oldest=9, following=9)
    bound.fetched([], False)
    assert bound.start() == 3


def test_a_row_that_commits_just_before_the_bound_moves_is_found_by_the_scan_after(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 3)
    look(bound, clock, 10, 10)
    look(bound, clock, 20, 20)
    look(bound, clock, 30, 30)
    assert bound.start() == 0, "the scan after the look begins at the old bound"
    bound.fetched([2], False)
    assert bound.start() == 1, "and what it found is not settled yet"
    bound.settled([2])
    assert bound.start() == 3


def test_a_full_scan_moves_it_no_further_than_it_saw(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 9)
    look(bound, clock, 10, 10)
    look(bound, clock, 20, 20)
    look(bound, clock, 30, 30)
    send(bound, 2, 3, is_full=True)
    assert bound.start() == 3


def test_rows_under_way_hold_it(clock: Clock) -> None:
    bound = ScanBound(clock)
    bound.fetched([4, 5, 6], False)
    bound.settled([6])
    for _ in range(3):
        look(bound, clock, 10, 10)
        bound.fetched([4, 5], False)
    assert bound.start() == 3


def test_rows_that_somebody_else_removed_do_not_hold_it_for_ever(clock: Clock) -> None:
    bound = ScanBound(clock)
    bound.fetched([4, 5, 6], False)
    bound.settled([5, 6])
    settle_down(bound, clock)  # its scan no longer finds row 4
    assert bound.start() == 6


def test_a_reset_goes_back_to_nought(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 2, 3)
    settle_down(bound, clock)
    bound.reset()
    assert bound.start() == 0


def test_a_sweep_now_and_then_starts_at_nought_and_the_bound_stays(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 2, 3)
    settle_down(bound, clock)
    clock.now += SWEEP_SECONDS
    assert bound.start() == 0
    assert bound.start() == 3


def test_nothing_new_wants_no_look(clock: Clock) -> None:
    bound = ScanBound(clock)
    send(bound, 1, 2, 3)
    settle_down(bound, clock)
    clock.now += LOOK_SECONDS
    assert not bound.wants_a_look()
