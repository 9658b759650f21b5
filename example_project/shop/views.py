"""What the shop as a whole shows: how many events are on their way, and which were sent."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse

from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent

#: Events in one answer; whoever wants more asks again.
PAGE = 500
#: The outbox is counted no further.
COUNTED = 1000


def events(request: HttpRequest) -> JsonResponse:
    """Answer with the events that left the outbox after the one numbered ``?after=``."""
    after = request.GET.get("after", "0")
    if not after.isdecimal() or len(after) > 18:
        return JsonResponse({"error": f"after={after!r} is not a number"}, status=400)
    sent = ArchivedEvent.objects.filter(id__gt=int(after)).order_by("id")[:PAGE]
    fields = ("id", "event_id", "routing_key", "ordering_key", "published_at")
    return JsonResponse(
        {
            "waiting": OutboxEvent.objects.all()[:COUNTED].count(),
            "held": HeldEvent.objects.all()[:COUNTED].count(),
            "sent": list(sent.values(*fields)),
        }
    )
