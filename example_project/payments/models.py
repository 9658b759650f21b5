"""Payments, and the switch of the fake payment provider."""

from __future__ import annotations

from django.db import models


class Payment(models.Model):
    """An answer of the payment provider.

    Nothing here keeps an order from being charged twice: the inbox of the handler does.
    """

    class Status(models.TextChoices):
        """What the provider said."""

        CHARGED = "charged", "charged"
        DECLINED = "declined", "declined"

    order_number = models.CharField(max_length=32, db_index=True)
    event_id = models.CharField(max_length=64, db_index=True)
    amount_cents = models.PositiveIntegerField()
    status = models.CharField(max_length=16, choices=Status.choices)
    reference = models.CharField(max_length=40, blank=True)
    attempts = models.PositiveSmallIntegerField()
    made_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.order_number} {self.status}"


class ProviderSwitch(models.Model):
    """Whether the fake payment provider is broken. At most one row; none: it works."""

    broken = models.BooleanField(default=False)

    class Meta:
        verbose_name = "payment provider"
        verbose_name_plural = "payment provider"

    def __str__(self) -> str:
        return "broken" if self.broken else "works"

    @classmethod
    def is_broken(cls) -> bool:
        """Tell whether the provider is broken now."""
        return cls.objects.filter(broken=True).exists()

    @classmethod
    def turn(cls, broken: bool) -> None:
        """Break or repair the provider."""
        cls.objects.update_or_create(pk=1, defaults={"broken": broken})
