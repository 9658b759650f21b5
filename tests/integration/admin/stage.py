"""Events in each of their homes, and dead letters in a broker, for tests of the admin."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.models import Permission, User
from django.contrib.messages.storage.cookie import CookieStorage
from django.http import HttpRequest
from django.test import RequestFactory
from django.utils import timezone

from domain_event_broker import DomainEvent, config
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.rows import bucket_of
from domain_event_broker.events import HEADER_CAUSATION_ID, HEADER_CORRELATION_ID, encode
from domain_event_broker.failures import Failure
from domain_event_broker.ports import (
    Action,
    DeadLetter,
    Decision,
    OutboxRow,
    Settlement,
    Stored,
    Subscription,
    Transport,
)
from domain_event_broker.transports import open_transport

#: What a careless admin would run.
SCRIPT = "<script>document.title = 'pwned'</script>"


def columns(
    routing_key: str,
    data: Any = None,
    key: str | None = None,
    story: str | None = None,
    cause: str | None = None,
) -> dict[str, Any]:
    """Return the columns that an event has in all of its homes.

    :param story: correlation id; so is ``cause`` the causation id.
    """
    event = DomainEvent(routing_key, {"total": 1250} if data is None else data, key)
    message = encode(event)
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    headers |= {HEADER_CORRELATION_ID: story} if story else {}
    headers |= {HEADER_CAUSATION_ID: cause} if cause else {}
    return {
        "event_id": message.event_id,
        "bucket": bucket_of(key),
        "ordering_key": key,
        "routing_key": routing_key,
        "body": message.body.decode(),
        "headers": json.dumps(headers),
        "correlation_id": story or message.event_id,
        "timestamp": message.timestamp,
        "created_at": timezone.now() - timedelta(minutes=3),
    }


def waiting(routing_key: str = "order.placed", using: str = "default", **options: Any) -> OutboxEvent:
    """Store an event that waits."""
    return OutboxEvent.objects.using(using).create(**columns(routing_key, **options))


def held(
    routing_key: str = "order.placed",
    state: str = HeldEvent.State.PARKED,
    reason: str = "",
    using: str = "default",
    **options: Any,
) -> HeldEvent:
    """Store an event that is held; one that was refused had a place in the outbox."""
    scheduled = state == HeldEvent.State.SCHEDULED
    return HeldEvent.objects.using(using).create(
        **columns(routing_key, **options),
        state=state,
        due_at=None if state == HeldEvent.State.PARKED else timezone.now() + timedelta(hours=1),
        outbox_id=None if scheduled else _place_once_taken(using),
        attempts=0 if scheduled else 8,
        reason=reason,
        blocks_key=not scheduled,
        held_at=timezone.now() - timedelta(minutes=2),
    )


def _place_once_taken(using: str) -> int:
    """Return the id of a waiting event that has gone: the database does not give it again."""
    row = waiting(using=using)
    place = int(row.pk)
    row.delete()
    return place


def sent(
    routing_key: str = "order.placed", unroutable: bool = False, using: str = "default", **options: Any
) -> ArchivedEvent:
    """Store an event that was sent."""
    return ArchivedEvent.objects.using(using).create(
        **columns(routing_key, **options), outbox_id=1, published_at=timezone.now(), unroutable=unroutable
    )


def look_as_a_relay(alias: str = "default") -> list[OutboxRow]:
    """Return what a relay would send now; it puts due events back into the hot table for that."""
    relay = DjangoRelayOutbox(alias)
    try:
        return relay.fetch(relay.renew(), 1000)
    finally:
        relay.leave()


def request_of_superuser(form: dict[str, str] | None = None, **query: str) -> HttpRequest:
    """Return a request for a page by somebody who may do everything, without a database of users.

    :param form: what is posted, if something is.
    """
    factory = RequestFactory()
    request = factory.get("/", query) if form is None else factory.post(f"/?{urlencode(query)}", form)
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
    request.user = User(username="root", is_superuser=True, is_staff=True)
    request._messages = CookieStorage(request)  # type: ignore[attr-defined]
    return request


class OneDatabase:
    """A router that leads everything to one database."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Name the database."""
        return self._alias

    db_for_write = db_for_read


def user(name: str, *permissions: str) -> User:
    """Return a member of the staff with these permissions and no others."""
    member = User.objects.create_user(name, password=name, is_staff=True)
    for codename in permissions:
        member.user_permissions.add(
            Permission.objects.get(content_type__app_label="domain_event_broker", codename=codename)
        )
    return member


@contextmanager
def _transport() -> Iterator[Transport]:
    settings = config.current()
    assert settings is not None
    transport = open_transport(settings)
    try:
        yield transport
    finally:
        transport.close()


def bury(queue: str, *events: DomainEvent, error: Exception | None = None) -> list[DomainEvent]:
    """Put events into the dead letters of the handler ``queue``, on the road that all take there."""
    with _transport() as transport:
        transport.subscribe(Subscription(queue, tuple({event.routing_key for event in events})))
        outcomes = transport.publish([encode(event) for event in events])
        assert all(outcome.stored is Stored.STORED for outcome in outcomes)
        _fail(transport, len(events), error or RuntimeError("the payment provider did not answer"))
    return list(events)


def bury_what_waits(queue: str, error: Exception | None = None) -> None:
    """Let what is in the queue of a handler fail once more."""
    with _transport() as transport:
        transport.subscribe(Subscription(queue, ("nothing.else",)))
        _fail(transport, transport.stats([queue])[queue].ready or 1, error or RuntimeError("no answer yet"))


def _fail(transport: Transport, left: int, error: Exception) -> None:
    failure = _failure(error)
    while left:
        deliveries = transport.receive(left, 10)
        assert deliveries, "no delivery within 10 s"
        transport.settle([Settlement(each, Action.DEAD, failure=failure) for each in deliveries])
        left -= len(deliveries)


@contextmanager
def in_hand(queue: str) -> Iterator[None]:
    """Be somebody who looks at the dead letters of a handler, for as long as the block runs."""
    looking, enough = threading.Event(), threading.Event()

    def decide(_: DeadLetter) -> Decision:
        looking.set()
        assert enough.wait(60)
        return Decision.LEAVE

    def look() -> None:
        with _transport() as transport:
            transport.dead_letters(queue).sift(decide)

    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(60), "nobody looks"
    try:
        yield
    finally:
        enough.set()
        thread.join(60)


def _failure(error: Exception) -> Failure:
    try:
        raise error
    except Exception as raised:
        return Failure.of(raised, "retries-exhausted", 4)


def depths(queue: str) -> tuple[int, int]:
    """Return how many events of a handler are ready, and how many are dead letters."""
    with _transport() as transport:
        stats = transport.stats([queue])[queue]
    return stats.ready, stats.dead
