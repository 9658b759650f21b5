"""A back-fill whose process is killed with -9: gone on with, it leaves nothing out and keeps the order."""

from __future__ import annotations

from itertools import islice

import pika

from tests.faults.apparatus import Stage
from tests.harness.waiting import wait_until

EVENTS = 20_000
#: What is sent again after a kill: at most one batch.
BATCH = 500
HANDLER = "spy"

_FILL = """
INSERT INTO domain_event_broker_archive
    (event_id, bucket, ordering_key, routing_key, body, headers, timestamp, created_at, outbox_id,
     published_at, unroutable)
SELECT 'e-' || n, n % 64, 'object-' || n % 100,
       CASE WHEN n % 10 = 0 THEN 'elsewhere.x' ELSE 'faults.x' END,
       '{"routing_key": "faults.x", "data": {}, "uuid_string": "e-' || n || '"}', '', 0,
       now(), n, now(), false
FROM generate_series(1, COUNT) AS n
"""


def test_killed_twice_it_sends_every_event_in_order(stage: Stage) -> None:
    stage.sql("TRUNCATE domain_event_broker_backfill")
    stage.sql(_FILL.replace("COUNT", str(EVENTS)))
    expected = [f"e-{n}" for n in range(1, EVENTS + 1) if n % 10]
    first = stage.run("backfill", HANDLER, "--key", "faults.#", "--yes")
    for more in (1_000, 2_000):
        before = _sent(stage)
        wait_until(lambda enough=before + more: _sent(stage) >= enough or _has_ended(stage), 60)  # type: ignore[misc]
        first.kill()
        first = stage.run("backfill", HANDLER, "--resume")
    # On a machine that was busy with something else it may have been faster than the kill.
    assert first.wait() == 0 or "is unfinished" in first.output(), first.output()
    assert stage.sql("SELECT sent, ended_at IS NOT NULL, given_up FROM domain_event_broker_backfill") == [
        (len(expected), True, False)
    ]
    arrived = _take_all(stage)
    assert list(dict.fromkeys(arrived)) == expected
    assert len(arrived) - len(expected) <= 2 * BATCH


def _sent(stage: Stage) -> int:
    rows = stage.sql("SELECT sent FROM domain_event_broker_backfill")
    return int(rows[0][0]) if rows else 0


def _has_ended(stage: Stage) -> bool:
    return bool(stage.sql("SELECT 1 FROM domain_event_broker_backfill WHERE ended_at IS NOT NULL"))


def _take_all(stage: Stage) -> list[str]:
    """Take all events out of the queue, until it is empty; return their identities, in their order."""
    assert stage.rabbitmq is not None
    found: list[str] = []
    with pika.BlockingConnection(pika.URLParameters(stage.rabbitmq.url())) as connection:
        channel = connection.channel()
        while count := channel.queue_declare(HANDLER, passive=True).method.message_count:
            for method, properties, _ in islice(channel.consume(HANDLER, inactivity_timeout=60), count):
                assert method is not None, f"nothing came for 60 s, after {len(found):,} events"
                found.append(properties.message_id)
                channel.basic_ack(method.delivery_tag)
            channel.cancel()
    return found
