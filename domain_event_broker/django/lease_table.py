"""The leases of relays in the database: joining, sharing, leaving."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from django.db import connections, transaction
from django.db.models import F, Q

from domain_event_broker.django.database import unix_time
from domain_event_broker.django.leases import LeasePlan, LeaseState, plan_leases
from domain_event_broker.django.models import BUCKETS, RelayHeartbeat, RelayLease
from domain_event_broker.ports import Lease

#: Part of a lease after which a relay stops sending by itself. The rest is for a wave of
#: events that is under way then, and for clocks that do not run at the same speed.
FENCE = 0.8

#: A lease that ends later than so many leases from now was written before a clock was set back;
#: if nobody renews it for as long, by a clock that nobody sets, its holder is dead.
TOO_FAR = 2

#: Leases after which the sign of life of a relay that never left is forgotten.
FORGET_AFTER = 20


class LeaseTable:
    """The leases as one relay sees them; it has an identity of its own, which no other gets.

    All times come from the clock of the database, read once and before they are used: so a
    lease ends a little early for its holder and a little late for everybody else.

    :param alias: database of the outbox.
    :param seconds: length of a lease.
    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(self, alias: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.relay = uuid.uuid4().hex
        self._alias = alias
        self._seconds = seconds
        self._clock = clock
        self._started_at: float | None = None
        # Leases that end too far ahead, as read, each with the time at which we first read it so.
        self._stuck_since: dict[LeaseState, float] = {}

    def renew(self) -> Lease:
        """Give a sign of life, follow the plan, and return what is ours now."""
        asked_at = self._clock()
        now = unix_time(connections[self._alias])
        self._show_up(now)
        alive = self._alive(now)
        leases = self._without_stuck(self._states(now, alive), now)
        plan = plan_leases(self.relay, alive, leases, now)
        self._follow(plan, now)
        return Lease(self._epochs(now), asked_at + self._seconds * FENCE)

    def leave(self) -> None:
        """Free our buckets for the others, and vanish from their count."""
        RelayLease.objects.using(self._alias).filter(owner=self.relay).update(owner="", lease_until=0.0)
        RelayHeartbeat.objects.using(self._alias).filter(relay=self.relay).delete()

    def hold(self, epochs: Mapping[int, int], buckets: Collection[int]) -> set[int]:
        """Return those of ``buckets`` that are still ours, and keep them so until the transaction ends.

        The update changes nothing: it locks the rows, on databases without ``FOR UPDATE`` too.
        """
        leases = RelayLease.objects.using(self._alias).filter(owner=self.relay, bucket__in=buckets)
        leases.update(owner=self.relay)
        return {
            bucket for bucket, epoch in leases.values_list("bucket", "epoch") if epochs.get(bucket) == epoch
        }

    def _show_up(self, now: float) -> None:
        relays = RelayHeartbeat.objects.using(self._alias)
        if not relays.filter(relay=self.relay).update(seen_at=now):
            self._started_at = self._started_at or now
            host = socket.gethostname()[:255]
            relays.create(
                relay=self.relay, host=host, pid=os.getpid(), started_at=self._started_at, seen_at=now
            )
            relays.filter(seen_at__lt=now - FORGET_AFTER * self._seconds).delete()

    def _alive(self, now: float) -> list[str]:
        """Relays seen within the time of a lease: whoever is silent longer has lost its buckets.

        One that was seen in the future was so before the clock was set back.
        """
        relays = RelayHeartbeat.objects.using(self._alias).filter(
            seen_at__gt=now - self._seconds, seen_at__lte=now + self._seconds
        )
        return list(relays.values_list("relay", flat=True))

    def _states(self, now: float, alive: Collection[str]) -> list[LeaseState]:
        leases = RelayLease.objects.using(self._alias)
        rows = list(leases.values_list("bucket", "owner", "lease_until"))
        if len(rows) < BUCKETS:
            self._restore({bucket for bucket, _, _ in rows}, now, alive)
            rows = list(leases.values_list("bucket", "owner", "lease_until"))
        return [LeaseState(*row) for row in rows]

    def _without_stuck(self, leases: Sequence[LeaseState], now: float) -> list[LeaseState]:
        """Show leases as ended that end too far ahead and that nobody renews.

        The clock of the database was set back. Their holders may be alive: these write a time
        of today when they renew, before we would take from them.
        """
        at = self._clock()
        too_far = [lease for lease in leases if lease.until > self._too_far(now)]
        self._stuck_since = {lease: self._stuck_since.get(lease, at) for lease in too_far}
        patience = TOO_FAR * self._seconds
        stuck = {lease for lease, since in self._stuck_since.items() if at - since >= patience}
        return [replace(lease, until=0.0) if lease in stuck else lease for lease in leases]

    def _too_far(self, now: float) -> float:
        return now + TOO_FAR * self._seconds

    def _restore(self, present: Collection[int], now: float, alive: Collection[str]) -> None:
        """Put missing leases back.

        If other relays are alive they may have held them and go on sending for the rest of
        their time, so nobody may take them sooner.
        """
        until = now + self._seconds if set(alive) - {self.relay} else 0.0
        missing = [RelayLease(bucket=b, lease_until=until) for b in range(BUCKETS) if b not in present]
        RelayLease.objects.using(self._alias).bulk_create(missing, ignore_conflicts=True)

    def _follow(self, plan: LeasePlan, now: float) -> None:
        """Change the rows as planned, each only if it is still as the plan saw it."""
        leases = RelayLease.objects.using(self._alias)
        until = now + self._seconds
        with transaction.atomic(using=self._alias):
            leases.filter(owner=self.relay, bucket__in=plan.keep).update(lease_until=until)
            leases.filter(owner=self.relay, bucket__in=plan.release).update(owner="", lease_until=0.0)
        # In a statement of its own: whoever waits here for another relay holds nothing it wants.
        if plan.take:
            is_over = Q(lease_until__lte=now) | Q(lease_until__gt=self._too_far(now))
            free = leases.filter(is_over, bucket__in=plan.take).exclude(owner=self.relay)
            free.update(owner=self.relay, epoch=F("epoch") + 1, lease_until=until)

    def _epochs(self, now: float) -> dict[int, int]:
        leases = RelayLease.objects.using(self._alias).filter(owner=self.relay, lease_until__gt=now)
        return dict(leases.values_list("bucket", "epoch"))
