"""The tasks for Celery beat: they do what the commands do, and end in time whatever others do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from domain_event_broker import publish_domain_event
from domain_event_broker.django.models import ArchivedEvent, InboxEntry, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.tasks import purge_outbox, relay_outbox
from domain_event_broker.errors import ConfigurationError
from domain_event_broker.transports import memory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _a_broker_of_its_own(settings: Any, fresh_name: Callable[[str], str]) -> Iterator[None]:
    name = fresh_name("broker")
    settings.DOMAIN_EVENT_BROKER = f"memory://{name}"
    memory.broker(name).declare("domain-events", "handler", ["order.*"])
    yield
    memory.forget(name)


def test_what_waits_is_sent() -> None:
    for _ in range(3):
        publish_domain_event("order.placed", {})
    publish_domain_event("nobody.cares", {})
    assert relay_outbox() == {"sent": 3, "unroutable": 1, "refused": 0, "parked": 0}
    assert not OutboxEvent.objects.exists()
    assert relay_outbox()["sent"] == 0


def test_a_relay_that_holds_the_outbox_is_waited_for_no_longer_than_it_is_allowed() -> None:
    publish_domain_event("order.placed", {})
    other = DjangoRelayOutbox()
    assert len(other.renew().epochs) == 64
    began = time.monotonic()
    assert relay_outbox(max_seconds=0.5)["sent"] == 0
    assert 0.4 < time.monotonic() - began < 14, "the lease would end after fifteen seconds"
    other.leave()
    assert relay_outbox()["sent"] == 1


def test_what_is_old_is_deleted_and_nothing_else() -> None:
    publish_domain_event("order.placed", {})
    relay_outbox()
    publish_domain_event("order.placed", {})
    long_ago = timezone.now() - timedelta(days=40)
    InboxEntry.objects.create(consumer="handler", event_id="old", handled_at=long_ago)
    InboxEntry.objects.create(consumer="handler", event_id="new", handled_at=timezone.now())
    ArchivedEvent.objects.update(published_at=long_ago)
    assert purge_outbox() == {"archive": 1, "inbox": 1}
    assert (OutboxEvent.objects.count(), InboxEntry.objects.get().event_id) == (1, "new")
    assert purge_outbox(archive_days=0, inbox_days=0)["inbox"] == 1


def test_a_broker_that_is_switched_off_is_left_alone(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = None
    assert relay_outbox() == {}


def test_a_database_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        relay_outbox(database="nowhere")
    with pytest.raises(ConfigurationError, match="nowhere"):
        purge_outbox(database="nowhere")
