"""Each view of the admin, and each action, is closed to those who lack its permission."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from django.contrib import admin as site
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.test import Client
from django.urls import NoReverseMatch, reverse

from domain_event_broker import DomainEvent
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.models import (
    ArchivedEvent,
    BrokerOverview,
    HeldEvent,
    OutboxEvent,
    RelayHeartbeat,
)
from domain_event_broker.django.transport_models import DeadLetter
from tests.integration.admin import stage

#: The models of this app that the admin knows, with what a person may do to one.
MODELS: dict[Any, tuple[str, ...]] = {
    OutboxEvent: (),
    HeldEvent: ("retry", "discard"),
    ArchivedEvent: ("publish_again",),
    RelayHeartbeat: (),
    BrokerOverview: (),
    DeadLetter: ("replay", "replay_all", "discard"),
    Backfill: ("begin", "go_on", "give_up"),
}
#: Models whose actions are buttons of pages of their own.
WITH_PAGES = (DeadLetter, Backfill)
#: Views that a model admin may have, those of them that nobody may see (events are not typed), and those that
#: an action begins with.
VIEWS = ("changelist", "add", "history", "delete", "change", "new")
CLOSED = ("add", "delete")
ACTING = ("new",)
QUEUE = "billing-of-permissions"

models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


@pytest.fixture(autouse=True)
def _events(db: None, settings: Any, fresh_name: Callable[[str], str]) -> None:
    """One event, relay or letter of each kind."""
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('permissions')}"
    stage.waiting()
    stage.held()
    stage.sent()
    RelayHeartbeat.objects.create(relay="r", host="h", pid=1, started_at=1.0, seen_at=1.0)
    stage.bury(QUEUE, DomainEvent("order.placed", {}))
    begun = datetime.now(timezone.utc)
    Backfill.objects.create(
        handler=f"{QUEUE}-begun", binding_keys='["order.*"]', up_to=1, begun_at=begun, moved_at=begun
    )


def urls(model: Any) -> Iterator[tuple[str, str]]:
    """Yield each view of a model that has an address, with that."""
    key = QUEUE if model is DeadLetter else model.objects.get().pk
    for view in VIEWS:
        for arguments in ([], [key]):
            try:
                name = f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
                yield view, reverse(name, args=arguments)
            except NoReverseMatch:
                continue


def test_all_models_of_the_app_in_the_admin_are_walked() -> None:
    known = {model for model in site.site._registry if model._meta.app_label == "domain_event_broker"}
    assert known == set(MODELS)


def test_all_actions_of_the_admin_are_tried() -> None:
    for model, actions in MODELS.items():
        if model not in WITH_PAGES:
            assert set(site.site._registry[model].actions) == set(actions)


@models
def test_somebody_who_has_not_logged_in_sees_the_login(model: Any) -> None:
    for _, url in urls(model):
        for response in (Client().get(url), Client().post(url)):
            assert response.status_code == 302
            assert "/login/" in response["Location"]


@models
def test_a_member_of_the_staff_without_permissions_sees_nothing(
    model: Any, client_with: Callable[..., Client]
) -> None:
    client = client_with()
    for _, url in urls(model):
        assert client.get(url).status_code == 403
        assert client.post(url, {"queue": QUEUE}).status_code == 403
    letters = reverse("admin:domain_event_broker_deadletter_changelist")
    assert client.get(letters, {"queue": QUEUE}).status_code == 403


@models
def test_a_permission_for_one_model_opens_no_other(model: Any, client_with: Callable[..., Client]) -> None:
    client = client_with(f"view_{model._meta.model_name}")
    for other in MODELS:
        if other is not model:
            assert {client.get(url).status_code for _, url in urls(other)} == {403}


@models
def test_who_may_look_may_not_act(model: Any, client_with: Callable[..., Client]) -> None:
    client = client_with(f"view_{model._meta.model_name}")
    before = _counts()
    for view, url in urls(model):
        expected = {403} if view in (*CLOSED, *ACTING) else {200, 302}
        assert client.get(url).status_code in expected, view
    for action in MODELS[model]:
        _try(client, model, action)
    assert _counts() == before


@models
def test_no_permission_to_change_is_a_permission_to_act(
    model: Any, client_with: Callable[..., Client]
) -> None:
    own = [f"{each}_{model._meta.model_name}" for each in model._meta.default_permissions]
    client = client_with(*own)
    before = _counts()
    for action in MODELS[model]:
        _try(client, model, action)
    assert {client.get(url).status_code for view, url in urls(model) if view in CLOSED} <= {403}
    assert _counts() == before


@pytest.mark.parametrize(
    ("model", "permission", "forbidden"),
    [
        (HeldEvent, "replay_heldevent", "discard"),
        (HeldEvent, "discard_heldevent", "retry"),
        (DeadLetter, "replay_deadletter", "discard"),
        (DeadLetter, "discard_deadletter", "replay"),
        (DeadLetter, "discard_deadletter", "replay_all"),
    ],
)
def test_the_permission_for_one_action_is_none_for_another(
    model: Any, permission: str, forbidden: str, client_with: Callable[..., Client]
) -> None:
    client = client_with(f"view_{model._meta.model_name}", permission)
    before = _counts()
    _try(client, model, forbidden)
    assert _counts() == before


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("retry", "replay"),
        ("discard", "discard"),
        ("publish_again", "replay"),
        ("replay", "replay"),
        ("replay_all", "replay"),
        ("begin", "run"),
        ("give_up", "run"),
    ],
)
def test_with_its_permission_an_action_is_done(
    action: str, permission: str, client_with: Callable[..., Client]
) -> None:
    """Or the tests above would find everything forbidden because nothing works."""
    model = next(model for model, actions in MODELS.items() if action in actions)
    name = model._meta.model_name
    client = client_with(f"view_{name}", f"{permission}_{name}")
    before = _counts()
    _try(client, model, action)
    assert _counts() != before


def test_who_may_replay_and_not_look_replays_nothing(client_with: Callable[..., Client]) -> None:
    acts = (
        "replay_deadletter",
        "discard_deadletter",
        "replay_heldevent",
        "discard_heldevent",
        "run_backfill",
    )
    client = client_with(*acts)
    before = _counts()
    for model in (DeadLetter, HeldEvent, Backfill):
        for action in MODELS[model]:
            _try(client, model, action)
    assert _counts() == before


def _try(client: Client, model: Any, action: str) -> None:
    """Do an action as the pages do, answering yes to whatever they ask."""
    view, arguments = "changelist", []
    if model is Backfill:
        view, arguments = ("new", []) if action == "begin" else ("change", [model.objects.earliest("pk").pk])
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}", args=arguments)
    if model is Backfill:
        form = {"handler": QUEUE, "keys": "order.*", "action": action}
    elif model is DeadLetter:
        letters = client.get(url, {"queue": QUEUE}).context
        keys = [each.key for each in letters["page"].letters] if letters and "page" in letters else ["any"]
        form = {"queue": QUEUE, "action": action, "letter": keys, "confirmed": "yes"}
    else:
        pk = model.objects.get().pk
        form = {"action": action, ACTION_CHECKBOX_NAME: [pk], "confirmed": "yes", "up_to": str(pk)}
    client.post(url, form)


def _counts() -> tuple[Any, ...]:
    held = HeldEvent.objects.values_list("state", "attempts").first()
    backfills = list(Backfill.objects.order_by("pk").values_list("pk", "sent", "ended_at", "moved_at"))
    return OutboxEvent.objects.count(), held, ArchivedEvent.objects.count(), stage.depths(QUEUE), backfills
