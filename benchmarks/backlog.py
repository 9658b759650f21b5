"""Whether a relay keeps its pace: a million rows waiting, after many have passed, beside an old reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
from django.conf import settings as django_settings
from django.db import connection, connections

from benchmarks.program import PAYLOAD, Figure
from domain_event_broker import config, publish_domain_event
from domain_event_broker.django.models import ArchivedEvent, OutboxEvent
from domain_event_broker.django.rows import EVENT_COLUMNS, OUTBOX
from domain_event_broker.ports import Subscription
from domain_event_broker.transports import open_transport

#: A backlog of so many rows is compared with one of so many times as much.
SMALL, TIMES = 50_000, 20
#: Events that pass through the table between two samples of ``churn``, as samples of their own size.
CHURN_ROUNDS = 10
#: Queues that the events of each go to.
QUEUES = ("bench-backlog", "bench-churn")
#: Longest time of one relay, in seconds.
TIMEOUT = 600.0

_ROOT = Path(__file__).resolve().parent.parent

_RELAY = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from benchmarks.program import configure
configure(sys.argv[2], sys.argv[3])
from domain_event_broker import config
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.relay import Relay
settings, most = config.current(), int(sys.argv[4])
relay = Relay(DjangoRelayOutbox(None, settings.outbox), settings,
              on_batch=lambda report: relay.stop() if report.total >= most else None)
started, cpu = time.perf_counter(), time.process_time()
report = relay.drain()
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
# Not ru_maxrss, which begins with what the parent of a process had when that was forked.
[peak] = [int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({"rate": report.sent / seconds, "cpu": cpu / report.sent * 1e6, "peak": peak}))
"""


def backlog(repeat: int, events: int) -> list[Figure]:
    """Events per second of a relay, and its memory, with few and with very many rows waiting."""
    figures = []
    rates: list[Figure] = []
    for rows in (SMALL, SMALL * TIMES):
        rate = Figure(f"relay, {rows:,} rows waiting", "events/s")
        memory = Figure(f"the same: peak memory of its process, {rows:,} rows", "MB")
        with _queue("bench-backlog"):
            for _ in range(repeat):
                _fill("bench-backlog", rows)
                result = _relay(min(events, rows))
                rate.samples.append(result["rate"])
                memory.samples.append(result["peak"])
        rates.append(rate)
        figures += [rate, memory]
    share = Figure(f"{TIMES} times the backlog, as a share of the pace", "ratio")
    share.samples = [many / few for few, many in zip(rates[0].samples, rates[1].samples, strict=True)]
    _empty()
    return [*figures, share]


def churn(repeat: int, events: int) -> list[Figure]:
    """The same after many events have passed through the table, and while a reader holds what was deleted."""
    fresh = Figure("relay, table just vacuumed", "events/s")
    later = Figure(f"relay, after {CHURN_ROUNDS} times as many events", "events/s")
    held = Figure("relay, beside a transaction that is as old as those", "events/s")
    wal = Figure("write-ahead log of the database, per event sent", "bytes")
    dead = Figure("dead rows in the table at the end, beside the old transaction", "rows")
    cpu = Figure("CPU of the relay, per event", "us")
    with _queue("bench-churn"):
        for _ in range(repeat):
            _empty()
            fresh.samples.append(_sample(events, wal, cpu))
            for _ in range(CHURN_ROUNDS - 1):
                _sample(events)
            later.samples.append(_sample(events, wal, cpu))
            with _long_reader():
                for _ in range(CHURN_ROUNDS - 1):
                    _sample(events)
                held.samples.append(_sample(events, wal, cpu))
                dead.samples.append(float(_dead_rows()))
    shares = []
    for name, figure in (("after churn", later), ("beside an old transaction", held)):
        share = Figure(f"pace {name}, as a share of the fresh one", "ratio")
        share.samples = [a / b for a, b in zip(figure.samples, fresh.samples, strict=True)]
        shares.append(share)
    _empty()
    return [fresh, later, held, *shares, cpu, wal, dead]


def _sample(events: int, wal: Figure | None = None, cpu: Figure | None = None) -> float:
    """Return the rate of a relay that sends so many events, and note what it costs."""
    _fill("bench-churn", events)
    before = _wal_bytes()
    result = _relay(events)
    if wal is not None and cpu is not None:
        wal.samples.append((_wal_bytes() - before) / events)
        cpu.samples.append(result["cpu"])
    return result["rate"]


def _relay(events: int) -> dict[str, float]:
    """Run a relay in a process of its own until it has sent so many events; return what it measured."""
    database = django_settings.DATABASES["default"]
    url = f"postgresql://postgres@127.0.0.1:{database['PORT']}/{database['NAME']}"
    command = [sys.executable, "-c", _RELAY, str(_ROOT), url, str(django_settings.DOMAIN_EVENT_BROKER)]
    # What it says when it fails is not caught, so that it is seen.
    done = subprocess.run(
        [*command, str(events)], check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT
    )
    _purge()
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _fill(key: str, rows: int) -> None:
    """Let so many rows wait. They are copies of one that was published: filling is not measured."""
    missing = rows - OutboxEvent.objects.count()
    if missing <= 0:
        return
    publish_domain_event(key, PAYLOAD)
    names = [name for name in EVENT_COLUMNS.split(", ") if name not in ("event_id", "bucket")]
    columns = ", ".join(["event_id", "bucket", "attempts", "created_at", *names])
    values = "'bench-' || clock_timestamp() || '-' || n, n % 64, 0, now()"
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {OUTBOX} ({columns}) SELECT {values}, {', '.join(names)} FROM {OUTBOX}, "
            f"generate_series(2, {missing:d}) n WHERE id = (SELECT max(id) FROM {OUTBOX})"
        )


def _purge() -> None:
    """Empty the queues: the memory of the broker is finite."""
    with pika.BlockingConnection(pika.URLParameters(str(django_settings.DOMAIN_EVENT_BROKER))) as broker:
        for name in QUEUES:
            with broker.channel() as channel, suppress(pika.exceptions.ChannelClosedByBroker):
                channel.queue_purge(name)


@contextmanager
def _queue(name: str) -> Iterator[None]:
    """A queue that is bound to what is published meanwhile."""
    broker = config.current()
    assert broker is not None
    transport = open_transport(broker)
    try:
        transport.declare(Subscription(name, (name,)))
        yield
    finally:
        transport.close()


@contextmanager
def _long_reader() -> Iterator[None]:
    """A transaction that sees the tables as they are now, so that nothing of that may be vacuumed."""
    reader = connections["default"].copy()
    reader.set_autocommit(False)
    try:
        with reader.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT 1")
        yield
    finally:
        reader.close()


def _empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {OUTBOX}, {ArchivedEvent._meta.db_table}")
        cursor.execute(f"VACUUM ANALYZE {OUTBOX}")


def _ask(query: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def _wal_bytes() -> int:
    return int(_ask("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


def _dead_rows() -> int:
    return int(_ask(f"SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = '{OUTBOX}'"))
