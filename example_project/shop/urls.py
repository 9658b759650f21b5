"""Every address of the shop."""

from django.contrib import admin
from django.urls import include, path

from shop import views

urlpatterns = [
    path("", include("orders.urls")),
    path("payments/", include("payments.urls")),
    path("events.json", views.events, name="events"),
    path("admin/", admin.site.urls),
]
