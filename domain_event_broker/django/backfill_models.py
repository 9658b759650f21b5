"""The table of back-fills: which sent events go once more to which handler, and how far that is."""

from __future__ import annotations

import json

from django.db import models


class Backfill(models.Model):
    """Sent events that are put into the queue of one handler, in the order in which they were sent.

    The row is the memory of how far it is: killed at any moment, it goes on from there. Of what was sent
    in between, at most one batch is sent twice.
    """

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField("handler", max_length=255)
    binding_keys = models.TextField("routing keys", help_text="JSON: binding keys that events must match.")
    since = models.DateTimeField("sent from", null=True, blank=True)
    until = models.DateTimeField("sent until", null=True, blank=True)
    ordering_key = models.CharField("domain object id", max_length=255, blank=True, default="")
    correlation_id = models.CharField("correlation id", max_length=255, blank=True, default="")
    force = models.BooleanField(
        "anew", default=False, help_text="The inbox forgets that the handler took effect before."
    )
    expected = models.BigIntegerField("events counted", default=0)
    up_to = models.BigIntegerField("ends with", help_text="The newest sent event when it began.")
    done_to = models.BigIntegerField("done up to", default=0, help_text="In the queue, and confirmed.")
    forgotten_to = models.BigIntegerField("forgotten up to", default=0)
    sent = models.BigIntegerField("events sent", default=0)
    begun_by = models.CharField("begun by", max_length=255, blank=True, default="")
    begun_at = models.DateTimeField("begun")
    moved_at = models.DateTimeField("last progress")
    ended_at = models.DateTimeField("ended", null=True, blank=True)
    given_up = models.BooleanField("given up", default=False)

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_backfill"
        verbose_name = "back-fill"
        verbose_name_plural = "back-fills"
        default_permissions = ("view",)
        permissions = [("run_backfill", "Can put sent events into the queue of a handler")]

    def __str__(self) -> str:
        return f"{self.handler} {self.pk}"

    @property
    def keys(self) -> tuple[str, ...]:
        """The binding keys, one of which the routing key of an event must match."""
        return tuple(json.loads(self.binding_keys))

    @property
    def state(self) -> str:
        """In one word or two where it is."""
        if self.ended_at is None:
            return "unfinished"
        return "given up" if self.given_up else "done"
