"""The page of an event: its life, the handlers it reached, and the story that it is part of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from domain_event_broker import subscribe
from domain_event_broker.django.admin import story as telling
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, InboxEntry, OutboxEvent
from tests.integration.admin import stage

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("registry")]


def page_of(client: Client, event: Any) -> Any:
    name = f"admin:domain_event_broker_{event._meta.model_name}_change"
    response = client.get(reverse(name, args=[event.pk]))
    assert response.status_code == 200
    return response


def life(response: Any) -> list[str]:
    return [moment.text for moment in response.context["life"].moments]


def chapters(response: Any) -> list[tuple[str, int]]:
    return [(each.routing_key, each.depth) for each in response.context["story"].chapters]


# --- life -------------------------------------------------------------------------------


def test_a_sent_event_tells_when_it_was_published_sent_and_handled(admin: Client) -> None:
    event = stage.sent("order.placed")
    subscribe("order.*", name="billing")(lambda event: None)
    subscribe("order.#", name="shipping")(lambda event: None)
    subscribe("order.placed", name="audit", idempotent=False)(lambda event: None)
    subscribe("invoice.*", name="other")(lambda event: None)
    InboxEntry.objects.create(consumer="billing", event_id=event.event_id, handled_at=timezone.now())
    response = page_of(admin, event)
    told = life(response)
    assert told[0] == "Published."
    assert told[-2].startswith("Sent: the broker had it after 3 minutes")
    assert told[-1] == "Handled by billing."
    states = {each.handler: each.state for each in response.context["life"].handlers}
    assert states.pop("billing").startswith("handled ")
    assert states == {
        "shipping": "not yet, or too long ago to be remembered",
        "audit": "unknown: it keeps no memory of what it handled",
    }
    page = response.content.decode()
    assert f"deadletter/?queue=shipping&amp;text={event.event_id}" in page
    assert f"deadletter/?queue=billing&amp;text={event.event_id}" not in page


def test_an_event_that_nobody_subscribed_to_says_so(admin: Client) -> None:
    assert "nobody subscribed to it" in life(page_of(admin, stage.sent(unroutable=True)))[-1]


def test_a_parked_event_tells_how_often_and_why_it_was_refused(admin: Client) -> None:
    response = page_of(admin, stage.held(reason=f"refused {stage.SCRIPT}"))
    assert life(response)[-1] == "Refused 8 times by the broker, and parked until somebody decides."
    page = response.content.decode()
    assert stage.SCRIPT not in page
    assert "refused &lt;script&gt;" in page


def test_a_scheduled_and_a_retried_event_tell_when_they_are_due(admin: Client) -> None:
    assert "Scheduled: it is sent from " in life(page_of(admin, stage.held(state="scheduled")))[-1]
    assert "the next try is at " in life(page_of(admin, stage.held(state="retrying")))[-1]


@pytest.mark.parametrize("state", HeldEvent.State.values)
def test_a_project_without_time_zones_sees_the_same(admin: Client, settings: Any, state: str) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Tokyo"
    assert len(life(page_of(admin, stage.held(state=state)))) == 2
    assert len(life(page_of(admin, stage.sent()))) == 2
    assert admin.get("/admin/domain_event_broker/brokeroverview/").status_code == 200


def test_a_waiting_event_names_the_one_that_it_waits_for(admin: Client) -> None:
    blocking = stage.held("order.placed", key="order-7")
    response = page_of(admin, stage.waiting("order.paid", key="order-7"))
    assert life(response)[-2].startswith("Waits to be sent, for 3 minutes now.")
    assert "'order-7', which is held: order.placed" in life(response)[-1]
    assert reverse("admin:domain_event_broker_heldevent_change", args=[blocking.pk]) in str(response.content)


def test_who_may_not_see_held_events_learns_only_that_one_is_in_the_way(
    client_with: Callable[..., Client],
) -> None:
    stage.held("order.secret", key="order-7")
    viewer = client_with("view_outboxevent")
    response = page_of(viewer, stage.waiting("order.paid", key="order-7"))
    assert "earlier event of 'order-7', which is held." in life(response)[-1]
    assert "order.secret" not in response.content.decode()


def test_an_event_in_several_homes_tells_of_all_of_them(admin: Client) -> None:
    event = stage.sent()
    again = OutboxEvent.objects.create(**stage.columns("x"))
    OutboxEvent.objects.filter(pk=again.pk).update(event_id=event.event_id)
    response = page_of(admin, event)
    assert [text.partition(" ")[0] for text in life(response)] == ["Published.", "Sent:", "Waits"]
    assert reverse("admin:domain_event_broker_outboxevent_change", args=[again.pk]) in str(response.content)


def test_a_timestamp_that_no_calendar_has_is_no_trouble(admin: Client) -> None:
    for number in (-1e300, 1e300, 0.0):
        event = stage.sent()
        ArchivedEvent.objects.filter(pk=event.pk).update(timestamp=number)
        assert life(page_of(admin, event))[0] == "Published."


def test_headers_that_are_no_object_are_no_trouble(admin: Client) -> None:
    event = stage.sent()
    ArchivedEvent.objects.filter(pk=event.pk).update(headers='{"event-causation-id": ["x"]}')
    assert chapters(page_of(admin, event)) == [("order.placed", 0)]


# --- story ------------------------------------------------------------------------------


def test_a_story_shows_each_event_below_its_cause_wherever_it_is(admin: Client) -> None:
    first = stage.sent("order.placed", story="s-1")
    paid = stage.sent("payment.taken", story="s-1", cause=first.event_id)
    stage.held("invoice.due", story="s-1", cause=paid.event_id)
    stage.waiting("mail.sent", story="s-1", cause=first.event_id)
    stage.sent("order.placed", story="s-2")
    response = page_of(admin, paid)
    assert chapters(response) == [
        ("order.placed", 0),
        ("payment.taken", 1),
        ("invoice.due", 2),
        ("mail.sent", 1),
    ]
    assert [each.state for each in response.context["story"].chapters] == [
        "sent",
        "sent",
        "parked",
        "waiting",
    ]
    page = response.content.decode()
    assert reverse("admin:domain_event_broker_archivedevent_change", args=[first.pk]) in page
    assert "archivedevent/?q=s-1" in page


def test_an_event_that_stands_alone_has_no_story(admin: Client) -> None:
    assert "Story of the event" not in page_of(admin, stage.sent()).content.decode()


def test_a_cause_that_is_gone_is_named(admin: Client) -> None:
    page = page_of(admin, stage.sent(story="s", cause="long-ago")).content.decode()
    assert "long-ago</span>, which is no longer here" in page


def test_a_cause_of_another_story_is_found(admin: Client) -> None:
    cause = stage.sent("order.placed", story="one")
    assert chapters(page_of(admin, stage.sent("order.paid", story="two", cause=cause.event_id))) == [
        ("order.placed", 0),
        ("order.paid", 1),
    ]


def test_events_that_name_each_other_as_cause_are_told_once(admin: Client) -> None:
    one, two = stage.sent("a", story="s", cause="x"), stage.sent("b", story="s")
    headers = f'{{"event-causation-id": "{one.event_id}"}}'
    ArchivedEvent.objects.filter(pk=two.pk).update(headers=headers)
    headers = f'{{"event-causation-id": "{two.event_id}"}}'
    ArchivedEvent.objects.filter(pk=one.pk).update(headers=headers)
    assert sorted(key for key, _ in chapters(page_of(admin, one))) == ["a", "b"]


def test_a_long_story_is_cut(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SHOWN", 3)
    events = [stage.sent(story="s") for _ in range(5)]
    page = page_of(admin, events[4]).content.decode()
    assert "more events in this story" in page
    assert 'aria-current="true"' in page


def test_shows_only_the_homes_that_the_user_may_see(client_with: Callable[..., Client]) -> None:
    event = stage.sent("order.placed", story="s")
    stage.held("order.secret", story="s")
    viewer = client_with("view_archivedevent")
    response = page_of(viewer, event)
    assert chapters(response) == [("order.placed", 0)]
    assert "order.secret" not in response.content.decode()


# --- searching --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "store"),
    [("outboxevent", stage.waiting), ("heldevent", stage.held), ("archivedevent", stage.sent)],
)
class TestSearching:
    """What holds for all three lists."""

    def found(self, client: Client, model: str, **query: str) -> set[int]:
        response = client.get(reverse(f"admin:domain_event_broker_{model}_changelist"), query)
        return {row.pk for row in response.context["cl"].result_list}

    def test_finds_a_story(self, admin: Client, model: str, store: Callable[..., Any]) -> None:
        of_story, other = [store(story="s-1"), store(story="s-1")], store(story="s-2")
        assert self.found(admin, model, q="s-1") == {each.pk for each in of_story}
        assert self.found(admin, model, q=other.correlation_id) == {other.pk}

    def test_finds_what_lies_in_a_span_of_time(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        column = "published_at" if model == "archivedevent" else "created_at"
        now = timezone.now()
        events = [store(f"order.n{number}") for number in range(3)]
        for number, event in enumerate(events):
            moment = now - timedelta(hours=3 * number)
            type(event).objects.filter(pk=event.pk).update(**{column: moment})
        ago = [(now - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S") for hours in (7, 5, 2, 1)]
        assert self.found(admin, model, since=ago[1]) == {events[0].pk, events[1].pk}
        assert self.found(admin, model, until=ago[1]) == {events[2].pk}
        assert self.found(admin, model, since=ago[1], until=ago[2]) == {events[1].pk}
        assert self.found(admin, model, since=ago[0], q="order.n1") == {events[1].pk}
        assert self.found(admin, model, since=ago[3], q="order.n1") == set()

    @pytest.mark.parametrize(
        "text", ["yesterday", "2026-02-31T00:00", "0001-01-01T00:00", "9999-12-31T23:59"]
    )
    def test_takes_what_is_no_time_for_no_end(
        self, admin: Client, model: str, store: Callable[..., Any], text: str
    ) -> None:
        event = store()
        assert self.found(admin, model, since=text, until=text) == {event.pk}

    def test_keeps_search_and_filters_when_a_time_is_chosen(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        address = reverse(f"admin:domain_event_broker_{model}_changelist")
        page = admin.get(address, {"q": "o<b>", "since": "2026-01-01T00:00"}).content.decode()
        assert '<input type="hidden" name="q" value="o&lt;b&gt;">' in page
        assert 'name="since" value="2026-01-01T00:00"' in page
        assert 'href="?q=o%3Cb%3E"' in page


def test_a_time_makes_old_events_searchable(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain_event_broker.django.admin.paging.SEARCH_WINDOW", 2)
    old = stage.sent("order.placed", key="k")
    ArchivedEvent.objects.filter(pk=old.pk).update(published_at=timezone.now() - timedelta(days=3))
    for _ in range(3):
        stage.sent("order.paid")
    address = reverse("admin:domain_event_broker_archivedevent_changelist")
    assert admin.get(address, {"q": "k"}).context["cl"].result_count == 0
    until = (timezone.now() - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    response = admin.get(address, {"q": "k", "until": until})
    assert [each.pk for each in response.context["cl"].result_list] == [old.pk]


def test_held_events_of_a_story_are_found_however_many_are_newer(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain_event_broker.django.admin.paging.SEARCH_WINDOW", 1)
    old = stage.held(story="s")
    stage.held(state=HeldEvent.State.RETRYING)
    address = reverse("admin:domain_event_broker_heldevent_changelist")
    assert [each.pk for each in admin.get(address, {"q": "s"}).context["cl"].result_list] == [old.pk]
