"""The story that an event is part of: what led to it, and what came of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from domain_event_broker.correlation import is_usable
from domain_event_broker.django.admin.links import Links
from domain_event_broker.django.admin.paging import newest
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent, StoredEvent
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.events import HEADER_CAUSATION_ID, HEADER_CORRELATION_ID

#: Events of a story that a page shows of each home; a nightly import may have a million.
SHOWN = 100
#: Levels that are told apart by how far they are moved to the right.
DEEPEST = 6


@dataclass(frozen=True, slots=True)
class Chapter:
    """One event of a story.

    :param depth: how many events led to it, of those shown.
    :param state: where it is: ``"sent"``, ``"waiting"``, ``"parked"``, ...
    """

    event_id: str
    routing_key: str
    created_at: datetime
    depth: int
    state: str
    url: str
    is_this: bool


@dataclass(frozen=True, slots=True)
class Story:
    """The events of a story, each below the one that it is the consequence of.

    :param cause: identity of what led to the event, where that is not among them.
    :param is_cut: there are more.
    """

    story_id: str
    chapters: list[Chapter]
    cause: str = ""
    is_cut: bool = False
    url: str = ""

    @property
    def is_worth_telling(self) -> bool:
        """Whether there is more to it than the event itself."""
        return len(self.chapters) > 1 or bool(self.cause)


def story_of(event: StoredEvent, links: Links) -> Story:
    """Return the story of an event, in the homes that the user may see."""
    story_id = event.correlation_id or _header(event, HEADER_CORRELATION_ID) or event.event_id
    looks = [rows for rows in _looks(story_id, event) if links.may_view(rows.model)]
    found = [list(rows.defer("body")[: SHOWN + 1]) for rows in looks]
    # The last one wins: what was sent is told as such, also if it was published again since.
    events = {row.event_id: row for rows in found for row in rows[:SHOWN]}
    events[event.event_id] = event
    cause = _header(event, HEADER_CAUSATION_ID)
    return Story(
        story_id,
        [_chapter(row, depth, event, links) for row, depth in _in_order(events.values())],
        cause=cause if cause not in events else "",
        is_cut=any(len(rows) > SHOWN for rows in found),
        url=links.list(ArchivedEvent, q=story_id),
    )


def _looks(story_id: str, event: StoredEvent) -> Iterator[Any]:
    """Return the events of a story in each home, and what led to this one, whatever story that was of."""
    alias = outbox_alias()
    of_story = {"correlation_id": story_id}
    yield newest(OutboxEvent.objects.using(alias).filter(**of_story))
    yield HeldEvent.objects.using(alias).filter(**of_story)
    yield ArchivedEvent.objects.using(alias).filter(**of_story)
    cause = _header(event, HEADER_CAUSATION_ID)
    if cause:
        yield ArchivedEvent.objects.using(alias).filter(event_id=cause)


def _in_order(events: Iterable[StoredEvent]) -> Iterator[tuple[StoredEvent, int]]:
    """Return each event once, after the one that led to it, with the number of those before it."""
    events = sorted(events, key=lambda each: (each.created_at, each.pk))
    known = {each.event_id for each in events}
    effects: dict[str, list[StoredEvent]] = defaultdict(list)
    for each in events:
        cause = _header(each, HEADER_CAUSATION_ID)
        effects[cause if cause in known else ""].append(each)
    told: set[str] = set()
    # Those that name each other as their cause, which only a foreign producer writes, come last.
    for first in [*effects[""], *events]:
        waiting = [(first, 0)]
        while waiting:
            each, depth = waiting.pop()
            if each.event_id not in told:
                told.add(each.event_id)
                yield each, depth
                waiting += [(effect, depth + 1) for effect in reversed(effects[each.event_id])]


def _chapter(row: StoredEvent, depth: int, event: StoredEvent, links: Links) -> Chapter:
    is_this = row.event_id == event.event_id
    url = "" if is_this else links.event(row)
    return Chapter(
        row.event_id, row.routing_key, row.created_at, min(depth, DEEPEST), _state(row), url, is_this
    )


def _state(row: StoredEvent) -> str:
    if isinstance(row, HeldEvent):
        return str(row.state)
    if isinstance(row, ArchivedEvent):
        return "sent, to nobody" if row.unroutable else "sent"
    return "waiting"


def _header(row: StoredEvent, name: str) -> str:
    """Return an identity that an event carries, or nothing; its headers may be anybody's."""
    try:
        headers = json.loads(row.headers) if row.headers else {}
    except ValueError:
        return ""
    found = headers.get(name) if isinstance(headers, dict) else None
    return str(found) if is_usable(found) else ""
