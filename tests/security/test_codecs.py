"""Bodies are sealed where they are written, opened where they are handled, and unreadable in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from domain_event_broker import DomainEvent, config, publish_domain_event
from domain_event_broker.codecs import Bodies, bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import BodyNotOpened, ConfigurationError, InvalidEvent
from domain_event_broker.events import HEADER_CODEC, Message, decode, encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.ports import DeadLetter, Stored, Subscription
from domain_event_broker.publisher import Publisher
from domain_event_broker.relay import Relay
from domain_event_broker.replay import replay_all
from domain_event_broker.subscriber import Consumer
from domain_event_broker.transports import open_transport
from tests.integration.subscriber.conftest import Bench
from tests.security import hooks

HOOKS = "tests.security.hooks"
EVENT = DomainEvent("order.placed", {"card": "4111-1111"}, "order-7")


def bodies(*names: str, **options: Any) -> Bodies:
    value = {"URL": "memory:", "CODEC": [n if n == "plain" else f"{HOOKS}.{n}" for n in names], **options}
    settings = config.parse(value)
    assert settings is not None
    return bodies_of(settings)


# --- one body ---------------------------------------------------------------------------


def test_a_sealed_body_says_nothing_and_is_opened_to_the_byte() -> None:
    sealed, plain = bodies("vault").encode(EVENT), encode(EVENT)
    assert b"4111" not in sealed.body
    assert sealed.body.isascii()
    assert sealed.headers[HEADER_CODEC] == "vault"
    assert bodies("vault").open(sealed.body, sealed.headers) == plain.body


def test_what_brokers_and_relays_work_with_stays_readable() -> None:
    sealed, plain = bodies("vault").encode(EVENT), encode(EVENT)
    assert replace(sealed, body=b"", headers={}) == replace(plain, body=b"", headers={})


def test_plain_bodies_are_read_beside_sealed_ones_unless_they_are_refused() -> None:
    plain = encode(EVENT)
    assert bodies("vault").decode(plain.body, plain.headers).data == EVENT.data
    with pytest.raises(BodyNotOpened, match="not sealed, and ACCEPT_PLAIN is False"):
        bodies("vault", ACCEPT_PLAIN=False).decode(plain.body, plain.headers)


def test_the_first_codec_seals_and_all_of_them_open() -> None:
    old, new = bodies("vault").encode(EVENT), bodies("newer", "vault").encode(EVENT)
    assert new.headers[HEADER_CODEC] == "vault-2"
    for message in (old, new):
        assert bodies("newer", "vault").decode(message.body, message.headers).data == EVENT.data


def test_plain_before_codecs_seals_nothing_and_opens_what_others_seal() -> None:
    sealed = bodies("vault").encode(EVENT)
    careful = bodies("plain", "vault")
    assert careful.encode(EVENT) == encode(EVENT)
    assert careful.decode(sealed.body, sealed.headers).data == EVENT.data


def test_a_key_is_changed_while_bodies_of_the_old_one_are_about() -> None:
    old = bodies("vault").encode(EVENT)
    assert bodies("rotated").decode(old.body, old.headers).data == EVENT.data
    with pytest.raises(BodyNotOpened, match=r"'vault' could not open the body \(InvalidToken\)"):
        bodies("changed").decode(old.body, old.headers)


def test_a_body_that_was_changed_on_its_way_is_not_opened() -> None:
    sealed = bodies("vault").encode(EVENT)
    tampered = sealed.body[:40] + (b"A" if sealed.body[40:41] != b"A" else b"B") + sealed.body[41:]
    with pytest.raises(BodyNotOpened, match="changed on its way"):
        bodies("vault").open(tampered, sealed.headers)


@pytest.mark.parametrize("name", ["unknown", "", 5, ["vault"], {"a": 1}, b"vault"])
def test_a_body_of_a_codec_that_is_not_there_is_not_opened(name: Any) -> None:
    with pytest.raises(BodyNotOpened, match=r"no such codec.*known: 'vault'"):
        bodies("vault").open(b"x", {HEADER_CODEC: name})


def test_without_codecs_a_sealed_body_is_not_taken_for_json() -> None:
    with pytest.raises(BodyNotOpened, match="known: none"):
        bodies_of(BrokerSettings(url=("memory:",))).open(b"{}", {HEADER_CODEC: "vault"})


def test_a_message_is_not_sealed_twice() -> None:
    once = bodies("vault").encode(EVENT)
    assert bodies("vault").seal(once) is once


def test_an_event_that_is_passed_on_is_sealed_anew() -> None:
    sealed = bodies("vault").encode(EVENT)
    received = bodies("vault").decode(sealed.body, sealed.headers)
    again = bodies("newer").encode(received)
    assert again.headers[HEADER_CODEC] == "vault-2"
    assert bodies("newer").decode(again.body, again.headers).data == EVENT.data


@pytest.mark.parametrize("codec", ["binary", "with_nul", "no_bytes"])
def test_what_cannot_be_stored_as_text_is_refused_before_it_is_stored(codec: str) -> None:
    with pytest.raises(InvalidEvent, match=r"must return bytes, in ASCII and without NUL"):
        bodies(codec).encode(EVENT)


def test_a_codec_that_fails_says_so_without_saying_more_than_it_should() -> None:
    with pytest.raises(InvalidEvent, match="codec 'faulty' raised RuntimeError") as told:
        bodies("raising").encode(EVENT)
    assert "s3cret" not in str(told.value)


def test_a_codec_that_opens_to_anything_but_bytes_has_not_opened() -> None:
    with pytest.raises(BodyNotOpened, match="opened the body as str, not as bytes"):
        bodies("opens_text").open(b"x", {HEADER_CODEC: "faulty"})


def test_the_limit_of_size_counts_sealed_bytes() -> None:
    assert len(encode(EVENT).body) < 500
    with pytest.raises(InvalidEvent, match="1000 bytes long when it is sealed; at most 500"):
        bodies("huge", MAX_PAYLOAD_BYTES=500).encode(EVENT)


def test_the_limit_of_depth_holds_for_what_was_sealed() -> None:
    deep: Any = "bottom"
    for _ in range(40):
        deep = [deep]
    sealed = bodies("vault").encode(DomainEvent("a.b", {"deep": deep}))
    with pytest.raises(ValueError, match="nested too deeply: at most 20"):
        bodies("vault", MAX_JSON_DEPTH=20).decode(sealed.body, sealed.headers)


# --- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (5, "is 5; use the dotted path of a codec"),
        ([], "use the dotted path"),
        (["a.b", 5], "use the dotted path"),
        ("vault", "no dotted path"),
        ("../vault", "no dotted path"),
        (f"{HOOKS}.missing", "cannot be imported"),
        ("tests.no_such_module.vault", "cannot be imported"),
        ("tests.security.failing_hook.vault", "its module raised KeyError$"),
        (f"{HOOKS}.nameless", "is no codec"),
        (f"{HOOKS}.Reversing", "is no codec"),
        ([f"{HOOKS}.vault", f"{HOOKS}.rotated"], "codecs of one name"),
    ],
)
def test_a_wrong_codec_is_told(value: Any, told: str) -> None:
    def read() -> None:
        settings = config.parse({"URL": "memory:", "CODEC": value})
        assert settings is not None
        bodies_of(settings)

    with pytest.raises(ConfigurationError, match=told):
        read()


def test_what_is_published_to_another_broker_is_sealed_too(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "CODEC": f"{HOOKS}.vault", "ACCEPT_PLAIN": False}
    elsewhere = config.resolve("amqp://elsewhere")
    assert elsewhere is not None
    assert (elsewhere.codec, elsewhere.accept_plain) == ((f"{HOOKS}.vault",), False)
    told = config.resolve({"URL": "amqp://elsewhere"})
    assert told is not None
    assert told.codec == ()


# --- the whole way ----------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_sealed_event_is_unreadable_in_the_outbox_and_the_archive_and_read_by_its_handler(
    settings: Any, fresh_name: Any
) -> None:
    from domain_event_broker.django.models import ArchivedEvent, OutboxEvent
    from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
    from domain_event_broker.handlers import Handler

    settings.DOMAIN_EVENT_BROKER = {"URL": f"memory://{fresh_name('sealed')}", "CODEC": f"{HOOKS}.vault"}
    broker = config.current()
    assert broker is not None
    seen: list[Any] = []

    def call(event: DomainEvent) -> None:
        seen.append(event.data)
        consumer.stop()

    consumer = Consumer([Handler(call, "audit", ("order.*",))], broker)
    transport = open_transport(broker)
    transport.declare(Subscription("audit", ("order.*",)))

    publish_domain_event("order.placed", {"card": "4111-1111"})
    row = OutboxEvent.objects.get()
    assert "4111" not in row.body
    assert Relay(DjangoRelayOutbox("default"), broker).run_once().sent == 1
    assert "4111" not in ArchivedEvent.objects.get().body

    consumer.run(timeout=60, transport=transport)
    assert seen == [{"card": "4111-1111"}]


def sealed_bench(bench: Bench, *codecs: str) -> Bench:
    settings = replace(bench.settings, codec=tuple(f"{HOOKS}.{name}" for name in codecs))
    return Bench(settings, bench.fresh_name)


def test_plain_and_sealed_events_reach_one_handler_and_what_cannot_be_opened_is_kept(bench: Bench) -> None:
    """Also through a retry: the copies keep the name of the codec."""
    from domain_event_broker import Retry

    sealed = sealed_bench(bench, "newer", "vault")
    seen: list[Any] = []

    def call(event: DomainEvent) -> None:
        if event.retries == 0:
            raise Retry(0.1)
        seen.append(event.data["n"])

    handler = sealed.handler(call, max_retries=1)
    key = handler.name
    sent = [
        encode(DomainEvent(key, {"n": 0})),
        bodies("vault").encode(DomainEvent(key, {"n": 1})),
        bodies("newer").encode(DomainEvent(key, {"n": 2})),
        bodies("changed").encode(DomainEvent(key, {"n": 3})),
        bodies("reversing").encode(DomainEvent(key, {"n": 4})),
    ]
    with sealed.consuming(handler, inbox=DirectInbox()):
        sealed.send(sent)
        letters = sealed.dead_letters(handler, 2)
        sealed.wait_until_empty(handler)
    assert sorted(seen) == [0, 1, 2]
    assert [_told(letter) for letter in letters] == [
        ("not-opened", "vault", sent[3].body),
        ("not-opened", "reversing", sent[4].body),
    ]


def _told(letter: DeadLetter) -> tuple[str, object, bytes]:
    assert letter.failure is not None
    return letter.failure.reason, letter.headers[HEADER_CODEC], letter.body


def test_a_letter_that_could_not_be_opened_is_handled_when_its_codec_is_there(
    bench: Bench, settings: Any
) -> None:
    seen: list[Any] = []
    handler = bench.handler(lambda event: seen.append(event.data["n"]))
    with bench.consuming(handler):
        bench.send([bodies("vault").encode(DomainEvent(handler.name, {"n": 1}))])
        bench.dead_letters(handler, 1)
    settings.DOMAIN_EVENT_BROKER = {"URL": list(bench.settings.url), "CODEC": f"{HOOKS}.vault"}
    replay_all(handler.name)
    knowing = sealed_bench(bench, "vault")
    with knowing.consuming(handler):
        knowing.wait_until_empty(handler)
    assert seen == [1]


def test_a_callback_of_replay_sees_what_was_sealed(bench: Bench, settings: Any) -> None:
    handler = bench.handler(lambda event: 1 / 0)
    sealed = sealed_bench(bench, "vault")
    with sealed.consuming(handler):
        sealed.send([bodies("vault").encode(DomainEvent(handler.name, {"n": 1}))])
        sealed.dead_letters(handler, 1)
    settings.DOMAIN_EVENT_BROKER = {"URL": list(bench.settings.url), "CODEC": f"{HOOKS}.vault"}
    seen: list[Any] = []

    def look(event: DomainEvent) -> Any:
        seen.append(event.data)
        from domain_event_broker import LEAVE

        return LEAVE

    replay_all(handler.name, look)
    assert seen == [{"n": 1}]


@pytest.mark.parametrize("message", [EVENT, encode(EVENT).body, encode(EVENT).body.decode()])
def test_a_publisher_without_an_outbox_seals_events_and_bodies(
    message: Any, settings: Any, fresh_name: Any
) -> None:
    url = f"memory://{fresh_name('direct')}"
    settings.DOMAIN_EVENT_BROKER = {"URL": url, "CODEC": f"{HOOKS}.reversing"}
    broker = config.current()
    assert broker is not None
    transport = open_transport(broker)
    transport.subscribe(Subscription("all", ("#",)))
    with Publisher(url) as publisher:
        publisher.publish(message)
    (delivery,) = transport.receive(1, 5)
    assert delivery.headers[HEADER_CODEC] == "reversing"
    opened = hooks.reversing.open(delivery.body)
    assert decode(opened).data == EVENT.data
    transport.close()


def test_the_transports_carry_sealed_bodies_as_they_are(bench: Bench) -> None:
    message: Message = bodies("vault").encode(DomainEvent("x", {}))
    handler = bench.handler(lambda event: None)
    with bench.transport() as transport:
        transport.subscribe(Subscription(handler.name, handler.binding_keys))
        (outcome,) = transport.publish([replace(message, routing_key=handler.name)])
        assert outcome.stored is Stored.STORED
        (delivery,) = transport.receive(1, 10)
        assert (delivery.body, delivery.headers[HEADER_CODEC]) == (message.body, "vault")
