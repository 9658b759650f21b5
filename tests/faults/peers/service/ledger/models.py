"""What publishers and handlers write: no constraint hides an effect that happened twice."""

from django.db import models


class Deed(models.Model):
    """The business row, written in the transaction that publishes the event: its existence is the truth."""

    event_id = models.CharField(max_length=64)

    class Meta:
        db_table = "faults_deed"

    def __str__(self) -> str:
        return self.event_id


class Effect(models.Model):
    """What the handler did for an event."""

    event_id = models.CharField(max_length=64)

    class Meta:
        db_table = "faults_effect"

    def __str__(self) -> str:
        return self.event_id
