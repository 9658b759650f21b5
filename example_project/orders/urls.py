"""Addresses of the orders app."""

from django.urls import path

from orders import views

urlpatterns = [
    path("", views.home, name="home"),
    path("orders/<str:number>/", views.order, name="order"),
    path("orders/<str:number>/timeline.json", views.timeline, name="timeline"),
    path("orders/<str:number>/notes/", views.note, name="note"),
]
