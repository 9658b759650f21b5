"""Parcels, and their way out of the house."""

from __future__ import annotations

from django.db import models


class Parcel(models.Model):
    """A parcel that stands ready, before it is paid for."""

    order_number = models.CharField(max_length=32, db_index=True)
    event_id = models.CharField(max_length=64, db_index=True)
    contents = models.CharField(max_length=80)
    destination = models.CharField(max_length=80)
    packed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.order_number} to {self.destination}"


class Shipment(models.Model):
    """A parcel that left.

    Nothing here keeps a parcel from being sent twice: the inbox of the handler does.
    """

    parcel = models.ForeignKey(Parcel, on_delete=models.CASCADE, related_name="shipments")
    order_number = models.CharField(max_length=32, db_index=True)
    event_id = models.CharField(max_length=64, db_index=True)
    carrier = models.CharField(max_length=40)
    sent_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.order_number} with {self.carrier}"
