"""The relays in the admin, with the figures of the outbox."""

from __future__ import annotations

import time

import pytest
from django.test import Client
from django.urls import reverse

from domain_event_broker.django.models import HeldEvent, RelayHeartbeat, RelayLease
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db

PAGE = "/admin/domain_event_broker/relayheartbeat/"


def relay(name: str, seen_ago: float, buckets: range) -> RelayHeartbeat:
    now = time.time()
    for bucket in buckets:
        lease = {"owner": name, "epoch": 1, "lease_until": now + 15 - seen_ago}
        RelayLease.objects.update_or_create(bucket=bucket, defaults=lease)
    return RelayHeartbeat.objects.create(
        relay=name, host="web-1", pid=41, started_at=now - 7200, seen_at=now - seen_ago
    )


def test_shows_relays_with_their_buckets_and_silence(admin: Client) -> None:
    relay("alive", 2, range(40))
    relay("dead", 90, range(40, 64))
    page = admin.get(PAGE).content.decode()
    assert '<td class="field-buckets">40</td>' in page
    assert '<td class="field-buckets">0</td>' in page
    assert page.count("silent for") == 1
    assert "silent for 1 minute" in page


def test_shows_which_buckets_a_relay_has(admin: Client) -> None:
    one = relay("alive", 1, range(3))
    page = admin.get(reverse("admin:domain_event_broker_relayheartbeat_change", args=[one.pk])).content
    assert "0, 1, 2" in page.decode()


def test_shows_what_there_is_to_do(admin: Client) -> None:
    stage.waiting()
    stage.held()
    stage.held(state=HeldEvent.State.SCHEDULED)
    response = admin.get(PAGE)
    outbox = response.context["outbox"]
    assert (outbox.pending, outbox.scheduled, outbox.retrying, outbox.parked) == (1, 1, 0, 1)
    content = response.content.decode()
    assert "3 minutes</strong> oldest waiting" in content
    assert "No relay runs on this database" in content
    assert 'class="deb-alarm"' in content


def test_relays_are_for_looking_at_only(admin: Client) -> None:
    one = relay("alive", 1, range(1))
    change = reverse("admin:domain_event_broker_relayheartbeat_change", args=[one.pk])
    assert admin.post(change, {"host": "x"}).status_code == 403
    assert admin.get(reverse("admin:domain_event_broker_relayheartbeat_add")).status_code == 403
