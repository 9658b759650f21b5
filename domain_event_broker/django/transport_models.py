"""The tables of the ``database:`` transport: queues, what waits in them, and the dead letters.

Text columns are compared byte for byte, which MySQL does only with a binary collation; the
migrations see to that.
"""

from __future__ import annotations

from django.db import models


class TransportQueue(models.Model):
    """The queue of one handler. Publishers read the whole table: one row for each handler."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField("handler", max_length=255, unique=True)
    bindings = models.TextField(
        "bindings", default="{}", help_text="JSON object: a list of binding keys for each exchange."
    )

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_queue"
        verbose_name = "queue"
        verbose_name_plural = "queues"

    def __str__(self) -> str:
        return self.name


class QueuedEvent(models.Model):
    """An event in the queue of one handler: the columns that waiting and dead ones share.

    The queue is no foreign key for the database: each insert would lock its row there, and
    that row is the same one for all publishers of an event.
    """

    id = models.BigAutoField(primary_key=True)
    queue = models.ForeignKey(
        TransportQueue,
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="+",
        verbose_name="handler",
    )
    event_id = models.CharField("event id", max_length=255)
    routing_key = models.CharField("routing key", max_length=255)
    body = models.BinaryField("body", help_text="The exact bytes that are delivered.")
    headers = models.TextField("headers", default="{}", help_text="JSON object.")

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.routing_key} {self.event_id}"


class QueuedDelivery(QueuedEvent):
    """An event that waits for its handler, or is under way to it.

    One index serves all looks: the events that may go at once (``due_at`` is 0, in the order
    of their ids), those that are due (retries whose delay is over, and events whose holder
    died), and the depths of queues.
    """

    retries = models.IntegerField("retries so far", default=0)
    crashes = models.IntegerField("holders that died with it", default=0)
    due_at = models.BigIntegerField(
        "due at",
        default=0,
        help_text="Unix time in milliseconds by the clock of the database; 0: at once. "
        "While a receiver holds it: when its lock ends.",
    )
    holder = models.BigIntegerField("holder", null=True, help_text="The receiver that it is with.")

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_delivery"
        verbose_name = "queued event"
        verbose_name_plural = "queued events"
        indexes = [models.Index(fields=["queue", "due_at", "id"], name="deb_delivery_next")]


class DeadDelivery(QueuedEvent):
    """An event that its handler will not get again, unless it is replayed. The failure is in the headers."""

    class Meta:
        app_label = "domain_event_broker"
        db_table = "domain_event_broker_dead"
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"
        indexes = [models.Index(fields=["queue", "id"], name="deb_dead_queue")]


class DeadLetter(DeadDelivery):
    """Name and permissions of the dead letters in the admin, in whatever broker they are.

    A proxy, since permissions belong to a model. Only those of ``database:`` are in its table; the
    admin asks the transport, and never this table.
    """

    class Meta:
        app_label = "domain_event_broker"
        proxy = True
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"
        default_permissions = ("view",)
        permissions = [
            ("replay_deadletter", "Can replay dead letters"),
            ("discard_deadletter", "Can discard dead letters"),
        ]
