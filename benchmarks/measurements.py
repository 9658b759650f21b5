"""What is measured, and how. Every rate is of work that was confirmed, committed or acknowledged."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import Queue

from django.conf import settings as django_settings
from django.db import transaction

from benchmarks.program import PAYLOAD, Figure
from domain_event_broker import DomainEvent, config, publish_domain_event, publish_domain_events
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.models import ArchivedEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.events import Message, encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Stored, Subscription
from domain_event_broker.relay import Relay
from domain_event_broker.subscriber import Consumer
from domain_event_broker.transports import open_transport
from tests.djangoapp.shop.models import Order

#: Events per second at which latency is measured, and for how many seconds a sample.
LATENCY_RATE, LATENCY_SECONDS = 50, 10


def publish(repeat: int, events: int) -> list[Figure]:
    """Cost of an event inside the caller's transaction: one ORM save, with and without it."""
    bare = Figure("business transaction of one ORM save", "us")
    single = Figure("the same with one event", "us")
    bulk = Figure("bulk of 100: cost per event", "us")
    count = max(500, events // 20)
    for _ in range(repeat):
        bare.samples.append(_microseconds(_save, count))
        single.samples.append(_microseconds(_save_and_publish, count))
        bulk.samples.append(_microseconds(_publish_hundred, count // 20) / 100)
        OutboxEvent.objects.all().delete()
    ratio = Figure("event, as a share of the bare transaction", "ratio")
    ratio.samples = [(s - b) / b for s, b in zip(single.samples, bare.samples, strict=True)]
    share = Figure("event in bulk, as a share of a single one", "ratio")
    share.samples = [
        each / (s - b) for each, s, b in zip(bulk.samples, single.samples, bare.samples, strict=True)
    ]
    return [bare, single, bulk, ratio, share]


def relay(repeat: int, events: int) -> list[Figure]:
    """Events per second from a backlog to a bound queue, archive on; and what the broker alone can do."""
    figures = []
    for queue_type in ("quorum", "classic"):
        direct = Figure(f"transport.publish of confirmed batches, {queue_type} queue", "events/s")
        relayed = Figure(f"relay, PostgreSQL to {queue_type} queue", "events/s")
        for number in range(repeat):
            direct.samples.append(_direct_rate(f"bench-direct-{queue_type}-{number}", queue_type, events))
            relayed.samples.append(_relay_rate(f"bench-relay-{queue_type}-{number}", queue_type, events))
        share = Figure(f"relay as a share of publishing, {queue_type}", "ratio")
        share.samples = [r / d for r, d in zip(relayed.samples, direct.samples, strict=True)]
        figures += [direct, relayed, share]
    return figures


def subscribe(repeat: int, events: int) -> list[Figure]:
    """Events per second through a subscriber in one process, handler does nothing."""
    plain = Figure("subscriber, no-op handler, no inbox, quorum queue", "events/s")
    inbox = Figure("subscriber, inbox on, handler saves one row, 8 at once", "events/s")
    for number in range(repeat):
        plain.samples.append(_consume_rate(f"bench-plain-{number}", lambda event: None, events))
        inbox.samples.append(_consume_rate(f"bench-inbox-{number}", _save_handler, events // 10, inbox=True))
    return [plain, inbox]


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


def _publish_hundred() -> None:
    with transaction.atomic():
        publish_domain_events([DomainEvent("bench.saved", PAYLOAD) for _ in range(100)])


def _save_handler(event: DomainEvent) -> None:
    Order(number=uuid.uuid4().hex).save()


def _direct_rate(key: str, queue_type: str, events: int) -> float:
    transport = open_transport(_settings())
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


def _relay_rate(key: str, queue_type: str, events: int) -> float:
    transport = open_transport(_settings())
    transport.declare(Subscription(key, (key,), queue_type=queue_type))
    transport.close()
    _fill(key, events)
    relay = Relay(DjangoRelayOutbox(None, _settings().outbox), _settings())
    started = time.perf_counter()
    report = relay.drain()
    seconds = time.perf_counter() - started
    assert report.sent == events, report
    ArchivedEvent.objects.all().delete()
    return events / seconds


def _consume_rate(
    name: str, call: Callable[[DomainEvent], object], events: int, inbox: bool = False
) -> float:
    handler = Handler(call, name, (name,), concurrency=8 if inbox else 1, prefetch=400)
    transport = open_transport(_settings())
    transport.declare(Subscription(name, (name,)))
    transport.publish(_messages(name, events))
    transport.close()
    consumer, done = _counted(handler, events, inbox)
    thread = threading.Thread(target=consumer.run)
    started = time.perf_counter()
    thread.start()
    done.wait(600)
    seconds = time.perf_counter() - started
    consumer.stop()
    thread.join()
    return events / seconds


def _counted(handler: Handler, events: int, inbox: bool) -> tuple[Consumer, threading.Event]:
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
    return Consumer([counted], _settings(), DjangoInbox() if inbox else DirectInbox()), done


def _latencies(name: str, through_outbox: bool) -> list[float]:
    """Return seconds from the end of the commit (or the start of publishing) to the handler."""
    sent: dict[str, float] = {}
    arrivals: Queue[tuple[str, float]] = Queue()
    handler = Handler(lambda event: arrivals.put((event.uuid_string, time.time())), name, (name,))
    consumer = Consumer([handler], _settings(), DirectInbox())
    thread = threading.Thread(target=consumer.run)
    thread.start()
    relay = _relay_process() if through_outbox else None
    transport = open_transport(_settings())
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


def _settings() -> BrokerSettings:
    settings = config.current()
    assert settings is not None
    return settings


def _microseconds(call: Callable[[], None], count: int) -> float:
    for _ in range(count // 10 + 1):
        call()
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count * 1e6
