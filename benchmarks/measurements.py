"""What is measured, and how. Every rate is of work that was confirmed, committed or acknowledged."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Queue

from django.conf import settings as django_settings
from django.db import connections, transaction

from benchmarks.c_client import CClient, compiled
from benchmarks.program import PAYLOAD, Figure
from domain_event_broker import DomainEvent, config, publish_domain_event, publish_domain_events
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.models import ArchivedEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.events import Message, encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.observer import NOBODY, Observer
from domain_event_broker.ports import Stored, Subscription
from domain_event_broker.relay import Relay
from domain_event_broker.subscriber import Consumer
from domain_event_broker.transports import open_transport
from tests.djangoapp.shop.models import Order

#: Events per second at which latency is measured, and for how many seconds a sample.
LATENCY_RATE, LATENCY_SECONDS = 50, 10


def publish(repeat: int, events: int) -> list[Figure]:
    """Cost of an event inside the caller's transaction: one ORM save, with and without it, in turns."""
    bare = Figure("business transaction of one ORM save", "us")
    single = Figure("the same with one event", "us")
    second = Figure("the same with a second ORM save instead", "us")
    bulk = Figure("bulk of 100: cost per event", "us")
    count = max(500, events // 20)
    for _ in range(repeat):
        for figure, cost in zip(
            (bare, single, second), _in_turns((_save, _save_and_publish, _save_twice), count), strict=True
        ):
            figure.samples.append(cost)
        bulk.samples.append(_in_turns((_publish_hundred,), count // 20)[0] / 100)
        OutboxEvent.objects.all().delete()
    shares = [
        _share("event, as a share of the bare transaction", _less(single, bare), bare),
        _share("second ORM save, as a share of the bare transaction", _less(second, bare), bare),
        _share("event in bulk, as a share of a single one", bulk.samples, _less(single, bare)),
    ]
    return [bare, single, second, bulk, *shares]


def relay(repeat: int, events: int) -> list[Figure]:
    """Events per second from a backlog to a bound queue, archive on; and what the broker alone can do."""
    figures = []
    client = compiled(current_settings().url[0])
    for queue_type in ("quorum", "classic"):
        alone = Figure(f"client in C, confirmed, {queue_type} queue", "events/s")
        direct = Figure(f"transport.publish of confirmed batches, {queue_type} queue", "events/s")
        relayed = Figure(f"relay, PostgreSQL to {queue_type} queue", "events/s")
        for number in range(repeat):
            direct.samples.append(_direct_rate(f"bench-direct-{queue_type}-{number}", queue_type, events))
            relayed.samples.append(relay_rate(f"bench-relay-{queue_type}-{number}", queue_type, events))
            if client is not None:
                alone.samples.append(
                    _client_rate(client, f"bench-c-{queue_type}-{number}", queue_type, events)
                )
        shares = [_share(f"relay as a share of transport.publish, {queue_type}", relayed, direct)]
        if client is not None:
            shares += [
                _share(f"transport.publish as a share of the client in C, {queue_type}", direct, alone),
                _share(f"relay as a share of the client in C, {queue_type}", relayed, alone),
            ]
        figures += [*([alone] if client else []), direct, relayed, *shares]
    return figures


def subscribe(repeat: int, events: int) -> list[Figure]:
    """Events per second through a subscriber in one process."""
    client = compiled(current_settings().url[0])
    alone = Figure("client in C, quorum queue", "events/s")
    plain = Figure("subscriber, no-op handler, no inbox, quorum queue", "events/s")
    bare = Figure("transactions of one ORM save in a loop, 8 threads", "1/s")
    inbox = Figure("subscriber, inbox on, handler saves one row, 8 at once", "events/s")
    for number in range(repeat):
        plain.samples.append(consume_rate(f"bench-plain-{number}", lambda event: None, events))
        bare.samples.append(_bare_rate(events // 10))
        inbox.samples.append(consume_rate(f"bench-inbox-{number}", save_handler, events // 10, inbox=True))
        if client is not None:
            alone.samples.append(_client_consumes(client, f"bench-c-consume-{number}", events))
    shares = [_share("inbox and row as a share of the bare loop", inbox, bare)]
    if client is not None:
        shares.append(_share("subscriber as a share of the client in C", plain, alone))
    return [*([alone] if client else []), plain, bare, inbox, *shares]


def latency(repeat: int, events: int) -> list[Figure]:
    """Milliseconds from commit to handler at 50 events/s, relay in a process of its own."""
    middle, tail = Figure("commit to handler, p50", "ms"), Figure("commit to handler, p99", "ms")
    direct_middle, direct_tail = (
        Figure("published directly, p50", "ms"),
        Figure("published directly, p99", "ms"),
    )
    for number in range(repeat):
        for through_outbox, (p50, p99) in ((True, (middle, tail)), (False, (direct_middle, direct_tail))):
            delays = sorted(_latencies(f"bench-latency-{number}-{through_outbox}", through_outbox))
            p50.samples.append(statistics.median(delays) * 1000)
            p99.samples.append(delays[int(len(delays) * 0.99)] * 1000)
    return [middle, tail, direct_middle, direct_tail]


# --- the work ---------------------------------------------------------------------------


def _save() -> None:
    with transaction.atomic():
        Order(number=uuid.uuid4().hex).save()


def _save_and_publish() -> None:
    with transaction.atomic():
        Order(number=uuid.uuid4().hex).save()
        publish_domain_event("bench.saved", PAYLOAD)


def _save_twice() -> None:
    with transaction.atomic():
        Order(number=uuid.uuid4().hex).save()
        Order(number=uuid.uuid4().hex).save()


def _publish_hundred() -> None:
    with transaction.atomic():
        publish_domain_events([DomainEvent("bench.saved", PAYLOAD) for _ in range(100)])


def save_handler(event: DomainEvent) -> None:
    """Save one row."""
    Order(number=uuid.uuid4().hex).save()


def _direct_rate(key: str, queue_type: str, events: int) -> float:
    transport = open_transport(current_settings())
    try:
        transport.declare(Subscription(key, (key,), queue_type=queue_type))
        messages = _messages(key, events)
        started = time.perf_counter()
        for first in range(0, events, 1000):
            outcomes = transport.publish(messages[first : first + 1000])
            assert all(outcome.stored is Stored.STORED for outcome in outcomes)
        return events / (time.perf_counter() - started)
    finally:
        transport.close()


def _client_rate(client: CClient, key: str, queue_type: str, events: int) -> float:
    _declare(Subscription(key, (key,), queue_type=queue_type))
    return client.publish(current_settings().exchange, key, events, len(_messages(key, 1)[0].body))


def _client_consumes(client: CClient, name: str, events: int) -> float:
    _declare(Subscription(name, (name,)))
    client.publish(current_settings().exchange, name, events, len(_messages(name, 1)[0].body))
    return client.consume(name, events)


def _bare_rate(count: int, threads: int = 8) -> float:
    """Transactions per second of the handler alone, in as many threads as the subscriber has."""

    def work() -> None:
        for _ in range(count // threads):
            with transaction.atomic():
                Order(number=uuid.uuid4().hex).save()
        connections.close_all()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return count // threads * threads / (time.perf_counter() - started)


def _declare(subscription: Subscription) -> None:
    transport = open_transport(current_settings())
    transport.declare(subscription)
    transport.close()


def relay_rate(key: str, queue_type: str, events: int, observer: Observer = NOBODY) -> float:
    """Return events per second from a backlog of so many to a queue of this type."""
    _declare(Subscription(key, (key,), queue_type=queue_type))
    _fill(key, events)
    relay = Relay(DjangoRelayOutbox(None, current_settings().outbox), current_settings(), observer=observer)
    started = time.perf_counter()
    report = relay.drain()
    seconds = time.perf_counter() - started
    assert report.sent == events, report
    ArchivedEvent.objects.all().delete()
    return events / seconds


def consume_rate(
    name: str,
    call: Callable[[DomainEvent], object],
    events: int,
    inbox: bool = False,
    observer: Observer = NOBODY,
) -> float:
    """Return events per second through a subscriber whose handler is ``call``."""
    handler = Handler(call, name, (name,), concurrency=8 if inbox else 1, prefetch=400)
    transport = open_transport(current_settings())
    transport.declare(Subscription(name, (name,)))
    transport.publish(_messages(name, events))
    transport.close()
    consumer, done = _counted(handler, events, inbox, observer)
    thread = threading.Thread(target=consumer.run)
    started = time.perf_counter()
    thread.start()
    done.wait(600)
    seconds = time.perf_counter() - started
    consumer.stop()
    thread.join()
    return events / seconds


def _counted(
    handler: Handler, events: int, inbox: bool, observer: Observer
) -> tuple[Consumer, threading.Event]:
    """Return a consumer of ``handler``, and what is set when the last of ``events`` was handled."""
    from domain_event_broker.django.inbox import DjangoInbox

    done, lock, left = threading.Event(), threading.Lock(), events

    def call(event: DomainEvent) -> None:
        nonlocal left
        handler.call(event)
        with lock:
            left -= 1
            if not left:
                done.set()

    counted = replace(handler, call=call)
    calls = DjangoInbox() if inbox else DirectInbox()
    return Consumer([counted], current_settings(), calls, observer=observer), done


def _latencies(name: str, through_outbox: bool) -> list[float]:
    """Return seconds from the end of the commit (or the start of publishing) to the handler."""
    sent: dict[str, float] = {}
    arrivals: Queue[tuple[str, float]] = Queue()
    handler = Handler(lambda event: arrivals.put((event.uuid_string, time.time())), name, (name,))
    consumer = Consumer([handler], current_settings(), DirectInbox())
    thread = threading.Thread(target=consumer.run)
    thread.start()
    relay = _relay_process() if through_outbox else None
    transport = open_transport(current_settings())
    try:
        transport.declare(Subscription(name, (name,)))
        for _ in range(LATENCY_RATE * LATENCY_SECONDS):
            event = DomainEvent(name, PAYLOAD)
            if through_outbox:
                _commit(event)
                sent[event.uuid_string] = time.time()
            else:
                sent[event.uuid_string] = time.time()
                transport.publish([encode(event)])
            time.sleep(1 / LATENCY_RATE)
        arrived = dict(arrivals.get(timeout=30) for _ in sent)
        delays = [arrived[event_id] - at for event_id, at in sent.items()]
        return delays[2 * LATENCY_RATE :]  # the first two seconds are of starting up
    finally:
        transport.close()
        consumer.stop()
        thread.join()
        if relay is not None:
            relay.terminate()
            relay.wait(30)


def _commit(event: DomainEvent) -> None:
    with transaction.atomic():
        Order(number=uuid.uuid4().hex).save()
        publish_domain_events([event])


def _relay_process() -> subprocess.Popen[bytes]:
    database = django_settings.DATABASES["default"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from benchmarks.program import configure\n"
        "configure(sys.argv[2], sys.argv[3])\n"
        "from django.core.management import call_command\n"
        "call_command('run_relay')\n"
    )
    url = f"postgresql://postgres@127.0.0.1:{database['PORT']}/{database['NAME']}"
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, root, url, str(django_settings.DOMAIN_EVENT_BROKER)],
        stdout=subprocess.DEVNULL,
    )


def _fill(key: str, events: int) -> None:
    for first in range(0, events, 5000):
        publish_domain_events([DomainEvent(key, PAYLOAD) for _ in range(min(5000, events - first))])


def _messages(key: str, events: int) -> list[Message]:
    return [encode(DomainEvent(key, PAYLOAD)) for _ in range(events)]


def current_settings() -> BrokerSettings:
    """Return the settings of the benchmark."""
    settings = config.current()
    assert settings is not None
    return settings


def _in_turns(calls: Sequence[Callable[[], None]], count: int) -> list[float]:
    """Return the median of microseconds that each call takes, by turns: so all have the same noise."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(count + count // 10):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if number >= count // 10:  # the first ones warm up
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) * 1e6 for taken in times]


def _less(figure: Figure, other: Figure) -> list[float]:
    return [a - b for a, b in zip(figure.samples, other.samples, strict=True)]


def _share(name: str, part: Figure | list[float], whole: Figure | list[float]) -> Figure:
    parts, wholes = (each.samples if isinstance(each, Figure) else each for each in (part, whole))
    return Figure(name, "ratio", [a / b for a, b in zip(parts, wholes, strict=True)])
