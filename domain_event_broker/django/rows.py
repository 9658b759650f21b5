"""Events as rows: the columns that they have in each of their homes, and the way between them."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from typing import Any

from domain_event_broker.correlation import is_usable
from domain_event_broker.django.models import BUCKETS, ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.events import HEADER_CORRELATION_ID, Message
from domain_event_broker.ports import OutboxRow

OUTBOX = OutboxEvent._meta.db_table
HELD = HeldEvent._meta.db_table
ARCHIVE = ArchivedEvent._meta.db_table

#: The columns of :class:`~domain_event_broker.django.models.StoredEvent`, without the last,
#: ``created_at``, which gets a new value when a scheduled event comes due.
EVENT_COLUMNS = "event_id, bucket, ordering_key, routing_key, body, headers, timestamp, correlation_id"

#: What a relay needs of a waiting row, in the order that :func:`to_outbox_row` takes it. The
#: correlation id is in the headers, too: it is read so that tables of an older release are noticed
#: before anything is sent, and not after, when the row could not be moved to the archive.
ROW_COLUMNS = (
    "id, attempts, event_id, bucket, ordering_key, routing_key, headers, timestamp, correlation_id, body"
)


def bucket_of(ordering_key: str | None) -> int:
    """Return the bucket of a key, the same one for ever; without a key any will do."""
    if ordering_key is None:
        return random.randrange(BUCKETS)  # noqa: S311 - spreads load, keeps no secret
    return zlib.crc32(ordering_key.encode()) % BUCKETS


def event_values(message: Message) -> tuple[Any, ...]:
    """Return the values of :data:`EVENT_COLUMNS` for a message."""
    return (
        message.event_id,
        bucket_of(message.ordering_key),
        message.ordering_key,
        message.routing_key,
        message.body.decode(),
        json.dumps(dict(message.headers)) if message.headers else "",
        message.timestamp,
        _story_of(message),
    )


def to_outbox_row(values: Sequence[Any]) -> OutboxRow:
    """Return the row that was read as :data:`ROW_COLUMNS`."""
    row_id, attempts, event_id, bucket, ordering_key, routing_key, headers, timestamp, _, body = values
    message = Message(
        routing_key,
        body.encode(),
        event_id,
        ordering_key,
        timestamp,
        json.loads(headers) if headers else {},
    )
    return OutboxRow(row_id, bucket, message, attempts)


def _story_of(message: Message) -> str:
    """Return what the event can be found by together with the others of its story."""
    story = message.headers.get(HEADER_CORRELATION_ID)
    return str(story) if is_usable(story) else message.event_id
