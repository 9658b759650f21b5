"""A business model, so that tests have a row which must live and die with its events."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """What a customer ordered."""

    number = models.CharField(max_length=64, unique=True)
    total = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.number
