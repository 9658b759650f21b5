"""The lists of waiting, held and sent events, and what their actions do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from domain_event_broker.django.admin import moves, paging
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db


def url(model: str, view: str = "changelist", *arguments: Any) -> str:
    return reverse(f"admin:domain_event_broker_{model}_{view}", args=arguments)


def run(client: Client, model: str, action: str, *events: Any, **more: Any) -> Any:
    """Run an action of a list on events, as the form of the list does."""
    data = {"action": action, "_selected_action": [event.pk for event in events], "index": "0", **more}
    return client.post(url(model), data, follow=True)


def said(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


# --- looking ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "store"),
    [("outboxevent", stage.waiting), ("heldevent", stage.held), ("archivedevent", stage.sent)],
)
class TestEveryHome:
    """What holds for waiting, held and sent events alike."""

    def test_lists_and_shows_an_event(self, admin: Client, model: str, store: Callable[..., Any]) -> None:
        event = store("order.placed", data={"total": 99, "customer": "Zoë"}, key="order-7")
        assert event.event_id in admin.get(url(model)).content.decode()
        page = admin.get(url(model, "change", event.pk)).content.decode()
        assert "&quot;customer&quot;: &quot;Zoë&quot;" in page
        assert "order-7" in page
        assert "traceparent" in page

    def test_shows_markup_in_an_event_as_text(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        event = store(f"order.{stage.SCRIPT}", data={"note": stage.SCRIPT}, key=stage.SCRIPT)
        for page in (url(model), url(model, "change", event.pk)):
            content = admin.get(page).content.decode()
            assert stage.SCRIPT not in content
            assert "&lt;script&gt;" in content

    def test_shows_a_body_that_no_page_can_hold(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        event = store(data={"lone surrogate": "\ud800", "nul": "\x00"})
        assert admin.get(url(model, "change", event.pk)).status_code == 200

    def test_cuts_off_a_huge_body(self, admin: Client, model: str, store: Callable[..., Any]) -> None:
        event = store(data={"text": "x" * 200_000})
        page = admin.get(url(model, "change", event.pk)).content.decode()
        assert "more characters" in page
        assert len(page) < 100_000

    def test_lets_nobody_add_change_or_delete(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        event = store()
        assert admin.get(url(model, "add")).status_code == 403
        assert admin.post(url(model, "change", event.pk), {"routing_key": "x"}).status_code == 403
        assert admin.post(url(model, "delete", event.pk), {"post": "yes"}).status_code == 403
        assert "delete_selected" not in admin.get(url(model)).content.decode()

    def test_is_closed_to_staff_without_permission(
        self, client_with: Callable[..., Client], model: str, store: Callable[..., Any]
    ) -> None:
        event = store()
        assert client_with().get(url(model)).status_code == 403
        viewer = client_with(f"view_{model}")
        assert viewer.get(url(model)).status_code == 200
        assert viewer.get(url(model, "change", event.pk)).status_code == 200

    def test_counts_no_further_than_the_limit(
        self,
        admin: Client,
        model: str,
        store: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for _ in range(4):
            store()
        monkeypatch.setattr(paging, "COUNT_LIMIT", 3)
        with CaptureQueriesContext(
            connection,
        ) as captured:
            response = admin.get(url(model))
        counts = [query["sql"] for query in captured if "COUNT(" in query["sql"].upper()]
        assert counts
        assert all("LIMIT 3" in sql for sql in counts)
        assert response.context["cl"].result_count == 3
        assert "There may be more" in response.content.decode()

    def test_asks_the_database_as_often_for_many_rows_as_for_one(
        self, admin: Client, model: str, store: Callable[..., Any], django_assert_num_queries: Any
    ) -> None:
        admin.get(url(model))  # fills the cache of content types
        store()
        with CaptureQueriesContext(connection) as one:
            admin.get(url(model))
        for _ in range(20):
            store()
        with django_assert_num_queries(len(one)):
            admin.get(url(model))

    def test_reads_no_body_and_sorts_by_an_index_alone(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        store()
        with CaptureQueriesContext(connection) as captured:
            admin.get(url(model), {"o": "2"})
        events = [
            query["sql"] for query in captured if "ORDER BY" in query["sql"] and "event_id" in query["sql"]
        ]
        assert events
        for sql in events:
            order = "published_at" if model == "archivedevent" else "id"
            assert sql.partition("ORDER BY")[2].split()[0].endswith(f'"{order}"')
            assert '"body"' not in sql

    def test_refuses_lookups_that_no_filter_makes(
        self, admin: Client, model: str, store: Callable[..., Any]
    ) -> None:
        store()
        assert admin.get(url(model), {"body__contains": "x"}).status_code == 400

    @pytest.mark.parametrize("term", ["order.", "order.placed", "order.*", "key-1"])
    def test_finds_by_routing_key_prefix_and_key(
        self, admin: Client, model: str, store: Callable[..., Any], term: str
    ) -> None:
        wanted, other = store("order.placed", key="key-1"), store("payment.taken", key="key-2")
        page = admin.get(url(model), {"q": term}).content.decode()
        assert wanted.event_id in page
        assert other.event_id not in page

    def test_finds_by_event_id(self, admin: Client, model: str, store: Callable[..., Any]) -> None:
        wanted, other = store(), store()
        page = admin.get(url(model), {"q": wanted.event_id}).content.decode()
        assert url(model, "change", wanted.pk) in page
        assert url(model, "change", other.pk) not in page

    def test_searches_among_the_newest_only(
        self, admin: Client, model: str, store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paging, "SEARCH_WINDOW", 2)
        old, new = store(), [store(), store()]
        page = admin.get(url(model), {"q": "order."}).content.decode()
        assert old.event_id not in page
        assert all(event.event_id in page for event in new)


def test_a_sent_event_is_found_by_its_id_however_old_it_is(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SEARCH_WINDOW", 1)
    old, new = stage.sent(), stage.sent()
    page = admin.get(url("archivedevent"), {"q": old.event_id}).content.decode()
    assert url("archivedevent", "change", old.pk) in page
    assert url("archivedevent", "change", new.pk) not in page


def test_held_events_can_be_filtered_by_state(admin: Client) -> None:
    parked, scheduled = stage.held(), stage.held(state=HeldEvent.State.SCHEDULED)
    page = admin.get(url("heldevent"), {"state__exact": "parked"}).content.decode()
    assert parked.event_id in page
    assert scheduled.event_id not in page


def test_sent_events_can_be_filtered_by_routing_and_time(admin: Client) -> None:
    lost, routed = stage.sent(unroutable=True), stage.sent()
    old = stage.sent()
    ArchivedEvent.objects.filter(pk=old.pk).update(published_at=timezone.now() - timedelta(days=3))
    page = admin.get(url("archivedevent"), {"unroutable": "yes"}).content.decode()
    assert (lost.event_id in page, routed.event_id in page) == (True, False)
    since = (timezone.now() - timedelta(days=1)).isoformat()
    page = admin.get(url("archivedevent"), {"published_at__gte": since}).content.decode()
    assert (routed.event_id in page, old.event_id in page) == (True, False)


def test_the_lists_work_without_time_zones(admin: Client, settings: Any) -> None:
    settings.USE_TZ = False
    for model, store in (
        ("outboxevent", stage.waiting),
        ("heldevent", stage.held),
        ("archivedevent", stage.sent),
    ):
        event = store()
        assert admin.get(url(model)).status_code == 200
        assert admin.get(url(model, "change", event.pk)).status_code == 200


# --- acting -----------------------------------------------------------------------------


def test_retry_sends_a_parked_event_from_its_old_place_with_all_its_tries(admin: Client) -> None:
    event = stage.held(key="order-7", reason="refused")
    later = stage.waiting(key="order-7")
    assert stage.look_as_a_relay() == []
    response = run(admin, "heldevent", "retry", event)
    assert "1 event was made due now" in said(response)
    first, second = stage.look_as_a_relay()
    assert (first.id, second.id) == (event.outbox_id, later.pk)
    assert first.message == event.to_message()
    assert first.attempts == 0
    assert not HeldEvent.objects.exists()
    assert OutboxEvent.objects.get(pk=first.id).created_at == event.created_at


def test_retry_does_not_wait_for_the_next_try_of_a_refused_event(admin: Client) -> None:
    event = stage.held(state=HeldEvent.State.RETRYING)
    run(admin, "heldevent", "retry", event)
    assert [row.id for row in stage.look_as_a_relay()] == [event.outbox_id]


def test_retry_sends_a_scheduled_event_now(admin: Client) -> None:
    before, event = stage.waiting(), stage.held(state=HeldEvent.State.SCHEDULED)
    run(admin, "heldevent", "retry", event)
    assert [row.message.event_id for row in stage.look_as_a_relay()] == [before.event_id, event.event_id]


def test_retry_is_for_every_event_that_the_filter_means_when_all_are_chosen(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "BATCH", 2)
    events = [stage.held() for _ in range(5)]
    other = stage.held(state=HeldEvent.State.SCHEDULED)
    data = {"action": "retry", "_selected_action": [events[0].pk], "index": "0", "select_across": "1"}
    response = admin.post(f"{url('heldevent')}?state__exact=parked", data, follow=True)
    assert "5 events were made due now" in said(response)
    assert [row.id for row in stage.look_as_a_relay()] == [event.outbox_id for event in events]
    assert list(HeldEvent.objects.all()) == [other]


def test_one_click_acts_on_a_bounded_number_and_says_so(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "ACTION_LIMIT", 2)
    events = [stage.held() for _ in range(3)]
    response = run(admin, "heldevent", "retry", *events)
    assert "2 events were made due now" in said(response)
    assert "repeat it for the rest" in said(response)
    assert list(HeldEvent.objects.filter(state=HeldEvent.State.PARKED)) == events[2:]


def test_discard_asks_first_and_deletes_then(admin: Client) -> None:
    doomed, spared = stage.held("order.cancelled"), stage.held()
    page = run(admin, "heldevent", "discard", doomed)
    assert HeldEvent.objects.count() == 2
    content = page.content.decode()
    assert "order.cancelled" in content
    assert "nothing brings them back" in content
    response = run(admin, "heldevent", "discard", doomed, confirmed="yes", up_to=doomed.pk)
    assert "1 event was discarded" in said(response)
    assert list(HeldEvent.objects.all()) == [spared]
    assert not OutboxEvent.objects.exists()


@pytest.mark.parametrize("up_to", ["", "-1", "soon", "9" * 19, "9" * 5_000])
def test_discard_asks_again_where_the_answer_names_no_event(admin: Client, up_to: str) -> None:
    doomed = stage.held()
    page = run(admin, "heldevent", "discard", doomed, confirmed="yes", up_to=up_to)
    assert "nothing brings them back" in page.content.decode()
    assert list(HeldEvent.objects.all()) == [doomed]


def test_discard_leaves_events_that_came_after_the_question(admin: Client) -> None:
    seen = stage.held()
    page = run(admin, "heldevent", "discard", seen, select_across="1")
    late = stage.held()
    answer = {
        "action": "discard",
        "_selected_action": page.context["selected"],
        "select_across": page.context["select_across"],
        "up_to": page.context["up_to"],
        "confirmed": "yes",
    }
    admin.post(url("heldevent"), answer)
    assert list(HeldEvent.objects.all()) == [late]


def test_publish_again_asks_and_then_copies_with_the_same_event_id(admin: Client) -> None:
    event = stage.sent(key="order-7")
    page = run(admin, "archivedevent", "publish_again", event)
    assert "whose inbox remembers it, skips the copy" in " ".join(page.content.decode().split())
    assert not OutboxEvent.objects.exists()
    response = run(admin, "archivedevent", "publish_again", event, confirmed="yes", up_to=event.pk)
    assert "1 event was put into the outbox once more" in said(response)
    copy = OutboxEvent.objects.get()
    assert copy.to_message() == event.to_message()
    assert copy.created_at > event.created_at
    assert ArchivedEvent.objects.filter(pk=event.pk).exists()


def test_every_action_is_in_the_admin_log(admin: Client, superuser: User) -> None:
    events = [stage.held(), stage.held(), stage.sent()]
    run(admin, "heldevent", "retry", events[0])
    run(admin, "heldevent", "discard", events[1], confirmed="yes", up_to=events[1].pk)
    run(admin, "archivedevent", "publish_again", events[2], confirmed="yes", up_to=events[2].pk)
    entries = LogEntry.objects.order_by("pk")
    assert [entry.action_flag for entry in entries] == [CHANGE, DELETION, CHANGE]
    assert [entry.object_repr.split()[0] for entry in entries] == [event.event_id for event in events]
    assert {entry.user for entry in entries} == {superuser}
    assert admin.get(reverse("admin:index")).status_code == 200


@pytest.mark.parametrize(
    ("model", "action", "codename", "store"),
    [
        ("heldevent", "retry", "replay_heldevent", stage.held),
        ("heldevent", "discard", "discard_heldevent", stage.held),
        ("archivedevent", "publish_again", "replay_archivedevent", stage.sent),
    ],
)
class TestPermissions:
    """Who may look may not act."""

    def test_a_viewer_is_offered_no_action_and_can_force_none(
        self,
        client_with: Callable[..., Client],
        model: str,
        action: str,
        codename: str,
        store: Callable[..., Any],
    ) -> None:
        event, viewer = store(), client_with(f"view_{model}")
        for page in (url(model), url(model, "change", event.pk)):
            assert f'value="{action}"' not in viewer.get(page).content.decode()
        run(viewer, model, action, event, confirmed="yes", up_to=event.pk)
        assert type(event).objects.filter(pk=event.pk).exists()
        assert not OutboxEvent.objects.exists()
        assert not LogEntry.objects.exists()

    def test_the_permission_of_an_action_is_all_it_takes(
        self,
        client_with: Callable[..., Client],
        model: str,
        action: str,
        codename: str,
        store: Callable[..., Any],
    ) -> None:
        event, actor = store(), client_with(f"view_{model}", codename)
        for page in (url(model), url(model, "change", event.pk)):
            assert f'value="{action}"' in actor.get(page).content.decode()
        run(actor, model, action, event, confirmed="yes", up_to=event.pk)
        assert LogEntry.objects.count() == 1

    def test_a_form_from_elsewhere_is_refused(
        self, superuser: User, model: str, action: str, codename: str, store: Callable[..., Any]
    ) -> None:
        event, client = store(), Client(enforce_csrf_checks=True)
        client.force_login(superuser)
        assert run(client, model, action, event, confirmed="yes", up_to=event.pk).status_code == 403
        assert not LogEntry.objects.exists()


def test_the_relay_is_woken_when_the_events_are_committed(
    admin: Client, django_capture_on_commit_callbacks: Any
) -> None:
    event = stage.held()
    with django_capture_on_commit_callbacks() as callbacks:
        run(admin, "heldevent", "retry", event)
    assert len(callbacks) == 1


def test_an_event_taken_by_somebody_else_is_not_sent_twice(admin: Client) -> None:
    event = stage.held()
    run(admin, "heldevent", "retry", event)
    stage.look_as_a_relay()
    response = run(admin, "heldevent", "retry", event)
    assert "0 events were made due now" in said(response)
    assert "gone, or a relay is working on them" in said(response)
    assert OutboxEvent.objects.count() == 1
