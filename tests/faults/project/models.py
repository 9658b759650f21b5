"""What publishers and handlers write: no constraint hides an effect that happened twice."""

from __future__ import annotations

from django.db import models


class Counter(models.Model):
    """The object that events are about: its row is locked while it changes, so its numbers are in order."""

    key = models.CharField(max_length=64, primary_key=True)
    total = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.key} {self.total}"


class Deed(models.Model):
    """The business row, written in the transaction that publishes the event: its existence is the truth."""

    event_id = models.CharField(max_length=64)
    key = models.CharField(max_length=64)
    number = models.IntegerField()

    def __str__(self) -> str:
        return self.event_id


class Effect(models.Model):
    """What a handler did for an event."""

    handler = models.CharField(max_length=64)
    event_id = models.CharField(max_length=64)
    pid = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.handler} {self.event_id}"
