"""Addresses of the payments app."""

from django.urls import path

from payments import views

urlpatterns = [path("provider/", views.turn_provider, name="turn-provider")]
