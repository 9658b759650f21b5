"""The tables of the outbox and the inbox.

The *hot* table holds only events that wait to be sent: rows are appended by publishers and
deleted by the relay, and never updated, so it is empty when all is well and stays small
however many events pass through. What cannot be sent now is *held* in a table of its own, what
was sent moves to the *archive*.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from django.db import models

from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.transport_models import (
    DeadDelivery,
    DeadLetter,
    QueuedDelivery,
    TransportQueue,
)
from domain_event_broker.events import Message

__all__ = [
    "BUCKETS",
    "ArchivedEvent",
    "Backfill",
    "BrokerOverview",
    "DeadDelivery",
    "DeadLetter",
    "HeldEvent",
    "InboxEntry",
    "OutboxEvent",
    "QueuedDelivery",
    "RelayHeartbeat",
    "RelayLease",
    "StoredEvent",
    "TransportQueue",
]

#: Fixed for good: the bucket of a key must be the same for every publisher and relay.
BUCKETS = 64


class StoredEvent(models.Model):
    """An event as it will be, or was, sent: the columns that all three homes of an event share."""

    event_id = models.CharField("event id", max_length=64)
    bucket = models.SmallIntegerField(
        "bucket", help_text="Unit of work of relays; all events of a key share one."
    )
    # No key is not the empty key: only null says so.
    ordering_key = models.CharField("domain object id", max_length=255, null=True)  # noqa: DJ001
    routing_key = models.CharField("routing key", max_length=255)
    body = models.TextField("body", help_text="The exact JSON that is sent.")
    headers = models.TextField("headers", blank=True, default="", help_text="JSON, or nothing.")
    timestamp = models.FloatField(
        "event timestamp", default=0.0, help_text="Unix time that the event carries."
    )
    created_at = models.DateTimeField("stored at")
    # Also in the headers, or the event id: here it can be searched. Null: written by a release that
    # knew nothing of it, which may be going on while this one is being deployed.
    correlation_id = models.CharField("correlation id", max_length=255, null=True, blank=True)  # noqa: DJ001

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.routing_key} {self.event_id}"

    def to_message(self) -> Message:
        """Return the message that is sent for this row, byte for byte."""
        headers = json.loads(self.headers) if self.headers else {}
        body = self.body.encode()
        return Message(self.routing_key, body, self.event_id, self.ordering_key, self.timestamp, headers)


class OutboxEvent(StoredEvent):
    """An event that waits to be sent: the hot table.

    Two indexes and no more, since each costs every business transaction that publishes.
    ``attempts`` is written when the row is, and never changed in place.
    """

    id = models.BigAutoField(primary_key=True)
    attempts = models.SmallIntegerField("refusals so far", default=0)

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_outbox"
        verbose_name = "waiting event"
        verbose_name_plural = "waiting events"
        indexes = [models.Index(fields=["bucket", "id"], name="deb_outbox_bucket")]


class HeldEvent(StoredEvent):
    """An event that is kept out of the hot table: for later, or because the broker refused it.

    Due rows go back into the hot table: scheduled ones as new rows, refused ones with their
    old id and so ahead of the later events of their key. Parked rows stay until somebody
    decides; nothing deletes them by age.
    """

    class State(models.TextChoices):
        """Why an event is held."""

        SCHEDULED = "scheduled", "scheduled for later"
        RETRYING = "retrying", "refused, will be tried again"
        PARKED = "parked", "parked until somebody decides"

    id = models.BigAutoField(primary_key=True)
    state = models.CharField("state", max_length=16, choices=State.choices)
    due_at = models.DateTimeField(
        "due at", null=True, blank=True, help_text="When it goes back; empty: parked."
    )
    outbox_id = models.BigIntegerField("place in the outbox", null=True, blank=True)
    attempts = models.SmallIntegerField("refusals so far", default=0)
    reason = models.TextField("reason", blank=True, default="")
    blocks_key = models.BooleanField(
        "blocks its key", default=False, help_text="Later events of its key wait for it."
    )
    held_at = models.DateTimeField("held since")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_held"
        verbose_name = "held event"
        verbose_name_plural = "held events"
        permissions = [
            ("replay_heldevent", "Can send held events now"),
            ("discard_heldevent", "Can discard held events"),
        ]
        indexes = [
            models.Index(fields=["due_at"], name="deb_held_due"),
            models.Index(fields=["blocks_key", "ordering_key"], name="deb_held_key"),
            models.Index(fields=["state", "id"], name="deb_held_state"),
            models.Index(fields=["correlation_id"], name="deb_held_story"),
        ]


class ArchivedEvent(StoredEvent):
    """An event that was sent, kept for a while so that it can be found and sent once more."""

    id = models.BigAutoField(primary_key=True)
    outbox_id = models.BigIntegerField("place in the outbox")
    published_at = models.DateTimeField("sent at")
    unroutable = models.BooleanField("unroutable", default=False, help_text="No queue was bound for it.")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_archive"
        verbose_name = "sent event"
        verbose_name_plural = "sent events"
        permissions = [("replay_archivedevent", "Can publish sent events again")]
        indexes = [
            models.Index(fields=["published_at"], name="deb_archive_published"),
            models.Index(fields=["event_id"], name="deb_archive_event"),
            models.Index(fields=["correlation_id"], name="deb_archive_story"),
        ]


class RelayLease(models.Model):
    """Who may send the events of a bucket, and until when.

    Times of relays are Unix times by the clock of the database: one clock for all hosts, which
    no time zone, daylight saving or ``USE_TZ`` bends.
    """

    bucket = models.SmallIntegerField("bucket", primary_key=True)
    owner = models.CharField("relay", max_length=64, blank=True, default="")
    epoch = models.BigIntegerField("changes of hands", default=0)
    lease_until = models.FloatField("lease ends", default=0.0, help_text="Unix time.")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_lease"
        verbose_name = "relay lease"
        verbose_name_plural = "relay leases"

    def __str__(self) -> str:
        return f"bucket {self.bucket}: {self.owner or 'free'}"

    @property
    def ends_at(self) -> datetime:
        """When the lease ends, in UTC."""
        return datetime.fromtimestamp(self.lease_until, timezone.utc)


class RelayHeartbeat(models.Model):
    """A relay that is alive, whether or not it has buckets yet: what shares are computed from."""

    relay = models.CharField("relay", max_length=64, primary_key=True)
    host = models.CharField("host", max_length=255)
    pid = models.IntegerField("process")
    started_at = models.FloatField("started", help_text="Unix time.")
    seen_at = models.FloatField("last seen", help_text="Unix time.")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_relay"
        verbose_name = "relay"
        verbose_name_plural = "relays"

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def last_seen(self) -> datetime:
        """When the relay last gave a sign of life, in UTC."""
        return datetime.fromtimestamp(self.seen_at, timezone.utc)


class BrokerOverview(RelayHeartbeat):
    """Name and permission of the overview in the admin, which shows far more than this table."""

    class Meta:
        app_label = "domain_event_broker"
        proxy = True
        # So that it comes first among the others, which the admin sorts by name.
        verbose_name = "broker overview"
        verbose_name_plural = "at a glance"
        default_permissions = ("view",)


class InboxEntry(models.Model):
    """A handler took effect for an event; it will not do so again."""

    id = models.BigAutoField(primary_key=True)
    consumer = models.CharField("handler", max_length=255)
    event_id = models.CharField("event id", max_length=64)
    handled_at = models.DateTimeField("handled at")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_inbox"
        verbose_name = "handled event"
        verbose_name_plural = "handled events"
        constraints = [models.UniqueConstraint(fields=["consumer", "event_id"], name="deb_inbox_once")]
        indexes = [models.Index(fields=["handled_at"], name="deb_inbox_handled")]

    def __str__(self) -> str:
        return f"{self.consumer} handled {self.event_id}"
