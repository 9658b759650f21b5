"""The contract over ``database:`` on SQLite, PostgreSQL and MariaDB, and what only it has."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import connections, transaction
from django.db.models import F

from domain_event_broker.config import parse
from domain_event_broker.django import transport as transport_module
from domain_event_broker.django.transport import SUSPECT_CRASHES, DatabaseTransport
from domain_event_broker.django.transport_models import DeadDelivery, QueuedDelivery, TransportQueue
from domain_event_broker.errors import BrokerUnavailable, ConfigurationError, UnsupportedOption
from domain_event_broker.events import Message
from domain_event_broker.failures import MAX_TRACEBACK, Failure
from domain_event_broker.ports import Action, Decision, Settlement, SiftReport, Stored, Subscription
from domain_event_broker.testing import TransportContract
from domain_event_broker.transports import open_transport
from tests.djangoapp.databases import database, sqlite_file
from tests.harness.waiting import wait_until

RECEIVER = Path(__file__).with_name("receiver.py")


@pytest.fixture(scope="module", autouse=True)
def _database_access(django_db_blocker):
    """These tests use databases of their own, without the transaction that pytest-django wraps."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    with database("contract-sqlite", sqlite_file(tmp_path_factory.mktemp("sqlite"), "broker")) as alias:
        yield alias


@pytest.fixture(scope="module")
def postgres(postgres_server):
    with database("contract-postgres", postgres_server.create_database("contract")) as alias:
        yield alias
    postgres_server.drop_database("contract")


@pytest.fixture(scope="module")
def mariadb(mariadb_server):
    with database("contract-mariadb", mariadb_server.create_database("contract")) as alias:
        yield alias
    mariadb_server.drop_database("contract")


def connect(alias: str) -> DatabaseTransport:
    """Open the transport to a database."""
    settings = parse(f"database:{alias}")
    assert settings is not None
    transport = open_transport(settings)
    assert isinstance(transport, DatabaseTransport)
    return transport


class DatabaseContract(TransportContract):
    """The contract, and the promises that come with a database."""

    alias: str
    counts_crashes = True

    def open(self) -> DatabaseTransport:
        return connect(self.alias)

    def crash(self, transport) -> None:
        """Nobody is told; then the lock has ended."""
        self._opened.remove(transport)
        self.end_locks()

    def end_locks(self) -> None:
        rows = QueuedDelivery.objects.using(self.alias).exclude(holder=None)
        rows.filter(queue__name__in=self._queues).update(due_at=1)

    def clean_up(self, queues) -> None:
        for model in (QueuedDelivery, DeadDelivery):
            model.objects.using(self.alias).filter(queue__name__in=queues).delete()
        TransportQueue.objects.using(self.alias).filter(name__in=queues).delete()

    def test_an_answer_after_the_lock_has_ended_changes_nothing(self) -> None:
        slow, handler = self.start_handler()
        late = self.deliver(slow, handler, b"ack", b"retry", b"dead", b"back")
        self.end_locks()
        other = self.connect()
        other.subscribe(handler)
        self.collect(other, 4)
        actions = (Action.ACK, Action.RETRY, Action.DEAD, Action.REQUEUE)
        slow.settle([Settlement(each, action) for each, action in zip(late, actions, strict=True)])
        stats = other.stats([handler.name])[handler.name]
        assert (stats.in_flight, stats.ready, stats.delayed, stats.dead) == (4, 0, 0, 0)

    def test_receiving_on_renews_the_locks(self) -> None:
        transport, handler = self.start_handler()
        transport.lock_seconds = 0.6
        self.deliver(transport, handler, b"{}")
        for limit in (10, 0):
            self._receive_until_lock_is_longer(transport, handler, limit)

    def _receive_until_lock_is_longer(self, transport, handler, limit) -> None:
        row = QueuedDelivery.objects.using(self.alias).get(queue__name=handler.name)
        before = row.due_at

        def is_longer() -> bool:
            assert transport.receive(limit, 0.05) == []
            row.refresh_from_db()
            return row.due_at > before + 100

        wait_until(is_longer)
        assert row.crashes == 0

    def test_a_receiver_that_stood_still_for_too_long_forgets_what_it_lost(self, caplog) -> None:
        slow, handler = self.start_handler(prefetch=1)
        slow.lock_seconds = 0.1
        self.deliver(slow, handler, b"{}")
        self.end_locks()
        other = self.connect()
        other.subscribe(handler)
        (taken,) = self.collect(other)
        wait_until(lambda: slow.receive(10, 0.05) == [] and "another receiver" in caplog.text)
        self.answer(other, [taken], Action.ACK)
        (sent,) = self.publish_to(slow, handler, b"next")
        assert self.collect(slow)[0].event_id == sent.event_id

    def test_publishing_inside_a_transaction_is_refused(self) -> None:
        transport = self.connect()
        with transaction.atomic(using=self.alias):
            for call in (
                lambda: transport.publish([self.message("order.placed")]),
                lambda: transport.receive(1, 0),
                lambda: transport.settle([]),
            ):
                with pytest.raises(ConfigurationError, match="inside a transaction"):
                    call()

    def test_a_replay_inside_a_transaction_lives_and_dies_with_it(self) -> None:
        transport, handler = self.start_handler()
        letters = self.dead_letters_with(transport, handler, b"{}")
        with transaction.atomic(using=self.alias):
            assert letters.sift(lambda letter: Decision.RETRY) == SiftReport(replayed=1)
            assert letters.count() == 0
            transaction.set_rollback(True, using=self.alias)
        assert letters.count() == 1
        assert self.collect_until_marker(transport, handler) == []

    def test_an_event_that_the_database_cannot_hold_is_refused_and_the_others_stored(self) -> None:
        transport, handler = self.start_handler()
        key = f"{handler.name}.placed"
        impossible = Message(key, b"{}", "id-\ud800")
        outcomes = transport.publish([self.message(key), impossible, self.message(key)])
        assert [each.stored for each in outcomes] == [Stored.STORED, Stored.REFUSED, Stored.STORED]
        assert outcomes[1].reason
        assert len(self.collect_until_marker(transport, handler)) == 2

    def test_large_batches_are_stored_in_order(self) -> None:
        transport, handler = self.start_handler(prefetch=2000)
        bodies = [b"%d" % number for number in range(1201)]
        self.publish_to(transport, handler, *bodies)
        assert [each.body for each in self.collect(transport, len(bodies))] == bodies

    def test_names_are_told_apart_by_case_and_by_spaces(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        for name in (f"{word}a", f"{word}A", f"{word}a ", f"{word}ä"):
            transport.subscribe(self.subscription(name=name, binding_keys=(f"{word}.placed",)))
        self.publish(transport, self.message(f"{word}.placed"))
        assert len({delivery.queue for delivery in self.collect(transport, 4)}) == 4

    def test_a_handler_that_subscribes_while_another_connection_publishes_misses_nothing(self) -> None:
        publisher, word = self.connect(), self.fresh_name()
        assert publisher.publish([self.message(f"{word}.placed")])[0].stored is Stored.UNROUTABLE
        for keys in ((f"{word}.placed",), (f"{word}.paid",)):
            self.connect().declare(self.subscription(name=word, binding_keys=keys))
            assert publisher.publish([self.message(keys[0])])[0].stored is Stored.STORED

    def test_exchanges_are_told_apart(self) -> None:
        transport, handler = self.start_handler()
        settings = parse({"URL": f"database:{self.alias}", "EXCHANGE": "another"})
        assert settings is not None
        other = DatabaseTransport(settings)
        message = self.message(f"{handler.name}.placed")
        assert other.publish([message])[0].stored is Stored.UNROUTABLE
        other.declare(handler)
        assert other.publish([message])[0].stored is Stored.STORED
        assert transport.publish([message])[0].stored is Stored.STORED

    def test_a_busy_queue_leaves_room_for_others(self) -> None:
        transport, (one, other) = self.start_two_handlers()
        self.publish(transport, *(self.message(one.binding_keys[0]) for _ in range(5)))
        queues = []
        for _ in range(4):
            (delivery,) = transport.receive(1, self.patience)
            self.answer(transport, [delivery], Action.ACK)
            queues.append(delivery.queue)
        assert queues == [one.name, other.name, one.name, other.name]

    def test_a_process_killed_with_deliveries_gives_them_back(self) -> None:
        transport, handler = self.start_handler()
        sent = self.publish_to(transport, handler, b"1", b"2")
        with Receiver(self.alias, handler.name, lock_seconds=3.0, count=2) as receiver:
            wait_until(lambda: len(receiver.ids()) == 2, 20, receiver.errors)
            assert transport.receive(10, 0.2) == []
            receiver.kill()
        again = self.collect(transport, 2)
        assert [each.event_id for each in again] == [message.event_id for message in sent]
        assert [(each.crashes, each.retries) for each in again] == [(1, 0), (1, 0)]

    def test_an_event_that_kills_processes_takes_no_other_with_it(self) -> None:
        handler, handled, deaths = self.subscription(), [], 0
        self.connect().declare(handler)
        self.publish_to(self.connect(), handler, b"1", b"kill", *(b"%d" % n for n in range(2, 60)))
        most = {}
        while len(handled) < 60:
            transport = self.connect()
            transport.subscribe(handler)
            dead = False
            while not dead and len(handled) < 60:
                for delivery in self._receive_some(transport):
                    most[delivery.body] = max(most.get(delivery.body, 0), delivery.crashes)
                    if delivery.body == b"kill" and delivery.crashes < 20:
                        deaths, dead = deaths + 1, True
                        self.crash(transport)
                        break
                    self.answer(transport, [delivery], Action.ACK)
                    handled.append(delivery.body)
        assert sorted(handled) == sorted(most)
        assert deaths == most.pop(b"kill") == 20
        assert max(most.values()) <= SUSPECT_CRASHES

    def _receive_some(self, transport):
        found = []
        wait_until(lambda: found.extend(transport.receive(100, 0.1)) or found)
        return found

    def test_a_suspect_waits_until_what_is_under_way_is_answered_for(self) -> None:
        transport, handler = self.start_handler()
        (under_way,) = self.deliver(transport, handler, b"under way")
        self.publish_to(transport, handler, b"suspect", b"next")
        rows = QueuedDelivery.objects.using(self.alias).filter(queue__name=handler.name)
        rows.filter(body=b"suspect").update(crashes=SUSPECT_CRASHES)
        (following,) = transport.receive(10, self.patience)
        assert following.body == b"next"
        self.answer(transport, [under_way], Action.ACK)
        assert transport.receive(10, 0.1) == []
        self.answer(transport, [following], Action.ACK)
        self.publish_to(transport, handler, b"later")
        (suspect,) = self.collect(transport)
        assert (suspect.body, suspect.crashes) == (b"suspect", SUSPECT_CRASHES)
        assert transport.receive(10, 0.1) == []
        self.answer(transport, [suspect], Action.ACK)
        assert self.collect(transport)[0].body == b"later"
        self.publish_to(transport, handler, b"4", b"5")
        assert len(self.collect(transport, 2)) == 2, "several at once again"

    def test_locks_from_before_a_clock_was_set_back_end(self, monkeypatch) -> None:
        monkeypatch.setattr(transport_module, "STUCK_SECONDS", 0.05)
        dead, handler = self.start_handler()
        (lost,) = self.deliver(dead, handler, b"{}")
        alive, lively = self.start_handler()
        self.deliver(alive, lively, b"{}")
        other = self.connect()
        other.lock_seconds = alive.lock_seconds = 0.15
        other.subscribe(handler)
        other.subscribe(lively)
        held = QueuedDelivery.objects.using(self.alias).filter(queue__name__in=(handler.name, lively.name))
        held.update(due_at=F("due_at") + 3_600_000)
        got = []

        def look() -> bool:
            assert alive.receive(0, 0.01) == []
            got.extend(other.receive(10, 0.01))
            return bool(got)

        wait_until(look)
        assert [(each.event_id, each.crashes) for each in got] == [(lost.event_id, 1)]

    def test_processes_that_share_a_queue_get_each_event_once(self) -> None:
        transport, handler = self.connect(), self.subscription()
        transport.declare(handler)
        count = 2000
        with (
            Receiver(self.alias, handler.name, acknowledge=True) as one,
            Receiver(self.alias, handler.name, acknowledge=True) as other,
        ):
            wait_until(lambda: one.is_ready() and other.is_ready(), 30, one.errors)
            for _ in range(20):
                self.publish_to(transport, handler, *([b"{}"] * (count // 20)))
            wait_until(lambda: len(one.ids()) + len(other.ids()) >= count, 60, one.errors)
            stats = self.connect().stats([handler.name])[handler.name]
            self.eventually(lambda: transport.stats([handler.name])[handler.name].in_flight, 0)
        got = one.ids() + other.ids()
        assert len(got) == len(set(got)) == count
        assert stats.ready == 0
        assert min(len(one.ids()), len(other.ids())) > 0


class Receiver:
    """A process that receives from a queue, and writes down what it gets."""

    def __init__(self, alias: str, queue: str, **options: object) -> None:
        task = {"alias": alias, "database": connections.databases[alias], "queue": queue, **options}
        command = [sys.executable, str(RECEIVER), json.dumps(task, default=str)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(command, cwd=RECEIVER.parents[2], **pipes)  # type: ignore[call-overload]
        self._lines: list[bytes] = []
        self._rest = b""
        os.set_blocking(self._process.stdout.fileno(), False)

    def ids(self) -> list[str]:
        """Return the identities of what it has received so far."""
        return [line[4:].decode() for line in self._read() if line.startswith(b"got ")]

    def is_ready(self) -> bool:
        """Tell whether it has subscribed."""
        return b"ready" in self._read()

    def errors(self) -> str:
        """Return what it wrote besides."""
        return b"\n".join(line for line in self._read() if not line.startswith(b"got ")).decode()

    def _read(self) -> list[bytes]:
        """Return the lines that it has written so far."""
        if not self._process.stdout.closed:
            *lines, self._rest = (self._rest + (self._process.stdout.read() or b"")).split(b"\n")
            self._lines += lines
        return self._lines

    def kill(self) -> None:
        """End it without a chance to do anything more."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._read()
        self._process.stdout.close()


class TestSQLite(DatabaseContract):
    title = "database, SQLite"

    @pytest.fixture(autouse=True)
    def _database(self, sqlite):
        self.alias = sqlite


class TestPostgreSQL(DatabaseContract):
    title = "database, PostgreSQL"

    @pytest.fixture(autouse=True)
    def _database(self, postgres):
        self.alias = postgres


class TestMariaDB(DatabaseContract):
    title = "database, MariaDB"

    @pytest.fixture(autouse=True)
    def _database(self, mariadb):
        self.alias = mariadb


def test_an_unknown_database_is_named_with_those_that_exist() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'database:nowhere' names no database; DATABASES has .*default"
    ):
        connect("nowhere")


def test_missing_tables_are_told_with_the_command_that_makes_them(tmp_path) -> None:
    with (
        database("contract-bare", sqlite_file(tmp_path, "bare"), migrate=False) as alias,
        pytest.raises(ConfigurationError, match=f"manage.py migrate --database {alias}"),
    ):
        connect(alias)


def test_a_database_that_does_not_answer_is_an_unavailable_broker() -> None:
    with (
        database("contract-away", "postgresql://nobody@127.0.0.1:1/nothing", migrate=False) as alias,
        pytest.raises(BrokerUnavailable, match="'contract-away' cannot be used now"),
    ):
        connect(alias)


@pytest.mark.parametrize(
    ("vendor", "who", "kill"),
    [
        ("postgres", "SELECT pg_backend_pid()", "SELECT pg_terminate_backend(%s)"),
        ("mariadb", "SELECT connection_id()", "KILL %s"),
    ],
)
def test_a_lost_connection_is_told_and_a_new_one_goes_on(request, fresh_name, vendor, who, kill) -> None:
    alias = request.getfixturevalue(vendor)
    handler = Subscription(fresh_name("queue"), (fresh_name("word"),))
    transport = connect(alias)
    transport.subscribe(handler)
    transport.publish([Message(handler.binding_keys[0], b"{}", "id-1")])
    (held,) = transport.receive(1, 5)
    with connections[alias].cursor() as cursor:
        cursor.execute(who)
        (number,) = cursor.fetchone()
    killer = connections[alias].copy()
    with killer.cursor() as cursor:
        cursor.execute(kill, [number])
    killer.close()
    with pytest.raises(BrokerUnavailable, match="cannot be used now"):
        transport.settle([Settlement(held, Action.ACK)])
    transport.close()
    again = connect(alias)
    again.subscribe(handler)
    assert [each.event_id for each in again.receive(1, 5)] == ["id-1"]
    again.close()
    QueuedDelivery.objects.using(alias).filter(queue__name=handler.name).delete()


def test_an_event_larger_than_the_packets_of_the_server_is_refused(mariadb, fresh_name) -> None:
    transport = connect(mariadb)
    handler = Subscription(fresh_name("queue"), ("order.*",))
    transport.subscribe(handler)
    with connections[mariadb].cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (packet,) = cursor.fetchone()
    sizes = (packet // 2 - 600_000, packet // 2, packet + 1)
    outcomes = transport.publish([Message("order.placed", b"\x00" * size, "id") for size in sizes])
    assert [each.stored for each in outcomes] == [Stored.STORED, Stored.REFUSED, Stored.REFUSED]
    assert "max_allowed_packet" in outcomes[1].reason
    (delivery,) = transport.receive(1, 10)
    assert len(delivery.body) == sizes[0]
    failure = Failure("error", traceback="注" * MAX_TRACEBACK)
    transport.settle([Settlement(delivery, Action.DEAD, failure=failure)])
    letters = transport.dead_letters(handler.name)
    assert letters.sift(lambda letter: Decision.DISCARD).discarded == 1
    transport.close()
    TransportQueue.objects.using(mariadb).filter(name=handler.name).delete()


def test_a_sqlite_database_locked_by_another_program_is_waited_for(tmp_path, fresh_name) -> None:
    path = sqlite_file(tmp_path, "locked")
    with database("contract-locked", path) as alias:
        # SQLite itself gives up at once: what waits is the transport.
        connections.settings[alias]["OPTIONS"] = {"timeout": 0}
        connections[alias].close()
        transport = connect(alias)
        handler = Subscription(fresh_name("queue"), ("order.*",))
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.3, other.execute, ["COMMIT"])
        release.start()
        began = time.monotonic()
        transport.subscribe(handler)
        assert time.monotonic() - began > 0.2
        release.join()
        other.close()
        assert transport.publish([Message("order.placed", b"{}", "id-1")])[0].stored is Stored.STORED
        transport.close()


def test_only_topic_exchanges_and_one_url_are_served() -> None:
    with pytest.raises(UnsupportedOption, match="fanout"):
        DatabaseTransport(parse({"URL": "database:", "EXCHANGE_TYPE": "fanout"}))
    with pytest.raises(ConfigurationError, match="one database"):
        DatabaseTransport(parse(["database:", "database:other"]))
