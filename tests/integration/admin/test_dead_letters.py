"""The dead letters of every handler in the admin, on each broker."""

from __future__ import annotations

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
from domain_event_broker.django.admin import dead_letters
from domain_event_broker.events import Message
from domain_event_broker.failures import Failure
from domain_event_broker.handlers import Registry
from domain_event_broker.ports import Action, Settlement, Subscription
from domain_event_broker.transports import open_transport
from tests.harness.ports import lease_port
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
    assert "1 more are not shown" in page


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
    keys = [letter.key for letter in dead_letters.look(queue).letters]
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


@pytest.mark.parametrize("action", ["replay", "replay_all", "discard"])
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
