"""What a relay gets to send, in which order, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from domain_event_broker import DomainEvent, publish_domain_event, publish_domain_events
from domain_event_broker.config import OutboxSettings
from domain_event_broker.django import relay_outbox, scan
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.errors import ConfigurationError, OutboxNotMigrated, OutboxUnavailable
from domain_event_broker.ports import Held, Lease, Sent
from tests.djangoapp.databases import add_alias, database, remove_alias, run_in_thread, sqlite_file
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.waiting import wait_until
from tests.integration.outbox.content import (
    archived,
    held,
    number,
    publish,
    publish_all,
    refuse,
    send_all,
    stored,
)

MakeRelay = Callable[..., DjangoRelayOutbox]


def test_rows_come_in_the_order_of_publishing(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, range(20), key="a")
    publish_all(alias, range(20, 40))
    relay = make_relay(alias)
    assert [number(row) for row in relay.fetch(relay.renew(), 100)] == list(range(40))


def test_what_is_fetched_is_what_was_stored(alias: str, make_relay: MakeRelay) -> None:
    event = publish_domain_event("test.done", {"text": "ü \x00 😀"}, "k", timestamp=1.5, using=alias)
    relay = make_relay(alias)
    (row,) = relay.fetch(relay.renew(), 10)
    assert row.message.body == event.to_json().encode("ascii")
    assert (row.message.event_id, row.message.ordering_key) == (event.uuid_string, "k")
    assert (row.message.timestamp, row.attempts) == (1.5, 0)


def test_a_fetch_returns_no_more_than_its_limit(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, range(10))
    relay = make_relay(alias)
    assert [number(row) for row in relay.fetch(relay.renew(), 3)] == [0, 1, 2]


def test_a_fetch_returns_no_more_bytes_than_its_budget(
    alias: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_outbox, "FETCH_BYTES", 10_000)
    sizes = [10, 3_000, 8_000, 10, 20_000, 10, 10]
    events = [
        DomainEvent("test.done", {"number": n, "text": "x" * size}, "k") for n, size in enumerate(sizes)
    ]
    publish_domain_events(events, using=alias)
    relay = make_relay(alias)
    lease = relay.renew()
    batches = []
    while rows := relay.fetch(lease, 100):
        assert [row.message.body for row in rows] == [events[number(row)].to_json().encode() for row in rows]
        batches.append([number(row) for row in rows])
        relay.settle(lease, [Sent(row) for row in rows], [])
    assert batches == [[0, 1], [2, 3], [4], [5, 6]]


def test_a_scan_that_was_cut_short_hides_no_row_from_the_next(
    postgresql: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of the scans may not move past rows that were left for the next fetch."""
    monkeypatch.setattr(scan, "LOOK_SECONDS", 0.0)
    publish_all(postgresql, range(20))
    relay = make_relay(postgresql)
    lease = relay.renew()
    wait_until(lambda: relay.fetch(lease, 100) and relay._bound._low, 10)
    monkeypatch.setattr(relay_outbox, "FETCH_BYTES", 1_000)
    rows = relay.fetch(lease, 100)
    assert 0 < len(rows) < 20
    relay.settle(lease, [Sent(row) for row in rows], [])
    assert send_all(relay) == list(range(len(rows), 20))


def test_a_large_event_removed_in_the_middle_of_a_fetch_is_left_out(
    sqlite: str, make_relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_outbox, "FETCH_BYTES", 100)
    publish_all(sqlite, range(2))
    relay = make_relay(sqlite)
    lease, read = relay.renew(), relay._with_bodies

    def read_late(found: Any) -> Any:
        OutboxEvent.objects.using(sqlite).filter(id=found[0][0]).delete()
        return read(found)

    monkeypatch.setattr(relay, "_with_bodies", read_late)
    assert relay.fetch(lease, 10) == []
    monkeypatch.undo()
    assert send_all(relay) == [1]


def test_what_is_not_settled_is_fetched_again(alias: str, make_relay: MakeRelay) -> None:
    """So a relay whose broker went away in the middle sends it once more."""
    publish_all(alias, range(5))
    relay = make_relay(alias)
    lease = relay.renew()
    rows = relay.fetch(lease, 3)
    relay.settle(lease, [Sent(rows[1])], [])
    assert [number(row) for row in relay.fetch(lease, 10)] == [0, 2, 3, 4]


def test_sent_rows_move_to_the_archive(alias: str, make_relay: MakeRelay) -> None:
    events = publish_all(alias, range(3), key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    rows = relay.fetch(lease, 10)
    relay.settle(lease, [Sent(rows[0]), Sent(rows[1], unroutable=True)], [])
    assert stored(alias) == [2]
    first, second = ArchivedEvent.objects.using(alias).order_by("id")
    assert (first.unroutable, second.unroutable) == (False, True)
    assert (first.outbox_id, first.event_id) == (rows[0].id, events[0].uuid_string)
    assert first.to_message() == rows[0].message
    assert abs((first.published_at - datetime.now(timezone.utc)).total_seconds()) < 60


def test_without_an_archive_sent_rows_are_gone(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, range(3))
    assert send_all(make_relay(alias, archive_days=0)) == [0, 1, 2]
    assert stored(alias) == archived(alias) == []


def test_settling_twice_archives_once(alias: str, make_relay: MakeRelay) -> None:
    """Two relays may have sent a row, when one of them stood still past its lease."""
    publish(alias, 1)
    relay = make_relay(alias)
    lease = relay.renew()
    rows = relay.fetch(lease, 10)
    relay.settle(lease, [Sent(row) for row in rows], [])
    relay.settle(lease, [Sent(row) for row in rows], [])
    assert archived(alias) == [1]


def test_a_backlog_is_drained_in_order(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, range(3000), key="k")
    assert send_all(make_relay(alias), limit=500) == list(range(3000))
    assert archived(alias) == list(range(3000))


def test_a_late_commit_with_a_lower_id_is_sent_next(postgresql: str, make_relay: MakeRelay) -> None:
    """Ids are given before transactions commit: their order is not that of the commits."""
    relay = make_relay(postgresql)
    other = _other_connection(postgresql)
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(_insert_like_a_publisher(1, "late"))
            publish(postgresql, 2, key="early")
            assert send_all(relay) == [2]
            cursor.execute("COMMIT")
        assert send_all(relay) == [1]
    finally:
        other.close()


def test_a_late_commit_goes_ahead_of_later_events_of_its_key(postgresql: str, make_relay: MakeRelay) -> None:
    """Also when the scans of the relay begin at a bound by then."""
    relay = make_relay(postgresql)
    other = _other_connection(postgresql)
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(_insert_like_a_publisher(1, "k"))
            publish_all(postgresql, range(10, 20), key="others")
            lease = relay.renew()
            assert len(_send(relay, lease)) == 10
            wait_until(lambda: not relay.fetch(lease, 10) and _looked(relay), 10)
            cursor.execute("COMMIT")
        publish(postgresql, 2, key="k")
        assert send_all(relay) == [1, 2]
    finally:
        other.close()


def test_the_scans_move_up_past_what_was_sent(postgresql: str, make_relay: MakeRelay) -> None:
    publish_all(postgresql, range(10))
    relay = make_relay(postgresql, lease_seconds=60.0)
    lease = relay.renew()
    _send(relay, lease)
    last = ArchivedEvent.objects.using(postgresql).latest("outbox_id").outbox_id
    wait_until(lambda: relay.fetch(lease, 10) == [] and relay._bound._low == last, 10)
    publish(postgresql, 11)
    assert [number(row) for row in relay.fetch(lease, 10)] == [11]


def test_a_scheduled_event_is_sent_when_it_is_due(alias: str, make_relay: MakeRelay) -> None:
    due = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    publish_domain_event("test.done", {"number": 1}, using=alias, deliver_at=due)
    publish(alias, 2)
    relay = make_relay(alias)
    assert send_all(relay) == [2]
    wait_until(lambda: send_all(relay) == [1], 5)
    assert datetime.now(timezone.utc) >= due
    assert held(alias) == {}


def test_scheduled_events_come_in_the_order_of_their_times(alias: str, make_relay: MakeRelay) -> None:
    now = datetime.now(timezone.utc)
    for n, seconds in ((3, 0.3), (1, 0.1), (2, 0.2)):
        publish_domain_event(
            "test.done", {"number": n}, "k", using=alias, deliver_at=now + timedelta(seconds=seconds)
        )
    relay = make_relay(alias)
    wait_until(lambda: datetime.now(timezone.utc) > now + timedelta(seconds=0.4), 5)
    assert send_all(relay) == [1, 2, 3]


def test_a_refused_event_holds_up_its_key_and_no_other(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2, 3], key="k")
    publish_all(alias, [10, 11], key="other")
    publish(alias, 20)
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=60.0)
    assert held(alias) == {1: "retrying"}
    assert send_all(relay) == [10, 11, 20]
    assert stored(alias) == [2, 3]
    row = HeldEvent.objects.using(alias).get()
    assert (row.attempts, row.reason, row.blocks_key) == (1, "no such exchange", True)


def test_a_refused_event_comes_back_ahead_of_its_successors(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2, 3], key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refused = relay.fetch(lease, 1)
    refuse(relay, lease, refused, retry_in=0.3)
    assert send_all(relay) == []
    publish(alias, 4, key="k")
    rows = wait_until(lambda: relay.fetch(relay.renew(), 10), 5)
    assert [number(row) for row in rows] == [1, 2, 3, 4]
    assert (rows[0].id, rows[0].attempts) == (refused[0].id, 1)
    assert held(alias) == {}


def test_a_parked_event_that_blocks_keeps_its_key_waiting(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2], key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None)
    assert held(alias) == {1: "parked"}
    assert send_all(relay) == []
    assert stored(alias) == [2]


def test_a_parked_event_that_does_not_block_lets_its_key_pass(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2], key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None, block_key=False)
    assert send_all(relay) == [2]
    assert held(alias) == {1: "parked"}


def test_discarding_a_parked_event_lets_its_successors_go_in_order(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2, 3], key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None)
    publish_all(alias, range(10, 30))
    assert send_all(relay) == list(range(10, 30))
    HeldEvent.objects.using(alias).all().delete()
    publish(alias, 4, key="k")
    assert send_all(relay) == [2, 3, 4]


def test_a_row_put_back_by_hand_is_sent_ahead_of_its_successors(alias: str, make_relay: MakeRelay) -> None:
    """As the admin does it, in the transaction that removes the held row."""
    publish_all(alias, [1, 2], key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None)
    assert _send(relay, lease) == []
    with transaction.atomic(using=alias):
        row = HeldEvent.objects.using(alias).get()
        fields = {f: getattr(row, f) for f in ("event_id", "bucket", "ordering_key", "routing_key", "body")}
        OutboxEvent.objects.using(alias).create(id=row.outbox_id, created_at=row.created_at, **fields)
        row.delete()
    assert _send(relay, lease) == [1, 2]


def test_an_id_given_to_another_row_meanwhile_does_not_stop_promotion(
    alias: str, make_relay: MakeRelay
) -> None:
    publish(alias, 1)
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=0.0, block_key=False)
    publish(alias, 2)
    place = HeldEvent.objects.using(alias).get().outbox_id
    OutboxEvent.objects.using(alias).update(id=place)
    sent: list[int] = []
    wait_until(lambda: sent.extend(send_all(relay)) or len(sent) == 2, 5)
    assert sorted(sent) == [1, 2]


def test_refusals_are_written_only_for_buckets_that_are_still_ours(alias: str, make_relay: MakeRelay) -> None:
    publish(alias, 1)
    slow, quick = make_relay(alias), make_relay(alias)
    lease = slow.renew()
    rows = slow.fetch(lease, 1)
    slow.leave()
    quick.renew()
    refuse(slow, lease, rows, retry_in=60.0)
    assert stored(alias) == [1]
    assert held(alias) == {}


def test_a_row_deleted_meanwhile_is_not_held(alias: str, make_relay: MakeRelay) -> None:
    publish(alias, 1)
    relay = make_relay(alias)
    lease = relay.renew()
    rows = relay.fetch(lease, 1)
    OutboxEvent.objects.using(alias).all().delete()
    refuse(relay, lease, rows, retry_in=60.0)
    assert held(alias) == {}


def test_pending_counts_what_relays_will_send_by_themselves(alias: str, make_relay: MakeRelay) -> None:
    publish_all(alias, [1, 2, 3], key="k")
    publish_all(alias, [4, 5])
    relay = make_relay(alias)
    assert relay.pending() == 5
    assert relay.pending(limit=2) == 2
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=60.0)
    assert relay.pending() == 5
    HeldEvent.objects.using(alias).update(state="parked", due_at=None)
    assert relay.pending() == 2


def test_reasons_may_hold_whatever_a_broker_says(alias: str, make_relay: MakeRelay) -> None:
    publish(alias, 1)
    relay = make_relay(alias)
    lease = relay.renew()
    (row,) = relay.fetch(lease, 1)
    relay.settle(lease, [], [Held(row, "bad \x00 \ud800 \U0001f600" + "x" * 5000, None, False)])
    assert HeldEvent.objects.using(alias).get().reason.startswith(r"bad \x00 \ud800 \U0001f600xxx")


def test_without_time_zones_times_are_kept_all_the_same(
    alias: str, make_relay: MakeRelay, settings: Any
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    connections[alias].close()
    due = datetime.now(timezone.utc) + timedelta(seconds=3)
    publish_domain_event("test.done", {"number": 1}, using=alias, deliver_at=due)
    publish(alias, 2)
    relay = make_relay(alias)
    assert send_all(relay) == [2]
    wait_until(lambda: send_all(relay) == [1], 15)
    assert datetime.now(timezone.utc) >= due
    connections[alias].close()


@pytest.mark.django_db
def test_a_relay_works_within_the_transaction_of_a_test_case() -> None:
    publish("default", 1)
    relay = DjangoRelayOutbox("default", OutboxSettings())
    assert send_all(relay) == [1]
    relay.leave()
    assert archived("default") == [1]


def test_an_unknown_database_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'nowhere'.*default"):
        DjangoRelayOutbox("nowhere")


def test_no_lease_no_rows(alias: str, make_relay: MakeRelay) -> None:
    publish(alias, 1)
    assert make_relay(alias).fetch(Lease({}, 0.0), 10) == []


def test_missing_tables_are_named(tmp_path: Path, make_relay: MakeRelay, unblocked: None) -> None:
    with database("bare", sqlite_file(tmp_path, "bare"), migrate=False):
        relay = make_relay("bare")
        with pytest.raises(OutboxNotMigrated, match="migrate --database bare"):
            relay.renew()
        relay.leave()


def test_a_database_that_is_away_says_so_and_is_used_again_when_back(
    make_relay: MakeRelay, unblocked: None
) -> None:
    with PrivatePostgreSQL() as server:
        add_alias("flaky", server.url())
        try:
            with database("flaky", server.url()):
                relay = make_relay("flaky")
                publish(relay.alias, 1)
                assert len(relay.fetch(relay.renew(), 10)) == 1
                server.kill()
                for _ in range(2):
                    with pytest.raises(OutboxUnavailable, match="'flaky'"):
                        relay.renew()
                server.start()
                assert send_all(relay) == [1]
                relay.leave()
        finally:
            remove_alias("flaky")


def test_a_locked_sqlite_file_is_waited_for(sqlite: str, make_relay: MakeRelay) -> None:
    connections[sqlite].close()
    connections[sqlite].settings_dict["OPTIONS"]["timeout"] = 0.01
    publish(sqlite, 1)
    relay = make_relay(sqlite)
    lease = relay.renew()
    rows = relay.fetch(lease, 1)
    other = connections[sqlite].copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            settled: list[bool] = []

            def settle() -> None:
                relay.settle(lease, [Sent(rows[0])], [])
                settled.append(True)

            thread = run_in_thread(settle, sqlite)
            thread.join(0.3)
            assert thread.is_alive(), "it waits"
            cursor.execute("ROLLBACK")
        thread.join(10)
        assert settled == [True]
    finally:
        other.close()
        connections[sqlite].close()
        del connections[sqlite].settings_dict["OPTIONS"]["timeout"]
    assert archived(sqlite) == [1]


def _send(relay: DjangoRelayOutbox, lease: Lease) -> list[int]:
    rows = relay.fetch(lease, 500)
    relay.settle(lease, [Sent(row) for row in rows], [])
    return [number(row) for row in rows]


def _looked(relay: DjangoRelayOutbox) -> bool:
    """Whether the relay has asked for the running transactions often enough to move its bound."""
    return relay._bound._candidate is not None and relay._bound._candidate.row_id > 0


def _other_connection(alias: str):  # type: ignore[no-untyped-def]
    return connections[alias].copy()


def _insert_like_a_publisher(n: int, key: str) -> str:
    body = publish_body(n, key)
    return (
        f"INSERT INTO {OutboxEvent._meta.db_table} (event_id, bucket, ordering_key, routing_key, body, "
        f"headers, timestamp, attempts, created_at) VALUES ('late-{n}', 5, '{key}', 'test.done', "
        f"'{body}', '', 0, 0, now())"
    )


def publish_body(n: int, key: str) -> str:
    """Return the body of the event with this number."""
    return f'{{"routing_key":"test.done","data":{{"number":{n}}},"uuid_string":"late-{n}"}}'
