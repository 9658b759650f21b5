"""The first page that somebody on call opens: what is wrong, what waits, what goes through, who works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.utils import timezone

from domain_event_broker import config
from domain_event_broker.django.admin import dead_letters, display, plots
from domain_event_broker.django.admin.base import ReadOnlyAdmin, whole
from domain_event_broker.django.admin.known import discovered_handlers
from domain_event_broker.django.admin.links import Links, model_url
from domain_event_broker.django.conf import outbox_settings
from domain_event_broker.django.models import BUCKETS, BrokerOverview, HeldEvent, OutboxEvent
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.django.status import (
    COUNT_LIMIT,
    LAG_SECONDS,
    Alert,
    BrokerStatus,
    Level,
    OutboxStatus,
    alerts,
    broker_status,
    outbox_status,
)
from domain_event_broker.django.throughput import Throughput, throughput
from domain_event_broker.errors import DomainEventBrokerError
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import QueueStats

#: Number of slices and seconds of each: the last hour by minutes, the last day by half hours.
PERIODS = ((60, 60), (48, 1800))


@dataclass(frozen=True, slots=True)
class Figure:
    """One number at the top of the page; ``url`` leads to what it counts."""

    value: str
    label: str
    url: str = ""
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A queue in the table."""

    name: str
    keys: str
    stats: QueueStats | None
    url: str


@admin.register(BrokerOverview)
class BrokerOverviewAdmin(ReadOnlyAdmin):
    """One page; the model lends it its name and its permission."""

    def get_urls(self) -> list[URLPattern]:
        """Return the one address."""
        name = model_url(self.model, "changelist").removeprefix("admin:")
        return [path("", self.admin_site.admin_view(self.changelist_view), name=name)]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show all of it, as far as it can be known."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        outbox, trouble = _outbox()
        handlers, problem = _discovered()
        broker, off = _broker(handlers)
        links = Links(request, self.admin_site.name)
        found = [*trouble, *problem, *off, *alerts(outbox, broker)]
        found.sort(key=lambda each: list(Level).index(each.level))
        context = {
            "title": "At a glance",
            "alerts": [(each, _target(each, links)) for each in found],
            "all_is_well": not found and outbox is not None and broker is not None,
            "outbox": outbox,
            "figures": list(_figures(outbox, links)) if outbox else [],
            "buckets": BUCKETS,
            "plots": _plots() if outbox else [],
            "broker": broker,
            "rows": _rows(handlers, broker, links),
            "abandoned": _abandoned(broker, links),
            "now": timezone.now(),
        }
        return self.page(request, "overview.html", {**context, **(extra_context or {})})


def _outbox() -> tuple[OutboxStatus | None, list[Alert]]:
    try:
        with whole(only_reading=True):
            return outbox_status(outbox_alias()), []
    except DomainEventBrokerError as error:
        text = f"The outbox cannot be read: {display.told(error).rstrip('.')}."
        remedy = "Events cannot be published either, as long as this lasts: mend it first."
        return None, [Alert(Level.CRITICAL, text, remedy, "outbox-away")]


def _discovered() -> tuple[list[Handler], list[Alert]]:
    handlers, reason = discovered_handlers()
    if not reason:
        return handlers, []
    text = f"The handlers of this project cannot be loaded: {reason.rstrip('.')}."
    remedy = "Mend the declaration: no subscriber of this release can start."
    return [], [Alert(Level.CRITICAL, text, remedy, "handlers")]


def _broker(handlers: list[Handler]) -> tuple[BrokerStatus | None, list[Alert]]:
    try:
        if config.current() is None:
            text = "The broker is switched off: DOMAIN_EVENT_BROKER is None."
            remedy = "Events published now are neither stored nor sent; set a URL to switch it on."
            return None, [Alert(Level.WARNING, text, remedy, "switched-off")]
        with whole(only_reading=True):
            status = broker_status(dead_letters.settings_for_admin(), handlers)
    except DomainEventBrokerError as error:
        text = f"The settings are wrong: {display.told(error).rstrip('.')}."
        return None, [Alert(Level.CRITICAL, text, "Correct DOMAIN_EVENT_BROKER.", "settings")]
    return replace(status, url=dead_letters.told(status.url), problem=dead_letters.told(status.problem)), []


def _figures(outbox: OutboxStatus, links: Links) -> Iterator[Figure]:
    oldest = outbox.oldest_seconds
    waiting = links.list(OutboxEvent)
    lag = display.seconds(oldest) if oldest is not None else "none"
    yield Figure(lag, "lag: age of the oldest waiting", waiting, is_bad=(oldest or 0.0) > LAG_SECONDS)
    yield Figure(_count(outbox.pending), "waiting", waiting)
    for state, count in (
        (HeldEvent.State.SCHEDULED, outbox.scheduled),
        (HeldEvent.State.RETRYING, outbox.retrying),
        (HeldEvent.State.PARKED, outbox.parked),
    ):
        url = links.list(HeldEvent, state__exact=state.value)
        yield Figure(_count(count), state.value, url, is_bad=count > 0 and state == HeldEvent.State.PARKED)


def _count(count: int) -> str:
    return f"{count:,}+" if count >= COUNT_LIMIT else f"{count:,}"


def _plots() -> list[dict[str, Any]]:
    try:
        with whole(only_reading=True):
            hour, day = throughput(outbox_alias(), PERIODS)
    except DomainEventBrokerError:
        return []  # an alert says that the outbox cannot be read
    return [_plot("hour", "Last hour", "minute", hour), _plot("day", "Last day", "half hour", day)]


def _plot(name: str, title: str, unit: str, sent: Throughput) -> dict[str, Any]:
    about = "" if sent.exact else "about "
    summary = f"{about}{sent.total:,} sent, at most {about}{sent.highest:,} in one {unit}"
    if not sent.total:
        kept = outbox_settings().archive_days
        summary = "nothing sent" if kept else "not known: nothing is archived (ARCHIVE_DAYS is 0)"
    labels = [(display.moment(each.starts_at, "H:i"), each.count) for each in sent.slices]
    drawn = [plots.Bar(count, f"{at}: {about}{count:,}") for at, count in labels]
    return {
        "title": title,
        "unit": unit,
        "summary": summary,
        "first": labels[0][0],
        "last": labels[-1][0],
        "rows": [(at, f"{about}{count:,}") for at, count in reversed(labels)],
        "svg": plots.bars(drawn, f"Events sent, {title.lower()} by {unit}", summary, f"deb-{name}"),
    }


def _rows(handlers: list[Handler], broker: BrokerStatus | None, links: Links) -> list[Row]:
    queues = broker.queues if broker else {}
    return [
        Row(each.name, ", ".join(each.binding_keys), queues.get(each.name), links.letters(each.name))
        for each in handlers
    ]


def _abandoned(broker: BrokerStatus | None, links: Links) -> list[Row]:
    left = broker.abandoned if broker else {}
    return [Row(name, "has left the code", stats, links.letters(name)) for name, stats in left.items()]


def _target(alert: Alert, links: Links) -> str:
    """Return the address where something can be done about an alert, if the admin has one."""
    if alert.kind in ("dead-letters", "abandoned-queue"):
        return links.letters(alert.subject)
    if alert.kind in ("parked", "retrying"):
        return links.list(HeldEvent, state__exact=alert.kind)
    return links.list(OutboxEvent) if alert.kind == "lag" else ""
