"""The pages of the shop: the shelves, and an order with its events as they arrive."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from orders.catalogue import PRODUCTS
from orders.forms import NoteForm, OrderForm
from orders.models import Order
from orders.services import add_note, place_order

#: Orders shown on the first page.
RECENT = 8


@require_http_methods(["GET", "POST"])
def home(request: HttpRequest) -> HttpResponse:
    """Show the shelves; take an order."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        order = place_order(**form.cleaned_data)
        return redirect("order", order.number)
    recent = Order.objects.order_by("-pk")[:RECENT]
    return render(
        request,
        "orders/home.html",
        {"form": form, "products": PRODUCTS.values(), "orders": recent},
        status=400 if form.is_bound else 200,
    )


@require_GET
def order(request: HttpRequest, number: str) -> HttpResponse:
    """Show an order and its timeline."""
    found = _order(number)
    return render(
        request,
        "orders/order.html",
        {"order": found, "form": NoteForm(), "timeline": found.timeline.all(), "state": _state(found)},
    )


@require_GET
def timeline(request: HttpRequest, number: str) -> JsonResponse:
    """Answer with what the order's page shows, for the script that keeps it fresh."""
    return JsonResponse(_state(_order(number)))


@require_POST
def note(request: HttpRequest, number: str) -> HttpResponse:
    """Take a note to an order."""
    found, form = _order(number), NoteForm(request.POST)
    if form.is_valid():
        add_note(found, form.cleaned_data["text"])
    return redirect("order", found.number)


def _order(number: str) -> Order:
    return get_object_or_404(Order, pk=Order.id_of(number))


def _state(found: Order) -> dict[str, Any]:
    entries = [
        {"key": entry.routing_key, "text": entry.text, "time": f"{entry.happened_at:%H:%M:%S}"}
        for entry in found.timeline.all()
    ]
    return {"status": found.status, "status_text": found.get_status_display(), "events": entries}
