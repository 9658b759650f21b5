"""The dead letters of every handler in the admin, on each broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from domain_event_broker import DomainEvent, config, subscribe
from domain_event_broker.django.admin import dead_letters, letter_search
from domain_event_broker.django.admin.letter_search import LetterSearch
from domain_event_broker.events import Message
from domain_event_broker.failures import Failure
from domain_event_broker.handlers import Registry
from domain_event_broker.ports import Action, Decision, Settlement, Subscription
from domain_event_broker.transports import open_transport
from tests.harness.ports import lease_port
from tests.harness.waiting import wait_until
from tests.integration.admin import stage

# The transport for tables of the project is used as in a web request, outside of a transaction.
pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/domain_event_broker/deadletter/"


@pytest.fixture
def queue(fresh_name: Callable[[str], str]) -> str:
    return fresh_name("billing.charge")


def show(client: Client, queue: str = "") -> str:
    response = client.get(PAGE, {"queue": queue} if queue else {})
    assert response.status_code == 200
    return response.content.decode()


def act(client: Client, queue: str, action: str, *events: Any, **more: Any) -> Any:
    letters = [event if isinstance(event, str) else event.uuid_string for event in events]
    return client.post(PAGE, {"queue": queue, "action": action, "letter": letters, **more}, follow=True)


def said(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


def events(count: int, routing_key: str = "order.placed") -> list[DomainEvent]:
    return [DomainEvent(routing_key, {"number": number}) for number in range(count)]


# --- on every broker --------------------------------------------------------------------


def test_lists_the_handlers_of_the_project_with_their_letters(
    admin: Client, broker: str, registry: Registry, queue: str, fresh_name: Callable[[str], str]
) -> None:
    subscribe("order.*", name=queue)(lambda event: None)
    new = fresh_name("not.yet.declared")
    subscribe("payment.#", name=new)(lambda event: None)
    stage.bury(queue, *events(2))
    page = show(admin)
    assert f'<a href="{PAGE}?queue={quote(queue)}">{queue}</a>' in page
    assert '<span class="deb-parked">2</span>' in page
    assert "payment.#" in page
    assert "no queue yet" in page


def test_shows_why_an_event_is_dead(admin: Client, broker: str, queue: str) -> None:
    [event] = stage.bury(queue, *events(1), error=TimeoutError("the provider was silent for 30 s"))
    page = show(admin, queue)
    assert event.uuid_string in page
    assert "TimeoutError</strong>: the provider was silent for 30 s" in page
    assert "retries-exhausted, 4 attempts" in page
    assert "Traceback (most recent call last)" in page
    assert "&quot;number&quot;: 0" in page


def test_replays_the_chosen_letters_and_no_others(
    admin: Client, superuser: User, broker: str, queue: str
) -> None:
    first, second, third = stage.bury(queue, *events(3))
    response = act(admin, queue, "replay", first, third)
    assert "2 letters were replayed." in said(response)
    assert stage.depths(queue) == (2, 1)
    assert second.uuid_string in response.content.decode()
    entries = LogEntry.objects.order_by("pk")
    assert [entry.object_repr.split()[0] for entry in entries] == [first.uuid_string, third.uuid_string]
    assert {(entry.action_flag, entry.user) for entry in entries} == {(CHANGE, superuser)}


def test_the_admin_log_leads_to_the_handler(admin: Client, broker: str, queue: str) -> None:
    act(admin, queue, "replay", *stage.bury(queue, *events(1)))
    response = admin.get(LogEntry.objects.get().get_admin_url(), follow=True)
    assert response.redirect_chain[-1][0] == f"{PAGE}?queue={quote(queue)}"
    assert queue in admin.get(reverse("admin:index")).content.decode()


@pytest.mark.parametrize("name", ["billing_charge", "billing_5Fcharge"])
def test_the_admin_log_leads_to_a_handler_whose_name_django_quotes(
    memory: None, admin: Client, fresh_name: Callable[[str], str], name: str
) -> None:
    queue = fresh_name(name)
    act(admin, queue, "replay", *stage.bury(queue, *events(1)))
    response = admin.get(LogEntry.objects.get().get_admin_url(), follow=True)
    assert response.redirect_chain[-1][0] == f"{PAGE}?queue={quote(queue)}"


def test_replays_all(admin: Client, broker: str, queue: str) -> None:
    stage.bury(queue, *events(5))
    response = act(admin, queue, "replay_all")
    assert "5 letters were replayed." in said(response)
    assert stage.depths(queue) == (5, 0)
    assert "No dead letters." in response.content.decode()


def test_discard_asks_first(admin: Client, broker: str, queue: str) -> None:
    doomed, spared = stage.bury(queue, *events(2))
    page = act(admin, queue, "discard", doomed).content.decode()
    assert "nothing brings them back" in page
    assert doomed.uuid_string in page
    assert spared.uuid_string not in page
    assert stage.depths(queue) == (0, 2)
    response = act(admin, queue, "discard", doomed, confirmed="yes")
    assert "1 letter was discarded." in said(response)
    assert stage.depths(queue) == (0, 1)
    assert LogEntry.objects.get().action_flag == DELETION


def test_a_letter_that_went_meanwhile_is_told(admin: Client, broker: str, queue: str) -> None:
    [event] = stage.bury(queue, *events(1))
    act(admin, queue, "replay_all")
    assert "None of these letters is there any more" in said(act(admin, queue, "replay", event))
    page = act(admin, queue, "discard", event).content.decode()
    assert "None of these letters is there any more" in page


def test_shows_the_oldest_letters_and_how_many_more(
    admin: Client, broker: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "SHOWN", 2)
    oldest, second, last = stage.bury(queue, *events(3))
    page = show(admin, queue)
    assert oldest.uuid_string in page
    assert second.uuid_string in page
    assert last.uuid_string not in page
    assert "1 to 2 of 3" in page
    assert f"?queue={quote(queue)}&amp;page=2" in page
    page = admin.get(PAGE, {"queue": queue, "page": "2"}).content.decode()
    assert oldest.uuid_string not in page
    assert last.uuid_string in page


def test_shows_markup_as_text(admin: Client, broker: str, queue: str) -> None:
    script = stage.SCRIPT
    event = DomainEvent(f"order.{script.replace(' ', '_')}", {script: script}, uuid_string=script)
    stage.bury(queue, event, error=RuntimeError(script))
    page = show(admin, queue)
    assert "<script>document" not in page
    assert page.count("&lt;script&gt;document") >= 6
    page = act(admin, queue, "discard", script).content.decode()
    assert "<script>document" not in page
    assert "Discard 1 letter" in page


def test_letters_that_are_no_events_can_be_seen_and_chosen(admin: Client, broker: str, queue: str) -> None:
    bodies = [b"\xff not JSON", b"[1, 2]", b'{"lone": "\\ud800"}']
    _bury_bodies(queue, *bodies)
    page = show(admin, queue)
    assert "without an event id" in page
    keys = [letter.key for letter in dead_letters.look(LetterSearch(queue)).letters]
    assert len(set(keys)) == len(bodies)
    assert "1 letter was replayed." in said(act(admin, queue, "replay", keys[0]))
    assert stage.depths(queue) == (1, 2)


def _bury_bodies(queue: str, *bodies: bytes) -> None:
    """Put what a foreign producer may send into the dead letters: no event, no identity."""
    settings = config.current()
    assert settings is not None
    transport = open_transport(settings)
    try:
        transport.subscribe(Subscription(queue, ("foreign",)))
        transport.publish([Message("foreign", body, "") for body in bodies])
        left = len(bodies)
        while left:
            deliveries = transport.receive(left, 10)
            assert deliveries, "no delivery within 10 s"
            failure = Failure("malformed", message="the body is not JSON")
            transport.settle([Settlement(each, Action.DEAD, failure=failure) for each in deliveries])
            left -= len(deliveries)
    finally:
        transport.close()


def test_works_inside_the_transaction_of_a_request(
    broker: str, admin: Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stage.bury(queue, *events(2))
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert "1 letter was replayed." in said(act(admin, queue, "replay", first))
    assert "1 letter was discarded." in said(act(admin, queue, "discard", second, confirmed="yes"))
    assert stage.depths(queue) == (1, 0)


# --- looking for some of them -------------------------------------------------------------


class ServiceDown(Exception):
    """Somebody else's service is away."""


@pytest.fixture
def mixed(broker: str, queue: str) -> list[DomainEvent]:
    """Three letters that died of two things."""
    down = stage.bury(queue, *events(2), error=ServiceDown("503 from pay.example"))
    return [*down, *stage.bury(queue, *events(1, "order.cancelled"), error=ValueError("no such order"))]


def found(client: Client, queue: str, **search: Any) -> set[str]:
    page = client.get(PAGE, {"queue": queue, **search})
    assert page.status_code == 200
    return {letter.event_id for letter in page.context["page"].letters}


def test_letters_are_found_by_what_is_known_of_them(
    admin: Client, queue: str, mixed: list[DomainEvent]
) -> None:
    first, second, third = (event.uuid_string for event in mixed)
    assert found(admin, queue, error="ServiceDown") == {first, second}
    assert found(admin, queue, key="order.cancelled") == {third}
    assert found(admin, queue, key="order.*") == {first, second, third}
    assert found(admin, queue, text="NO SUCH") == {third}
    assert found(admin, queue, text=second) == {second}
    assert found(admin, queue, text='"number": 1') or found(admin, queue, text='"number":1') == {second}
    assert found(admin, queue, since="2020-01-01T00:00") == {first, second, third}
    assert found(admin, queue, until="2020-01-01T00:00") == set()
    assert found(admin, queue, error="ServiceDown", key="order.cancelled") == set()
    page = admin.get(PAGE, {"queue": queue}).content.decode()
    assert "ServiceDown: 2</a>" in page
    assert "ValueError: 1</a>" in page


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"key": "order*"}, "a wildcard must stand alone"),
        ({"since": "yesterday"}, "&#x27;yesterday&#x27; is no date and time"),
        ({"until": "2026-99-99T00:00"}, "is no date and time"),
        ({"depth": "many", "page": "-3"}, "No dead letters."),
    ],
)
def test_a_wrong_filter_is_told(
    memory: None, admin: Client, queue: str, search: dict[str, str], told: str
) -> None:
    response = admin.get(PAGE, {"queue": queue, **search})
    assert response.status_code == 200
    assert told in response.content.decode()
    assert act(admin, queue, "discard_all", confirmed="yes", **search).status_code == 200


def test_all_letters_like_one_are_replayed_and_no_others(
    admin: Client, superuser: User, queue: str, mixed: list[DomainEvent]
) -> None:
    page = admin.get(PAGE, {"queue": queue, "letter": mixed[0].uuid_string})
    kind = page.context["letter"].kind
    assert kind.endswith("ServiceDown")
    assert "2 letters were replayed." in said(act(admin, queue, "replay_all", error=kind))
    assert stage.depths(queue) == (2, 1)
    entry = LogEntry.objects.get()
    assert (entry.object_repr, entry.user, entry.action_flag) == (queue, superuser, CHANGE)
    assert entry.change_message == f"Replayed in the admin: exception {kind!r}. 2 letters."


def test_all_that_match_are_discarded_after_a_question(
    admin: Client, queue: str, mixed: list[DomainEvent]
) -> None:
    page = act(admin, queue, "discard_all", key="order.placed").content.decode()
    assert "2 of the 3 looked at" in page
    assert "nothing brings them back" in page
    assert stage.depths(queue) == (0, 3)
    response = act(admin, queue, "discard_all", key="order.placed", confirmed="yes")
    assert "2 letters were discarded." in said(response)
    assert found(admin, queue) == {mixed[2].uuid_string}
    entry = LogEntry.objects.get()
    assert entry.action_flag == DELETION
    assert entry.change_message == "Discarded in the admin: routing key 'order.placed'. 2 letters."


def test_what_failed_after_the_question_was_asked_is_not_discarded(
    admin: Client, queue: str, mixed: list[DomainEvent]
) -> None:
    asked = act(admin, queue, "discard_all", key="order.placed")
    seen_at = asked.context["seen_at"]
    wait_until(lambda: time.time() * 1000 > seen_at + 1, 10, "the clock has gone on")
    [late] = stage.bury(queue, *events(1))
    act(admin, queue, "discard_all", key="order.placed", confirmed="yes", seen_at=seen_at)
    assert found(admin, queue) == {mixed[2].uuid_string, late.uuid_string}


def test_replaying_many_asks_first(
    memory: None, admin: Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MANY", 2)
    stage.bury(queue, *events(3))
    page = act(admin, queue, "replay_all").content.decode()
    assert "Replay 3 letters" in page
    assert stage.depths(queue) == (0, 3)
    assert "3 letters were replayed." in said(act(admin, queue, "replay_all", confirmed="yes"))


def test_letters_that_came_back_from_three_replays_are_left_by_replay_all_and_can_be_chosen(
    memory: None, admin: Client, queue: str
) -> None:
    [event] = stage.bury(queue, *events(1))
    for _ in range(3):
        act(admin, queue, "replay", event)
        stage.bury_what_waits(queue)
    assert "1 of them were left" in said(act(admin, queue, "replay_all"))
    assert stage.depths(queue) == (0, 1)
    assert "1 letter was replayed." in said(act(admin, queue, "replay", event))


def test_a_letter_has_a_page_with_all_that_is_known_of_it(admin: Client, broker: str, queue: str) -> None:
    event = DomainEvent("order.placed", {"customer": "Zoë", "lines": [1, 2]}, "order-7")
    stage.bury(queue, event, error=ServiceDown("503 from pay.example"))
    act(admin, queue, "replay", event)
    stage.bury_what_waits(queue, ServiceDown("503 from pay.example"))
    page = admin.get(PAGE, {"queue": queue, "letter": event.uuid_string}).content.decode()
    for told in (
        "ServiceDown</strong>: 503 from pay.example",
        "Traceback (most recent call last)",
        "&quot;customer&quot;: &quot;Zoë&quot;",
        "&quot;event-replays&quot;: 1",
        'Object id: <span class="deb-id">order-7</span>',
        "replayed 1 time before",
        "It first failed",
        "Replay all like this one",
        f"/admin/domain_event_broker/archivedevent/?q={event.uuid_string}",
    ):
        assert told in page, told


def test_the_page_of_a_letter_that_went_says_so(memory: None, admin: Client, queue: str) -> None:
    stage.bury(queue, *events(1))
    assert "not there any more" in admin.get(PAGE, {"queue": queue, "letter": "x"}).content.decode()


def test_letters_are_downloaded_as_json(admin: Client, queue: str, mixed: list[DomainEvent]) -> None:
    response = act(admin, queue, "download_all", error="ServiceDown")
    assert response["Content-Disposition"].startswith('attachment; filename="dead-letters-billing.charge-')
    content = response.json()
    assert [each["event_id"] for each in content["letters"]] == [each.uuid_string for each in mixed[:2]]
    letter = content["letters"][1]
    assert letter["payload"]["data"] == {"number": 1}
    assert letter["message"] == "503 from pay.example"
    assert "Traceback" in letter["traceback"]
    assert (content["complete"], content["looked_at"]) == (True, 3)
    assert len(act(admin, queue, "download", mixed[2]).json()["letters"]) == 1
    assert [entry.change_message for entry in LogEntry.objects.order_by("pk")] == [
        "Downloaded in the admin: exception 'ServiceDown'. 2 letters.",
        "Downloaded in the admin: chosen. 1 letters.",
    ]
    assert stage.depths(queue) == (0, 3)


def test_a_page_looks_no_further_than_its_depth_and_says_so(
    broker: str, admin: Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_search, "DEPTHS", (3, 5, 7))
    stage.bury(queue, *events(6))
    page = admin.get(PAGE, {"queue": queue, "depth": "3", "error": "RuntimeError"}).content.decode()
    assert "3 of the oldest 3 letters match" in " ".join(page.split())
    assert "3 more are there" in page
    assert "depth=5" in page
    page = admin.get(PAGE, {"queue": queue, "depth": "7", "error": "RuntimeError"}).content.decode()
    assert "6 of the 6 letters match" in " ".join(page.split())


def test_a_look_that_takes_too_long_says_how_far_it_came(
    memory: None, admin: Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.bury(queue, *events(3))
    monkeypatch.setattr(dead_letters, "LOOK_SECONDS", -1.0)
    monkeypatch.setattr(dead_letters, "ACT_SECONDS", -1.0)
    assert show(admin, queue)
    told = said(act(admin, queue, "replay_all"))
    assert "There may be more: repeat it for the rest." in told
    assert stage.depths(queue) == (0, 3)


def test_letters_that_somebody_else_looks_at_are_waited_for(
    request: pytest.FixtureRequest, settings: Any, admin: Client, queue: str
) -> None:
    settings.DOMAIN_EVENT_BROKER = request.getfixturevalue("rabbitmq_server").url()
    [event] = stage.bury(queue, *events(1))
    response: list[Any] = []

    def replay_meanwhile() -> None:
        try:
            response.append(act(admin, queue, "replay", event))
        finally:
            connection.close()

    colleague = threading.Thread(target=replay_meanwhile)
    with stage.in_hand(queue):
        colleague.start()
        wait_until(lambda: stage.depths(queue) == (0, 0) and colleague.is_alive(), 30, "both look")
    colleague.join(60)
    assert said(response[0])
    wait_until(lambda: sum(stage.depths(queue)) == 1, 30, "the letter is where it was, or at work")


# --- permissions ------------------------------------------------------------------------


@pytest.fixture
def memory(settings: Any, fresh_name: Callable[[str], str]) -> None:
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('admin')}"


def test_the_pages_are_closed_to_staff_without_permission(
    memory: None, client_with: Callable[..., Client], queue: str
) -> None:
    nobody = client_with()
    assert nobody.get(PAGE).status_code == 403
    assert nobody.get(PAGE, {"queue": queue}).status_code == 403
    assert act(nobody, queue, "replay_all").status_code == 403


def test_a_visitor_is_sent_to_the_login(memory: None, db: None, queue: str) -> None:
    assert Client().get(PAGE).status_code == 302
    assert Client().post(PAGE, {"queue": queue, "action": "replay_all"}).status_code == 302


@pytest.mark.parametrize("action", ["replay", "replay_all", "discard", "discard_all"])
def test_who_may_look_may_not_act(
    memory: None, client_with: Callable[..., Client], queue: str, action: str
) -> None:
    [event] = stage.bury(queue, *events(1))
    viewer = client_with("view_deadletter")
    assert f'value="{action}"' not in show(viewer, queue)
    assert act(viewer, queue, action, event, confirmed="yes").status_code == 403
    assert stage.depths(queue) == (0, 1)
    assert not LogEntry.objects.exists()


def test_replay_and_discard_are_two_permissions(
    memory: None, client_with: Callable[..., Client], queue: str
) -> None:
    first, second = stage.bury(queue, *events(2))
    replayer = client_with("view_deadletter", "replay_deadletter")
    assert act(replayer, queue, "discard", first, confirmed="yes").status_code == 403
    assert "1 letter was replayed" in said(act(replayer, queue, "replay", first))
    discarder = client_with("view_deadletter", "discard_deadletter", "view_heldevent")
    assert act(discarder, queue, "replay_all").status_code == 403
    assert "1 letter was discarded" in said(act(discarder, queue, "discard", second, confirmed="yes"))


def test_a_form_from_elsewhere_is_refused(memory: None, superuser: User, queue: str) -> None:
    stage.bury(queue, *events(1))
    client = Client(enforce_csrf_checks=True)
    client.force_login(superuser)
    assert act(client, queue, "replay_all").status_code == 403
    assert stage.depths(queue) == (0, 1)


# --- when things are wrong --------------------------------------------------------------


def test_a_broker_that_is_away_is_told_on_every_page_and_never_a_failure(
    request: pytest.FixtureRequest, admin: Client, settings: Any, registry: Registry, queue: str
) -> None:
    subscribe("order.*", name=queue)(lambda event: None)
    nobody = lease_port()
    request.addfinalizer(nobody.release)
    settings.DOMAIN_EVENT_BROKER = f"amqp://shop:sesame@127.0.0.1:{nobody.port}/%2F"
    for page in (
        show(admin),
        show(admin, queue),
        act(admin, queue, "replay", "x").content.decode(),
        act(admin, queue, "replay_all").content.decode(),
        act(admin, queue, "discard", "x").content.decode(),
        act(admin, queue, "discard", "x", confirmed="yes").content.decode(),
    ):
        assert "127.0.0.1" in page
        assert "sesame" not in page
        assert "stack_timeout" not in page
        assert queue in page


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "the broker is switched off"),
        ("carrier-pigeon://coop", "no transport for"),
        ({"URL": "memory:", "EXCHANGES": "x"}, "is not a setting"),
    ],
)
def test_wrong_settings_are_told(
    admin: Client, settings: Any, registry: Registry, queue: str, value: Any, told: str
) -> None:
    settings.DOMAIN_EVENT_BROKER = value
    assert told in show(admin)
    assert told in show(admin, queue)


def test_handlers_that_cannot_be_served_are_told(
    memory: None, admin: Client, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> None:
    def clash(*modules: str) -> None:
        subscribe("order.*", name="same")(lambda event: None)
        subscribe("order.*", name="same")(lambda event: None)

    monkeypatch.setattr("domain_event_broker.django.discovery.autodiscover_modules", clash)
    assert "two handlers are named &#x27;same&#x27;" in show(admin)


def test_a_module_of_handlers_that_cannot_be_imported_takes_no_page_away(
    memory: None, admin: Client, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*modules: str) -> None:
        raise ImportError("cannot import name 'charge' from 'payments'")

    stage.bury(queue, *events(1))
    monkeypatch.setattr("domain_event_broker.django.discovery.autodiscover_modules", broken)
    assert "ImportError: cannot import name &#x27;charge&#x27; from &#x27;payments&#x27;" in show(admin)
    assert "order.placed" in show(admin, queue)


def test_a_project_without_handlers_is_told_how_to_declare_one(
    memory: None, admin: Client, registry: Registry
) -> None:
    assert "@subscribe" in show(admin)


@pytest.mark.parametrize("queue", ["amq.x", "x" * 256, "a\nb"])
def test_a_name_that_no_queue_can_have_is_told(memory: None, admin: Client, queue: str) -> None:
    response = admin.get(PAGE, {"queue": queue}, follow=True)
    assert "handler name" in said(response)


def test_a_queue_that_does_not_exist_has_no_letters(broker: str, admin: Client, queue: str) -> None:
    page = show(admin, queue)
    assert "No dead letters." in page
    assert "No handler of this project has this name" in page


def test_nothing_chosen_changes_nothing(memory: None, admin: Client, queue: str) -> None:
    stage.bury(queue, *events(1))
    assert "Choose letters first" in said(act(admin, queue, "replay"))
    assert stage.depths(queue) == (0, 1)


def test_an_unknown_action_is_refused(memory: None, admin: Client, queue: str) -> None:
    assert act(admin, queue, "explode", "x").status_code == 403


def test_a_rabbitmq_is_given_seconds_where_its_url_names_none() -> None:
    impatient = dead_letters._impatient("amqp://u:p@host:5672/%2Fshop?heartbeat=30&stack_timeout=60")
    assert impatient == (
        "amqp://u:p@host:5672/%2Fshop?connection_attempts=1&socket_timeout=4&stack_timeout=60&heartbeat=30"
    )
    assert dead_letters._impatient("database:events") == "database:events"


def test_bodies_that_are_nested_deeply_are_shown_and_downloaded(
    memory: None, admin: Client, queue: str
) -> None:
    _bury_bodies(queue, b"[" * 900 + b"]" * 900)
    assert "[[[" in show(admin, queue)
    key = dead_letters.look(LetterSearch(queue)).letters[0].key
    assert admin.get(PAGE, {"queue": queue, "letter": key}).status_code == 200
    assert act(admin, queue, "download_all").json()["letters"][0]["payload"].startswith("[[[")


def test_what_one_action_replays_and_comes_back_at_once_is_not_replayed_twice(
    memory: None, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [event] = stage.bury(queue, *events(1))
    monkeypatch.setattr(dead_letters, "_may_be_in_hand", lambda: True)
    monkeypatch.setattr(dead_letters, "_pause", lambda tries: tries or stage.bury_what_waits(queue))
    outcome = dead_letters.act(LetterSearch(queue), Decision.RETRY, [event.uuid_string, "gone"])
    assert outcome.done == 1


def test_all_means_all_and_not_those_that_a_page_looks_at(memory: None, admin: Client, queue: str) -> None:
    stage.bury(queue, *events(5))
    assert "5 letters were replayed." in said(act(admin, queue, "replay_all", depth="2", confirmed="yes"))
