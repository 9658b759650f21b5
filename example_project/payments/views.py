"""The switch by which visitors break and repair the payment provider."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from payments.models import ProviderSwitch


@require_POST
def turn_provider(request: HttpRequest) -> HttpResponse:
    """Break the provider, or repair it."""
    ProviderSwitch.turn(broken=request.POST.get("broken") == "1")
    return redirect("home")
