"""What payments lends to the pages of other apps."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import RequestContext

from payments.models import ProviderSwitch

register = template.Library()


@register.inclusion_tag("payments/switch.html", takes_context=True)
def provider_switch(context: RequestContext) -> dict[str, Any]:
    """Show whether the payment provider works, with a button to change that."""
    return {"broken": ProviderSwitch.is_broken(), "csrf_token": context.get("csrf_token")}
