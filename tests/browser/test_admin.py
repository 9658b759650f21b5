"""The admin as a person sees it: in a browser, with a mouse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from domain_event_broker import DomainEvent, handlers, subscribe
from domain_event_broker.django.models import (
    ArchivedEvent,
    HeldEvent,
    InboxEntry,
    OutboxEvent,
    RelayHeartbeat,
    RelayLease,
)
from tests.browser.chromium import Chromium
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db(transaction=True)

ADMIN = "/admin/domain_event_broker"
#: Complaints that are Django's own, or the browser's about what no page of ours asked for.
_NOT_OURS = ("favicon.ico",)


class ServiceDown(Exception):
    """The payment provider is away."""


class Visit:
    """Somebody on call, logged in to the admin of a project."""

    def __init__(self, browser: Chromium, root: str) -> None:
        self.browser = browser
        self.root = root

    def open(self, path: str) -> None:
        """Go to a page of the admin."""
        self.browser.goto(f"{self.root}{path}")

    def log_in(self) -> None:
        User.objects.create_superuser("root", password="root")
        self.open("/admin/login/")
        self.browser.type("#id_username", "root")
        self.browser.type("#id_password", "root")
        self.browser.click("input[type=submit]", leads_on=True)
        # Django's login page itself is no concern of ours.
        self.browser.complaints.clear()


@pytest.fixture
def visit(
    strict_policy: None,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    fresh_name: Callable[[str], str],
    live_server: Any,
    browser: Chromium,
) -> Iterator[Visit]:
    """Log in; afterwards, nothing was asked of another host, and no script or policy complained."""
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('browser')}"
    monkeypatch.setattr(handlers.registry, "_handlers", {})
    visit = Visit(browser, live_server.url)
    visit.log_in()
    yield visit
    hosts = {urlsplit(url).netloc for url in browser.requests if not url.startswith(("data:", "about:"))}
    assert hosts == {urlsplit(live_server.url).netloc}
    assert [each for each in browser.complaints if not any(known in each for known in _NOT_OURS)] == []
    assert browser.js("document.title") != "pwned"


@pytest.fixture
def letters() -> tuple[str, list[DomainEvent]]:
    """Return a handler whose provider is down, with its dead letters."""
    name = "payments.charge_card"
    subscribe("order.placed", name=name)(lambda event: None)
    subscribe("payment.*", "order.cancelled", name="shipping.prepare")(lambda event: None)
    events = [
        DomainEvent(
            "order.placed", {"order": 1000 + number, "total": "49.90", "customer": "Zoë"}, f"o-{number}"
        )
        for number in range(3)
    ]
    events.append(DomainEvent("order.placed", {"note": stage.SCRIPT}))
    stage.bury(name, *events, error=ServiceDown(f"POST https://pay.example/charge: 503 {stage.SCRIPT}"))
    return name, events


def test_dead_letters_are_found_looked_into_and_replayed(
    visit: Visit, letters: tuple[str, list[DomainEvent]], picture: Callable[[str], None]
) -> None:
    name, _ = letters
    browser = visit.browser
    visit.open("/admin/")
    picture("index")
    browser.click(".model-deadletter a", leads_on=True)
    assert name in browser.text()
    picture("dead-letter-handlers")
    browser.click(".deb-table tbody tr a", leads_on=True)
    assert "503 <script>" in browser.text()
    assert "Traceback" in browser.text()
    assert "ServiceDown: POST" not in browser.text(".deb-letter details")
    browser.click(".deb-letter summary")
    assert "raise error" in browser.text(".deb-letter details")
    browser.click(".deb-letter details:last-child summary")
    assert '"customer": "Zoë"' in browser.text(".deb-letter details:last-child")
    browser.click("input[name=letter]")
    picture("dead-letters")
    browser.click("button[value=replay]", leads_on=True)
    assert "1 letter was replayed." in browser.text(".messagelist")
    assert stage.depths(name) == (1, 3)
    browser.click("#deb-select-all")
    assert browser.js("document.querySelectorAll('input[name=letter]:checked').length") == 3
    browser.click("button[value=discard]", leads_on=True)
    assert "These letters of payments.charge_card will be deleted" in browser.text()
    picture("dead-letters-discard")
    browser.click("a.cancel-link", leads_on=True)
    assert stage.depths(name) == (1, 3)
    browser.click("button[value=replay_all]", leads_on=True)
    assert "3 letters were replayed." in browser.text(".messagelist")
    picture("dead-letters-none")
    assert stage.depths(name) == (4, 0)


def test_dead_letters_can_be_read_on_a_narrow_screen(
    visit: Visit, letters: tuple[str, list[DomainEvent]], picture: Callable[[str], None]
) -> None:
    visit.browser.width(420)
    visit.open(f"{ADMIN}/deadletter/?queue={letters[0]}")
    picture("dead-letters-narrow")
    assert visit.browser.js("document.documentElement.scrollWidth") <= 420


def test_a_parked_event_is_understood_and_sent(visit: Visit, picture: Callable[[str], None]) -> None:
    browser = visit.browser
    parked = stage.held(
        "order.placed",
        data={"order": 7, "note": stage.SCRIPT},
        key="order-7",
        reason=f"refused: {stage.SCRIPT}",
    )
    stage.held(state=HeldEvent.State.SCHEDULED, routing_key="invoice.due", key="invoice-3")
    stage.held(state=HeldEvent.State.RETRYING, routing_key="order.paid", reason="the queue is full")
    visit.open(f"{ADMIN}/heldevent/")
    picture("held")
    browser.click("#changelist-filter a[href*=parked]", leads_on=True)
    browser.click("#result_list tbody th a", leads_on=True)
    assert "refused: <script>" in browser.text(".field-shown_reason")
    assert '"note": "<script>' in browser.text(".field-payload")
    picture("held-event")
    browser.click("button[value=retry]", leads_on=True)
    assert "1 event was made due now." in browser.text(".messagelist")
    assert HeldEvent.objects.get(pk=parked.pk).state == HeldEvent.State.RETRYING
    stage.look_as_a_relay()
    assert OutboxEvent.objects.get().pk == parked.outbox_id
    visit.open(f"{ADMIN}/outboxevent/")
    assert parked.event_id in browser.text("#result_list")
    picture("waiting")


def test_discarding_asks_first(visit: Visit, picture: Callable[[str], None]) -> None:
    browser = visit.browser
    for number in range(3):
        stage.held("order.placed", key=f"order-{number}", reason="refused")
    visit.open(f"{ADMIN}/heldevent/")
    browser.click("#action-toggle")
    browser.choose("select[name=action]", "discard")
    browser.click(".actions button", leads_on=True)
    picture("discard")
    browser.click("a.cancel-link", leads_on=True)
    assert HeldEvent.objects.count() == 3
    browser.click("#result_list tbody tr input")
    browser.choose("select[name=action]", "discard")
    browser.click(".actions button", leads_on=True)
    browser.click("button.deb-danger", leads_on=True)
    assert "1 event was discarded." in browser.text(".messagelist")
    assert HeldEvent.objects.count() == 2


def test_sent_events_are_searched_and_published_again(visit: Visit, picture: Callable[[str], None]) -> None:
    browser = visit.browser
    events = [stage.sent(f"order.{word}", key="order-7") for word in ("placed", "paid", "shipped")]
    stage.sent("audit.seen", unroutable=True)
    visit.open(f"{ADMIN}/archivedevent/")
    picture("sent")
    browser.type("#searchbar", "order.pa")
    browser.click("#changelist-search input[type=submit]", leads_on=True)
    assert browser.text("#result_list tbody th").split() == ["order.paid", events[1].event_id]
    browser.click("#result_list tbody th a", leads_on=True)
    picture("sent-event")
    browser.click("button[value=publish_again]", leads_on=True)
    assert "skips the copy" in browser.text()
    picture("publish-again")
    browser.click("button.default", leads_on=True)
    assert OutboxEvent.objects.get().event_id == events[1].event_id


def relays_at_work(*relays: tuple[str, float, range]) -> None:
    """Store relays: name, seconds since their heartbeat, buckets."""
    now = time.time()
    for name, seen, buckets in relays:
        RelayHeartbeat.objects.create(
            relay=f"relay-{name}", host=f"web-{name}", pid=100, started_at=now - 86_400, seen_at=now - seen
        )
        for bucket in buckets:
            lease = {"owner": f"relay-{name}", "epoch": 1, "lease_until": now + 15}
            RelayLease.objects.update_or_create(bucket=bucket, defaults=lease)


def sent_all_day() -> None:
    """Fill the archive with a day that has hours of much and of little."""
    now = timezone.now()
    moments = [now - timedelta(minutes=minute) for minute in range(1440) for _ in range(minute * 7 % 11)]
    event = stage.columns("order.placed")
    ArchivedEvent.objects.bulk_create(
        ArchivedEvent(**event, outbox_id=1, published_at=moment) for moment in sorted(moments)
    )


def test_the_overview_tells_what_is_wrong_and_leads_there(
    visit: Visit, letters: tuple[str, list[DomainEvent]], picture: Callable[[str], None]
) -> None:
    browser = visit.browser
    relays_at_work(("a", 2, range(32)), ("b", 4, range(32, 64)), ("c", 40, range(0)))
    sent_all_day()
    stage.waiting()
    stage.held(reason=f"refused {stage.SCRIPT}")
    stage.held(state=HeldEvent.State.SCHEDULED)
    visit.open("/admin/")
    browser.click(".model-brokeroverview a", leads_on=True)
    picture("overview")
    assert browser.js("document.documentElement.scrollWidth") <= 1280
    said = browser.text(".deb-alerts")
    assert "Relay web-c:100 has been silent for" in said
    assert "4 dead letters in payments.charge_card" in said
    browser.click(".deb-plots summary")
    assert browser.js("document.querySelectorAll('.deb-plots tbody')[0].rows.length") == 60
    browser.width(400)
    picture("overview-narrow")
    assert browser.js("document.documentElement.scrollWidth") <= 400
    browser.width(1280)
    browser.click(".deb-alert a[href*=deadletter]", leads_on=True)
    assert "503 <script>" in browser.text()


def test_an_overview_without_worries_says_so(visit: Visit, picture: Callable[[str], None]) -> None:
    relays_at_work(("a", 2, range(64)))
    visit.open(f"{ADMIN}/brokeroverview/")
    picture("overview-well")
    assert "All is well" in visit.browser.text(".deb-well")


def test_the_page_of_an_event_tells_its_life_and_its_story(
    visit: Visit, letters: tuple[str, list[DomainEvent]], picture: Callable[[str], None]
) -> None:
    browser = visit.browser
    first = stage.sent("order.placed", story="req-81", key="order-7")
    paid = stage.sent("payment.taken", story="req-81", cause=first.event_id, key="order-7")
    stage.sent(f"mail.{stage.SCRIPT}", story="req-81", cause=paid.event_id)
    stage.held("invoice.due", state=HeldEvent.State.SCHEDULED, story="req-81", cause=paid.event_id)
    InboxEntry.objects.create(consumer="shipping.prepare", event_id=paid.event_id, handled_at=timezone.now())
    visit.open(f"{ADMIN}/archivedevent/{paid.pk}/change/")
    picture("event")
    assert "Handled by shipping.prepare." in browser.text(".deb-timeline")
    assert "mail.<script>" in browser.text(".deb-story")
    assert browser.js("document.documentElement.scrollWidth") <= 1280
    browser.width(400)
    picture("event-narrow")
    assert browser.js("document.documentElement.scrollWidth") <= 400
    browser.width(1280)
    browser.click(".deb-story a", leads_on=True)
    assert first.event_id in browser.text(".field-shown_id")
    browser.click(".deb-life table a", leads_on=True)
    assert "payments.charge_card" in browser.text("#content h1")


def test_sent_events_of_a_span_of_time_are_found(visit: Visit, picture: Callable[[str], None]) -> None:
    browser = visit.browser
    old, new = stage.sent("order.placed"), stage.sent("order.paid")
    ArchivedEvent.objects.filter(pk=old.pk).update(published_at=timezone.now() - timedelta(days=2))
    until = (timezone.now() - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    visit.open(f"{ADMIN}/archivedevent/")
    browser.js(f"document.querySelector('.deb-span [name=until]').value = '{until}'")
    browser.click(".deb-span button", leads_on=True)
    picture("sent-in-time")
    assert old.event_id in browser.text("#result_list")
    assert new.event_id not in browser.text("#result_list")
    browser.click(".deb-span a", leads_on=True)
    assert new.event_id in browser.text("#result_list")


def test_relays_are_seen_with_what_they_have_to_do(visit: Visit, picture: Callable[[str], None]) -> None:
    relays_at_work(("a", 2, range(32)), ("b", 4, range(32, 64)), ("c", 300, range(0)))
    stage.waiting()
    stage.held(reason="refused")
    visit.open(f"{ADMIN}/relayheartbeat/")
    assert "silent for 5 minutes" in visit.browser.text("#result_list")
    picture("relays")
    visit.browser.click(".deb-alarm a", leads_on=True)
    assert "state__exact=parked" in visit.browser.js("location.href")


def test_a_broker_that_is_away_is_told(
    visit: Visit, settings: Any, letters: tuple[str, list[DomainEvent]], picture: Callable[[str], None]
) -> None:
    settings.DOMAIN_EVENT_BROKER = "amqp://shop:sesame@127.0.0.1:9/%2F"
    visit.open(f"{ADMIN}/deadletter/")
    picture("broker-away")
    assert "127.0.0.1" in visit.browser.text(".errornote")
    assert "sesame" not in visit.browser.js("document.documentElement.outerHTML")
