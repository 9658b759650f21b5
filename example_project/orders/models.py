"""Orders, and what the shop knows about their fate."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """What a visitor ordered."""

    class Status(models.TextChoices):
        """How far an order got. Other apps decide; events tell."""

        PLACED = "placed", "placed"
        PAID = "paid", "paid"
        DECLINED = "declined", "payment declined"
        SHIPPED = "shipped", "shipped"

    product = models.CharField(max_length=40)
    quantity = models.PositiveSmallIntegerField()
    total_cents = models.PositiveIntegerField()
    destination = models.CharField(max_length=80)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.PLACED)
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.number

    @property
    def number(self) -> str:
        """The order number: what people and other apps know it by."""
        return f"S-{self.pk:04d}"

    @property
    def total(self) -> str:
        """The total as it is printed."""
        return f"€ {self.total_cents / 100:.2f}"

    @staticmethod
    def id_of(number: str | None) -> int:
        """Return the primary key behind an order number; 0, which no order has, for anything else."""
        digits = (number or "").removeprefix("S-")
        return int(digits) if digits.isdecimal() and len(digits) < 18 else 0


class Note(models.Model):
    """What a visitor wrote to the shop about an order."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="notes")
    text = models.CharField(max_length=200)
    written_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.order.number}: {self.text}"


class TimelineEntry(models.Model):
    """One event of an order, in words.

    Nothing here keeps an event from being entered twice: the inbox of the handler does.
    """

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="timeline")
    event_id = models.CharField(max_length=64, db_index=True)
    routing_key = models.CharField(max_length=255)
    text = models.CharField(max_length=255)
    happened_at = models.DateTimeField()

    class Meta:
        ordering = ("id",)
        verbose_name_plural = "timeline entries"

    def __str__(self) -> str:
        return f"{self.routing_key}: {self.text}"
