"""The plan of a relay: fair shares, nothing left over, nothing taken twice."""

from __future__ import annotations

import pytest

from domain_event_broker.django.leases import LeasePlan, LeaseState, fair_share, plan_leases

NOW = 100.0


def lease(bucket: int, owner: str = "", until: float = 0.0) -> LeaseState:
    return LeaseState(bucket, owner, until)


def test_a_relay_alone_takes_everything() -> None:
    plan = plan_leases("a", ["a"], [lease(b) for b in range(4)], NOW)
    assert plan == LeasePlan(take=(0, 1, 2, 3))


def test_a_relay_keeps_what_it_has() -> None:
    plan = plan_leases("a", ["a"], [lease(b, "a", NOW + 5) for b in range(4)], NOW)
    assert plan == LeasePlan(keep=(0, 1, 2, 3))


def test_a_relay_keeps_what_ended_as_long_as_nobody_took_it() -> None:
    assert plan_leases("a", ["a"], [lease(0, "a", NOW - 5)], NOW) == LeasePlan(keep=(0,))


def test_a_newcomer_makes_the_old_one_release_its_half() -> None:
    leases = [lease(b, "a", NOW + 5) for b in range(4)]
    assert plan_leases("a", ["a", "b"], leases, NOW) == LeasePlan(keep=(0, 1), release=(2, 3))
    assert plan_leases("b", ["a", "b"], leases, NOW) == LeasePlan()


def test_a_newcomer_takes_what_was_released_and_no_more() -> None:
    leases = [lease(0, "a", NOW + 5), lease(1, "a", NOW + 5), lease(2), lease(3)]
    assert sorted(plan_leases("b", ["a", "b"], leases, NOW).take) == [2, 3]


def test_the_buckets_of_the_dead_are_taken_when_their_lease_has_ended() -> None:
    leases = [lease(0, "dead", NOW - 0.1), lease(1, "dead", NOW + 0.1)]
    assert plan_leases("a", ["a"], leases, NOW).take == (0,)


def test_nobody_takes_from_the_living() -> None:
    leases = [lease(b, "b", NOW + 5) for b in range(4)]
    assert plan_leases("a", ["a", "b"], leases, NOW) == LeasePlan()


def test_two_newcomers_reach_for_different_buckets() -> None:
    leases = [lease(b) for b in range(64)]
    takes = [set(plan_leases(me, ["a", "b"], leases, NOW).take) for me in "ab"]
    assert not takes[0] & takes[1]


def test_a_relay_that_nobody_counted_counts_itself() -> None:
    assert fair_share("a", [], 64) == 64


@pytest.mark.parametrize("relays", range(1, 70))
def test_shares_differ_by_at_most_one_and_leave_none_over(relays: int) -> None:
    names = [f"relay-{number:02}" for number in range(relays)]
    shares = [fair_share(name, names, 64) for name in names]
    assert sum(shares) == 64
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("start", [0, 1, 5, 64])
def test_following_the_plans_ends_with_fair_shares_in_two_rounds(start: int) -> None:
    """Whatever was owned by the first relay before, after two rounds each of five has its share."""
    owners = {bucket: "r0" if bucket < start else "" for bucket in range(64)}
    names = [f"r{number}" for number in range(5)]
    for _ in range(2):
        for me in names:
            leases = [lease(b, owner, NOW + 5 if owner else 0.0) for b, owner in owners.items()]
            plan = plan_leases(me, names, leases, NOW)
            owners.update(dict.fromkeys(plan.release, "") | dict.fromkeys(plan.take, me))
    counts = sorted(list(owners.values()).count(name) for name in names)
    assert counts == [12, 13, 13, 13, 13]
