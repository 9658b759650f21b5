"""What others send: it ends handled or in the dead letters, where it can be looked at; never nowhere.

The subscriber is the real one, on a real broker; that it survives is shown by the event after the worst.
"""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import celery
import kombu
import pika
import pika.data
import pytest
from django.core.management import call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain_event_broker import DomainEvent, Retry, publish_domain_event
from domain_event_broker.config import BrokerSettings, parse
from domain_event_broker.django.admin.dead_letters import LetterView
from domain_event_broker.errors import InvalidEvent
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import DeadLetter, Decision
from domain_event_broker.replay import LetterFilter, browse
from domain_event_broker.subscriber import Consumer
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.rabbitmq import topology
from domain_event_broker.transports.rabbitmq.decoding import tolerate_any_value
from tests.faults.apparatus import Stage
from tests.faults.foreign import FORGED, VALUES, Envelope, Producer, array, nested, producer, table, text
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until

#: Seconds for what takes a moment on a quiet machine.
PATIENCE = 60.0


class Listener:
    """A subscriber in this process with one handler, which fails for events that say so."""

    def __init__(self, settings: BrokerSettings, name: str) -> None:
        self.settings, self.name = settings, name
        self.handled: list[DomainEvent] = []
        handler = Handler(self._handle, name, (f"{name}.#",), max_retries=1)
        self._consumer = Consumer([handler], settings, inbox=DirectInbox())
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="listener")
        self.transport = open_transport(settings)
        self._thread.start()
        wait_until(lambda: (self.transport.stats([name])[name].consumers or 0) > 0, PATIENCE)

    def _run(self) -> None:
        try:
            self._consumer.run()
        except BaseException as error:
            self._errors.append(error)

    def _handle(self, event: DomainEvent) -> None:
        if isinstance(event.data, dict) and event.data.get("fate") == "retry" and not event.retries:
            raise Retry(0.05)
        if isinstance(event.data, dict) and event.data.get("fate") == "fail":
            raise ValueError("as it says")
        self.handled.append(event)

    def letters(self) -> list[DeadLetter]:
        """Return the dead letters, each of which the admin and ``replay_dlq`` can show."""
        found = browse(self.transport.dead_letters(self.name), LetterFilter())
        for letter in found:
            json.dumps([str(LetterView.of(letter))]).encode()
        return found

    def shown(self) -> str:
        """Return what ``replay_dlq --dry-run`` prints of the dead letters."""
        output = io.StringIO()
        call_command("replay_dlq", self.name, "--dry-run", "--force", stdout=output)
        return output.getvalue()

    def account(self) -> tuple[int, int]:
        """Return how many were handled, and how many are dead letters."""
        return len(self.handled), self.transport.dead_letters(self.name).count()

    def wait_for(self, handled: int, dead: int) -> None:
        """Wait until so many events have ended so."""
        wait_until(
            lambda: self.account() == (handled, dead),
            PATIENCE,
            lambda: f"{handled}, {dead}: {self.account()}",
        )

    def wait_for_all(self, sent: int) -> None:
        """Wait until each of the events has ended, in one way or the other."""
        wait_until(lambda: sum(self.account()) == sent, PATIENCE, lambda: f"{sent}: {self.account()}")

    def stop(self) -> None:
        """Stop, and raise what ended it before."""
        self._consumer.stop()
        self._thread.join(PATIENCE)
        self.transport.close()
        if self._errors:
            raise self._errors[0]


@pytest.fixture
def listener(
    rabbitmq_server: PrivateRabbitMQ,
    fresh_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> Iterator[Listener]:
    """A running subscriber with a queue of its own."""
    monkeypatch.setattr(topology, "SETTLE_SECONDS", 0.0)
    settings.DOMAIN_EVENT_BROKER = rabbitmq_server.url()
    configured = parse(rabbitmq_server.url())
    assert configured is not None
    made = Listener(configured, fresh_name("input"))
    yield made
    made.stop()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url())) as connection:
        for spec in topology.layout_of(topology.Subscription(made.name, ())).all():
            connection.channel().queue_delete(spec.name)


@pytest.fixture
def foreign(listener: Listener, rabbitmq_server: PrivateRabbitMQ) -> Iterator[Producer]:
    """A foreign producer."""
    with producer(rabbitmq_server.url()) as connected:
        yield connected


def event(name: str, data: Any = None, **fields: Any) -> bytes:
    """Return a body as the older library writes it."""
    known = {"routing_key": f"{name}.x", "data": {} if data is None else data}
    known |= {"domain_object_id": None, "uuid_string": str(uuid.uuid4()), "timestamp": 1.5}
    return json.dumps(known | fields).encode()


NO_EVENTS = {
    "nothing": b"",
    "NUL": b"\x00" * 10,
    "words": b"hello",
    "an array": b"[1, 2]",
    "a string": b'"text"',
    "null": b"null",
    "an object without fields": b"{}",
    "half an object": b'{"routing_key": "a.b", "data": {',
    "two objects": b"{}{}",
    "UTF-16": '{"routing_key": "a.b"}'.encode("utf-16"),
    "Latin-1": '{"routing_key": "größe"}'.encode("latin-1"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
    "no data": b'{"routing_key": "a.b", "uuid_string": "1"}',
    "a key that is a number": b'{"routing_key": 5, "data": {}, "uuid_string": "1"}',
    "an id that is an object": b'{"routing_key": "a.b", "data": {}, "uuid_string": {}}',
    "a timestamp in words": b'{"routing_key": "a.b", "data": {}, "uuid_string": "1", "timestamp": "now"}',
    "10,000 arrays": b'{"routing_key": "a.b", "data": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"routing_key": "a.b", "data": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    "10,000 brackets without end": b"[" * 10_000,
    "a number of 5,000 digits": b'{"routing_key": "a.b", "uuid_string": "1", "data": ' + b"9" * 5000 + b"}",
}


def test_bodies_that_are_no_events_are_dead_lettered_with_their_reason(
    listener: Listener, foreign: Producer
) -> None:
    for body in NO_EVENTS.values():
        foreign.send(body, f"{listener.name}.x")
    foreign.send(event(listener.name), f"{listener.name}.x")
    listener.wait_for(1, len(NO_EVENTS))
    letters = listener.letters()
    assert {letter.body for letter in letters} == set(NO_EVENTS.values())
    assert {letter.failure.reason for letter in letters if letter.failure} == {"malformed"}
    assert f"would replay {len(NO_EVENTS)} of {len(NO_EVENTS)}" in listener.shown()


ODD_EVENTS = {
    "NUL": {"data": {"a": "\x00"}, "uuid_string": "\x00", "routing_key": "a.\x00"},
    "lone surrogates": {"data": {"\ud800": "\udfff"}, "uuid_string": "\ud800"},
    "not a number": {"data": {"a": float("nan"), "b": float("inf")}, "timestamp": float("nan")},
    "a long id": {"uuid_string": "i" * 300},
    "an id in other letters": {"uuid_string": "注文 🙂 \u202e \x1b[31m"},
    "a long key": {"routing_key": "k" * 300},
    "no object id": {"domain_object_id": 7},
    "data that is no object": {"data": [1, None, "x"]},
    "no data": {"data": None},
    "fields of a newer release": {"self": 1, "extra": 2, "retries": 9, "schema": {"a": []}},
    "a time far away": {"timestamp": 1e300},
}


def test_odd_events_are_handled_and_their_letters_can_be_shown_and_replayed(
    listener: Listener, foreign: Producer
) -> None:
    for fields in ODD_EVENTS.values():
        foreign.send(event(listener.name, **fields), f"{listener.name}.x")
        if isinstance(fields.get("data", {}), dict):
            failing = {**fields, "data": {**fields.get("data", {}), "fate": "fail"}}
            foreign.send(event(listener.name, **failing), f"{listener.name}.x")
    listener.wait_for(len(ODD_EVENTS), foreign.sent - len(ODD_EVENTS))
    letters = listener.letters()
    assert {letter.failure.error_type for letter in letters if letter.failure} == {"ValueError"}
    listener.shown()
    listener.transport.dead_letters(listener.name).sift(lambda letter: Decision.RETRY)
    listener.wait_for(len(ODD_EVENTS), len(letters))
    assert {letter.replays for letter in listener.letters()} == {1}


#: Headers for which RabbitMQ ends the connection of who sends them.
UNREADABLE = {
    b"not a number",
    b"infinity",
    b"double that is no number",
    b"event-error-attempts",
    b"x-death",
}


@pytest.mark.parametrize("fate", ["fine", "retry", "fail"])
def test_headers_of_every_type_reach_the_handler_are_retried_and_dead_lettered(
    listener: Listener, foreign: Producer, fate: str
) -> None:
    headers = {name.encode(): value for name, value in VALUES.items()}
    headers |= {name: value.replace(b"HANDLER", listener.name.encode()) for name, value in FORGED.items()}

    def send(entries: dict[bytes, bytes]) -> bool:
        properties = Envelope(table(entries))
        return foreign.send(event(listener.name, {"fate": fate}), f"{listener.name}.x", properties=properties)

    readable = {name: value for name, value in headers.items() if send({name: value})}
    assert set(headers) - set(readable) <= UNREADABLE
    assert send({name: value for name, value in readable.items() if len(value) < 1000})
    listener.wait_for(*((0, foreign.sent) if fate == "fail" else (foreign.sent, 0)))
    if fate == "fail":
        assert f"{listener.name}.x" in {letter.routing_key for letter in listener.letters()}
        listener.shown()
        report = listener.transport.dead_letters(listener.name).sift(lambda letter: Decision.RETRY)
        assert report.replayed == foreign.sent
        listener.wait_for(0, foreign.sent)


def test_values_that_rabbitmq_itself_cannot_read_are_read_all_the_same() -> None:
    tolerate_any_value()
    found, end = pika.data.decode_table(table({name.encode(): value for name, value in VALUES.items()}), 0)
    assert end == len(table({name.encode(): value for name, value in VALUES.items()}))
    assert (found["not a number"], found["infinity"], found["milliseconds"]) == (
        "nan",
        "-inf",
        1_800_000_000_000,
    )
    assert found["the last time there is"] == -1


def test_headers_are_read_however_deep_they_are_nested(listener: Listener, foreign: Producer) -> None:
    for kind in (b"F", b"A"):
        for levels in (31, 32, 33, 500, 15_000):
            headers = table({b"deep": nested(levels, kind), b"after": text(b"it")})
            foreign.send(event(listener.name), f"{listener.name}.x", properties=Envelope(headers))
    listener.wait_for(foreign.sent, 0)


def test_identities_on_the_envelope_may_be_any_bytes(listener: Listener, foreign: Producer) -> None:
    for message_id in (b"", b"\xff\xfe", b"\x00", b"\xe9" * 255, b"x" * 255, "größe".encode()):
        for fate in ("fine", "fail"):
            body = event(listener.name, {"fate": fate}, uuid_string=None)
            properties = Envelope(table({}), message_id)
            foreign.send(body, f"{listener.name}.x", properties=properties)
    # Without any identity it is no event.
    listener.wait_for(5, 7)
    assert len(listener.letters()) == 7
    listener.shown()
    listener.transport.dead_letters(listener.name).sift(lambda letter: Decision.RETRY)
    listener.wait_for(5, 7)


def test_routing_keys_may_be_any_bytes_up_to_255(listener: Listener, foreign: Producer) -> None:
    longest = f"{listener.name}.".encode().ljust(255, b"k")
    for key in (longest, f"{listener.name}.".encode() + b"\xff\xfe", f"{listener.name}.größe".encode()):
        for fate in ("retry", "fail"):
            foreign.send(event(listener.name, {"fate": fate}), key)
    listener.wait_for(3, 3)
    assert longest.decode() in {letter.routing_key for letter in listener.letters()}
    listener.shown()


def test_a_key_of_300_bytes_is_refused_where_it_is_published(listener: Listener) -> None:
    with pytest.raises(InvalidEvent, match="255"):
        publish_domain_event("k" * 300, {}, connection_settings=listener.settings.url[0])


def test_a_payload_of_100_mb_is_refused_where_it_is_published_and_the_setting_named(
    listener: Listener,
) -> None:
    blob = {"blob": "x" * 100_000_000}
    with pytest.raises(InvalidEvent, match="MAX_PAYLOAD_BYTES") as caught:
        publish_domain_event(f"{listener.name}.x", blob, connection_settings=listener.settings.url[0])
    assert len(str(caught.value)) < 1000


def test_what_tools_of_the_broker_put_into_the_queue_is_handled_or_dead_lettered(
    listener: Listener, foreign: Producer
) -> None:
    for fate in ("fine", "retry", "fail"):
        foreign.send(event(listener.name, {"fate": fate}), listener.name, exchange="")
    foreign.send(
        b"test message", listener.name, exchange="", properties=pika.BasicProperties(user_id="guest")
    )
    listener.wait_for(2, 2)
    assert {letter.routing_key for letter in listener.letters()} == {listener.name}
    assert listener.transport.dead_letters(listener.name).sift(lambda letter: Decision.RETRY).replayed == 2
    listener.wait_for(2, 2)


def test_tasks_of_celery_are_dead_lettered_whatever_they_are_written_in(
    listener: Listener, foreign: Producer, rabbitmq_server: PrivateRabbitMQ
) -> None:
    queue = kombu.Queue(
        listener.name, exchange=kombu.Exchange(""), routing_key=listener.name, no_declare=True
    )
    app = celery.Celery(broker=rabbitmq_server.url(), set_as_current=False)
    with app.connection_for_write() as connection:
        for how in ("json", "pickle"):
            app.send_task("billing.charge", [1], {"a": 2}, queue=queue, serializer=how, connection=connection)
    foreign.send(event(listener.name), f"{listener.name}.x")
    listener.wait_for(1, 2)
    assert {letter.failure.reason for letter in listener.letters() if letter.failure} == {"malformed"}
    listener.shown()


def test_what_expires_in_the_queue_is_in_the_dead_letters(listener: Listener, foreign: Producer) -> None:
    properties = pika.BasicProperties(expiration="0", delivery_mode=2)
    foreign.send(event(listener.name), f"{listener.name}.x", properties=properties)
    foreign.send(event(listener.name), f"{listener.name}.x")
    listener.wait_for_all(2)


# --- what nobody thought of

PRINTABLE = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | PRINTABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4),
    max_leaves=8,
)
NAMED = ("routing_key", "data", "domain_object_id", "uuid_string", "timestamp", "retries", "x")
FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMED, JSON | PRINTABLE))
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | FIELDS.map(lambda fields: json.dumps({"routing_key": "a", "data": {"fate": "fail"}, **fields}).encode())
)
NAMES = st.binary(max_size=40) | st.sampled_from(sorted(FORGED))
HEADERS = st.dictionaries(
    NAMES,
    st.sampled_from(sorted(VALUES.values(), key=len)[:-3])
    | st.binary(max_size=100).map(text)
    | st.lists(st.sampled_from([b"V", b"t\x01", text(b"\xff")]), max_size=3).map(lambda each: array(*each)),
    max_size=6,
)
MESSAGES = st.tuples(BODIES, HEADERS, st.none() | st.binary(max_size=255), st.binary(max_size=60))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(MESSAGES, min_size=5, max_size=20))
def _send_all(listener: Listener, foreign: Producer, messages: list[Any]) -> None:
    for body, headers, message_id, key in messages:
        foreign.send(
            body, listener.name.encode() + b"." + key, properties=Envelope(table(headers), message_id)
        )


def test_no_message_whatever_is_in_it_ends_the_subscriber_or_vanishes(
    listener: Listener, foreign: Producer
) -> None:
    _send_all(listener, foreign)
    assert foreign.sent > 100
    listener.wait_for_all(foreign.sent)
    dead = listener.account()[1]
    assert len(listener.letters()) == dead
    listener.shown()
    report = listener.transport.dead_letters(listener.name).sift(lambda letter: Decision.RETRY)
    assert report.replayed == dead
    listener.wait_for_all(foreign.sent)
    foreign.send(event(listener.name), f"{listener.name}.x")
    listener.wait_for_all(foreign.sent)


# --- in processes


def test_an_identity_that_no_column_holds_takes_effect_once(stage: Stage) -> None:
    assert stage.rabbitmq is not None
    odd = ["i" * 300, "\x00", "\ud800", "注文" * 100, " "]
    with producer(stage.rabbitmq.url()) as foreign:
        for event_id in odd * 3:
            foreign.send(event("odd", routing_key="odd.x", uuid_string=event_id), "odd.x")
    stage.subscriber("odd")
    stage.wait_until_quiet(["odd"])
    assert stage.broker.letters("odd") == []
    assert stage.effects("odd") == len(odd)


#: Megabytes that a subscriber may take while bodies of 100 MB come: itself, one body as it comes, and it
#: whole. Four of them in its hands would be more.
ROOM_MB = 450


def test_bodies_of_100_mb_end_in_the_dead_letters_one_at_a_time_and_others_go_on(stage: Stage) -> None:
    assert stage.rabbitmq is not None
    blob = b"x" * 100_000_000
    with producer(stage.rabbitmq.url()) as foreign:
        for _ in range(4):
            foreign.send(blob, "steady", exchange="")
    stage.publish(5)
    stage.relay()
    subscriber = stage.subscriber("steady")
    wait_until(lambda: stage.effects("steady") == 5, PATIENCE)
    with closing(open_transport(parse(stage.rabbitmq.url()))) as transport:  # type: ignore[arg-type]
        letters = transport.dead_letters("steady")
        wait_until(lambda: letters.count() == 4, PATIENCE)
        reasons: list[str] = []

        def look(letter: DeadLetter) -> Decision:
            assert letter.failure is not None
            reasons.append(f"{letter.failure.reason} {letter.failure.message} {len(letter.body)}")
            return Decision.DISCARD

        letters.sift(look)
    assert len(reasons) == 4
    assert all(each.startswith("too-large") and "MAX_PAYLOAD_BYTES" in each for each in reasons), reasons
    assert _peak_mb(subscriber.pid) < ROOM_MB
    assert subscriber.stop() == 0


def _peak_mb(pid: int) -> float:
    """Return the most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
