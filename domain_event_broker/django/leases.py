"""Which relay sends from which buckets: the decision alone, no database and no clock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeaseState:
    """One row of the lease table, as read.

    :param until: end of the lease, in seconds by the clock of the database.
    """

    bucket: int
    owner: str
    until: float


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """What a relay does about its buckets. Whether it gets those it wants is up to the database.

    :param keep: ours, to be renewed.
    :param release: ours, more than our share.
    :param take: free or abandoned, and within our share.
    """

    keep: tuple[int, ...] = ()
    release: tuple[int, ...] = ()
    take: tuple[int, ...] = ()


def plan_leases(me: str, alive: Collection[str], leases: Sequence[LeaseState], now: float) -> LeasePlan:
    """Plan a fair share of the buckets for the relay ``me``.

    :param alive: the relays with a recent sign of life; ``me`` is one of them in any case.
    :param leases: the state of all buckets.
    :param now: time by the same clock as the ends of the leases.

    When all relays follow their plans, each has its share after two rounds: the older ones
    release in the first, the newcomers take in the second. Our own buckets are kept also when
    their lease has ended, as long as nobody else took them.
    """
    share = fair_share(me, alive, len(leases))
    ours = sorted(lease.bucket for lease in leases if lease.owner == me)
    free = sorted(lease.bucket for lease in leases if lease.owner != me and _is_free(lease, now))
    wanted = max(0, share - len(ours))
    return LeasePlan(tuple(ours[:share]), tuple(ours[share:]), tuple(_spread(free, me, alive)[:wanted]))


def fair_share(me: str, alive: Collection[str], buckets: int) -> int:
    """Return how many of ``buckets`` are for ``me``: the shares differ by at most one and leave none over."""
    relays = sorted({me, *alive})
    share, left_over = divmod(buckets, len(relays))
    return share + (relays.index(me) < left_over)


def _is_free(lease: LeaseState, now: float) -> bool:
    return lease.until <= now


def _spread(free: list[int], me: str, alive: Collection[str]) -> list[int]:
    """Let each relay begin at another place, so that two of them seldom reach for one bucket."""
    relays = sorted({me, *alive})
    start = len(free) * relays.index(me) // len(relays)
    return free[start:] + free[:start]
