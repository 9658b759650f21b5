"""What every transport promises, as a suite of tests that any transport can inherit.

A transport's own test file is a few lines long::

    from domain_event_broker.config import parse
    from domain_event_broker.testing import TransportContract

    class TestCarrierPigeon(TransportContract):
        def open(self):
            return CarrierPigeonTransport(parse("pigeon://loft"))

Run it with pytest. The hooks that can be filled in are those of
:class:`~domain_event_broker.testing.TransportWorkbench`; only ``open`` must be. A promise that
a transport does not make (see :class:`~domain_event_broker.ports.Capabilities`) is skipped, and
says why. The promises themselves are written in :mod:`domain_event_broker.ports`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from domain_event_broker.errors import UnsupportedOption
from domain_event_broker.failures import MAX_TRACEBACK, Failure
from domain_event_broker.ports import (
    Action,
    DeadLetter,
    Decision,
    Delivery,
    Settlement,
    SiftReport,
    Stored,
    Subscription,
    Transport,
)
from domain_event_broker.testing.workbench import TransportWorkbench

#: Seconds by which a retry may come early: clocks and timers are not exact.
EARLY = 0.05

#: Bodies that a careless transport changes, cuts short or refuses.
AWKWARD_BODIES = (
    b"",
    b"\x00",
    b"a\x00b",
    b"\xff\xfe not UTF-8 \x80",
    "größe, 注文, 🙂".encode(),
    b'it\'s 100% \\ "quoted" %s {} $1 ?',
    b"\r\n\r\n",
    bytes(range(256)),
)

#: Headers of a program that is not this library.
FOREIGN_HEADERS: dict[str, str | int] = {
    "tenant": "blue",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "größe": "注文 'x' \"y\"",
    "empty": "",
    "count": 7,
    "below-zero": -3,
    "large": 2**53,
}

#: Binding key, routing key, and whether the one lets the other in. ``@`` stands for a word of
#: the test's own.
TOPICS = (
    ("@.placed", "@.placed", True),
    ("@.placed", "@.paid", False),
    ("@.placed", "@.placed.twice", False),
    ("@.placed", "@", False),
    ("@.*", "@.placed", True),
    ("@.*", "@", False),
    ("@.*", "@.placed.twice", False),
    ("@.*.late", "@.order.late", True),
    ("@.*.late", "@.late", False),
    ("@.#", "@", True),
    ("@.#", "@.placed", True),
    ("@.#", "@.order.placed.late", True),
    ("@.#.late", "@.late", True),
    ("@.#.late", "@.order.placed.late", True),
    ("@.#.late", "@.order.placed", False),
    ("@.#.#", "@", True),
    ("@.*.#", "@", False),
    ("@.*.#", "@.a.b.c", True),
    ("@.#.*", "@.a", True),
    ("*.@", "order.@", True),
    ("*.@", "@", False),
    ("#.@", "order.placed.@", True),
    ("#.@", "@", True),
    ("@.Placed", "@.placed", False),
    ("@.größe.注文", "@.größe.注文", True),
    ("@.größe.*", "@.größe.注文", True),
    ("@.größe", "@.grosse", False),
)


class TransportContract(TransportWorkbench):
    """The promises of a transport, one test for each."""

    # --- publishing ------------------------------------------------------------------------

    def test_a_published_event_arrives_with_body_key_identity_and_headers(self) -> None:
        transport, handler = self._handler()
        sent = self.message(f"{handler.name}.placed", b'{"n": 1}', FOREIGN_HEADERS)
        self.publish(transport, sent)
        (got,) = self.collect(transport)
        assert (got.queue, got.body) == (handler.name, sent.body)
        assert (got.routing_key, got.event_id) == (sent.routing_key, sent.event_id)
        assert (got.retries, got.crashes) == (0, 0)
        assert _foreign(got) == FOREIGN_HEADERS

    def test_an_event_nobody_subscribes_to_is_told_to_be_unroutable(self) -> None:
        transport = self.connect()
        (outcome,) = transport.publish([self.message(f"{self.fresh_name()}.placed")])
        assert outcome.stored is Stored.UNROUTABLE

    def test_the_outcomes_of_a_mixed_batch_are_in_the_order_of_its_messages(self) -> None:
        transport, handler = self._handler()
        keys = [
            f"{name}.placed" for name in (handler.name, self.fresh_name(), handler.name, self.fresh_name())
        ]
        outcomes = transport.publish([self.message(key) for key in keys])
        stored, unroutable = Stored.STORED, Stored.UNROUTABLE
        assert [outcome.stored for outcome in outcomes] == [stored, unroutable, stored, unroutable]
        assert len(self.collect_until_marker(transport, handler)) == 2

    def test_an_empty_batch_has_no_outcomes(self) -> None:
        assert self.connect().publish([]) == []

    def test_an_event_may_be_published_by_another_connection(self) -> None:
        transport, handler = self._handler()
        publisher = self.connect()
        (sent,) = self.publish_to(publisher, handler, b"{}")
        self.disconnect(publisher)
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_bodies_of_any_bytes_arrive_unchanged(self) -> None:
        transport, handler = self._handler()
        assert _bodies(self.deliver(transport, handler, *AWKWARD_BODIES)) == list(AWKWARD_BODIES)

    def test_a_body_of_a_megabyte_arrives_unchanged(self) -> None:
        transport, handler = self._handler()
        body = bytes(range(256)) * 4096
        (delivery,) = self.deliver(transport, handler, body)
        assert delivery.body == body

    def test_a_routing_key_of_the_greatest_length_is_carried(self) -> None:
        transport, handler = self._handler()
        key = f"{handler.name}.".ljust(255, "k")
        self.publish(transport, self.message(key))
        assert self.collect(transport)[0].routing_key == key

    # --- routing ---------------------------------------------------------------------------

    def test_topics_are_matched_as_amqp_does(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        wrong = []
        for binding_key, routing_key, routed in TOPICS:
            own = f"{word}{len(self._queues)}"
            handler = self.subscription(binding_keys=(binding_key.replace("@", own),))
            transport.declare(handler)
            (outcome,) = transport.publish([self.message(routing_key.replace("@", own))])
            if (outcome.stored is Stored.STORED) is not routed:
                wrong.append((binding_key, routing_key, outcome))
        assert wrong == []

    def test_a_handler_bound_to_everything_gets_everything(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        handler = self.subscription(binding_keys=("#",))
        transport.subscribe(handler)
        sent = [self.message(key) for key in (word, f"{word}.placed", f"a.b.{word}.c")]
        self.publish(transport, *sent)
        # Other tests may be publishing to the same broker: theirs arrive here, too.
        ours = {message.event_id for message in sent}
        end = time.monotonic() + self.patience
        while ours and time.monotonic() < end:
            (delivery,) = self.collect(transport)
            ours.discard(delivery.event_id)
            self.answer(transport, [delivery], Action.ACK)
        assert ours == set()

    def test_an_event_that_matches_several_keys_of_a_handler_arrives_once(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        keys = (f"{word}.placed", f"{word}.*", f"{word}.#", f"*.placed.{word}")
        handler = self.subscription(name=word, binding_keys=keys)
        transport.subscribe(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        assert _ids(self.collect_until_marker(transport, handler)) == [sent.event_id]

    def test_each_handler_gets_its_own_copy(self) -> None:
        transport, (one, other) = self._two_handlers()
        self.publish(transport, self.message(one.binding_keys[0], b"copied"))
        deliveries = self.collect(transport, 2)
        assert sorted(delivery.queue for delivery in deliveries) == sorted([one.name, other.name])
        assert _bodies(deliveries) == [b"copied", b"copied"]

    # --- subscribing -----------------------------------------------------------------------

    def test_subscribing_twice_delivers_once(self) -> None:
        transport, handler = self._handler()
        transport.subscribe(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        assert _ids(self.collect_until_marker(transport, handler)) == [sent.event_id]

    def test_subscribing_with_more_keys_adds_them(self) -> None:
        transport, word = self.connect(), self.fresh_name()
        handler = self.subscription(binding_keys=(f"{word}.placed",))
        transport.subscribe(handler)
        transport.subscribe(replace(handler, binding_keys=(f"{word}.placed", f"{word}.paid")))
        self.publish(transport, self.message(f"{word}.placed"), self.message(f"{word}.paid"))
        keys = [delivery.routing_key for delivery in self.collect(transport, 2)]
        assert keys == [f"{word}.placed", f"{word}.paid"]

    def test_subscribing_with_fewer_keys_takes_none_away(self) -> None:
        # The process of the last release may still be running, and rely on them.
        transport, word = self.connect(), self.fresh_name()
        handler = self.subscription(binding_keys=(f"{word}.placed", f"{word}.paid"))
        transport.subscribe(handler)
        self.connect().subscribe(replace(handler, binding_keys=(f"{word}.placed",)))
        (outcome,) = transport.publish([self.message(f"{word}.paid")])
        assert outcome.stored is Stored.STORED

    def test_events_wait_while_their_handler_is_away(self) -> None:
        transport, handler = self._handler()
        self.disconnect(transport)
        publisher = self.connect()
        (sent,) = self.publish_to(publisher, handler, b"{}")
        back = self.connect()
        back.subscribe(handler)
        assert self.collect(back)[0].event_id == sent.event_id

    def test_declaring_keeps_events_without_receiving_them(self) -> None:
        transport, handler = self.connect(), self.subscription()
        transport.declare(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        assert transport.receive(10, 0.3) == []
        transport.subscribe(handler)
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_declaring_twice_changes_nothing(self) -> None:
        transport, handler = self.connect(), self.subscription()
        transport.declare(handler)
        transport.declare(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        transport.subscribe(handler)
        assert _ids(self.collect_until_marker(transport, handler)) == [sent.event_id]

    def test_check_tells_what_is_missing_until_it_is_declared(self) -> None:
        transport, handler = self.connect(), self.subscription(delays=(1.0, 60.0))
        missing = transport.check(handler)
        assert missing
        assert all(missing), missing
        transport.declare(handler)
        assert transport.check(handler) == []

    def test_check_changes_nothing(self) -> None:
        transport, handler = self.connect(), self.subscription()
        assert transport.check(handler) == transport.check(handler)
        assert transport.stats([handler.name])[handler.name].exists is False
        (outcome,) = transport.publish([self.message(f"{handler.name}.placed")])
        assert outcome.stored is Stored.UNROUTABLE

    def test_options_a_transport_lacks_are_refused_before_anything_is_declared(self) -> None:
        transport = self.connect()
        if transport.capabilities.transient_queues:
            raise self.not_applicable("it has queues that vanish with their consumer")
        for option in ("exclusive", "auto_delete"):
            handler = self.subscription(queue_type="classic", **{option: True})
            for member in (transport.declare, transport.subscribe, transport.check):
                self._assert_refused(member, handler, option)
            assert transport.stats([handler.name])[handler.name].exists is False

    # --- receiving -------------------------------------------------------------------------

    def test_events_of_a_queue_arrive_in_the_order_they_were_published(self) -> None:
        transport, handler = self._handler(prefetch=200)
        bodies = [str(number).encode() for number in range(120)]
        for start in range(0, 60, 20):
            self.publish_to(transport, handler, *bodies[start : start + 20])
        for body in bodies[60:]:
            self.publish_to(transport, handler, body)
        assert _bodies(self.collect(transport, len(bodies))) == bodies

    def test_receive_returns_no_more_than_its_limit(self) -> None:
        transport, handler = self._handler()
        self.publish_to(transport, handler, b"1", b"2", b"3", b"4", b"5")
        first = transport.receive(2, self.patience)
        assert 1 <= len(first) <= 2
        assert _bodies(first + self.collect(transport, 5 - len(first))) == [b"1", b"2", b"3", b"4", b"5"]

    def test_receive_with_a_limit_of_nought_takes_its_time_and_nothing_else(self) -> None:
        transport, handler = self._handler()
        (sent,) = self.publish_to(transport, handler, b"{}")
        began = time.monotonic()
        assert transport.receive(0, 0.3) == []
        assert time.monotonic() - began > 0.25
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_receive_without_events_returns_none_when_its_time_is_over(self) -> None:
        transport, _ = self._handler()
        transport.receive(10, 0.05)
        began = time.monotonic()
        assert transport.receive(10, 0.3) == []
        assert 0.25 < time.monotonic() - began < self.patience / 2

    def test_receive_without_time_returns_at_once(self) -> None:
        transport, _ = self._handler()
        began = time.monotonic()
        assert transport.receive(10, 0) == []
        assert time.monotonic() - began < self.patience / 4

    def test_receive_returns_as_soon_as_there_is_an_event(self) -> None:
        transport, handler = self._handler()
        began = time.monotonic()
        with self._meanwhile(lambda: self._publish_elsewhere(handler)):
            found: list[Delivery] = []
            while not found and time.monotonic() - began < self.patience:
                found = transport.receive(10, self.patience * 3)
        assert len(found) == 1
        assert time.monotonic() - began < self.patience

    def test_no_more_than_prefetch_deliveries_are_under_way(self) -> None:
        transport, handler = self._handler(prefetch=3)
        self.publish_to(transport, handler, *(str(number).encode() for number in range(8)))
        first = self.collect(transport, 3)
        assert transport.receive(10, 0.3) == []
        self.answer(transport, first[:2], Action.ACK)
        second = self.collect(transport, 2)
        assert transport.receive(10, 0.3) == []
        self.answer(transport, first[2:] + second, Action.ACK)
        assert _bodies(first + second + self.collect(transport, 3)) == [b"%d" % n for n in range(8)]

    def test_a_handler_at_its_prefetch_does_not_hold_up_another(self) -> None:
        transport, busy, idle = self.connect(), self.subscription(prefetch=1), self.subscription()
        transport.subscribe(busy)
        transport.subscribe(idle)
        self.publish_to(transport, busy, b"1", b"2", b"3")
        assert self.collect(transport)[0].queue == busy.name
        (sent,) = self.publish_to(transport, idle, b"{}")
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_receivers_of_one_queue_share_its_events(self) -> None:
        handler = self.subscription(prefetch=5)
        receivers = [self.connect(), self.connect()]
        for receiver in receivers:
            receiver.subscribe(handler)
        sent = self.publish_to(receivers[0], handler, *(b"%d" % number for number in range(30)))
        got: list[str] = []
        end = time.monotonic() + self.patience
        while len(got) < len(sent) and time.monotonic() < end:
            batches = [receiver.receive(10, 0.05) for receiver in receivers]
            for receiver, batch in zip(receivers, batches, strict=True):
                got += _ids(batch)
                self.answer(receiver, batch, Action.ACK)
        assert sorted(got) == sorted(message.event_id for message in sent)

    def test_wake_from_another_thread_ends_a_receive(self) -> None:
        transport, _ = self._handler()
        for limit in (10, 0):
            assert transport.receive(limit, 0.1) == []
            began = time.monotonic()
            timer = threading.Timer(0.2, transport.wake)
            timer.start()
            assert transport.receive(limit, self.patience * 3) == []
            timer.join()
            assert time.monotonic() - began < self.patience, f"limit {limit}"

    def test_a_wake_just_before_receive_is_not_missed(self) -> None:
        transport, _ = self._handler()
        assert transport.receive(10, 0.1) == []
        thread = threading.Thread(target=transport.wake)
        thread.start()
        thread.join()
        began = time.monotonic()
        assert transport.receive(10, self.patience * 3) == []
        assert time.monotonic() - began < self.patience

    # --- settling --------------------------------------------------------------------------

    def test_an_acknowledged_event_is_forgotten(self) -> None:
        transport, handler = self._handler()
        self.answer(transport, self.deliver(transport, handler, b"1", b"2"), Action.ACK)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        assert self.collect_until_marker(other, handler) == []

    def test_closing_gives_unsettled_events_back(self) -> None:
        transport, handler = self._handler()
        deliveries = self.deliver(transport, handler, b"1", b"2", b"3")
        self.answer(transport, deliveries[:1], Action.ACK)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        again = self.collect(other, 2)
        assert _bodies(again) == [b"2", b"3"]
        assert [delivery.retries for delivery in again] == [0, 0]

    def test_a_connection_that_dies_gives_its_events_back(self) -> None:
        transport, handler = self._handler()
        (before,) = self.deliver(transport, handler, b"{}")
        self.crash(transport)
        other = self.connect()
        other.subscribe(handler)
        (after,) = self.collect(other)
        assert (after.event_id, after.body, after.retries) == (before.event_id, before.body, 0)

    def test_crashes_are_counted(self) -> None:
        if not self.counts_crashes:
            raise self.not_applicable("it does not count crashes")
        handler = self.subscription()
        for crashes in range(3):
            transport = self.connect()
            transport.subscribe(handler)
            if not crashes:
                self.publish_to(transport, handler, b"{}")
            (delivery,) = self.collect(transport)
            assert (delivery.crashes, delivery.retries) == (crashes, 0)
            self.crash(transport)

    def test_closing_twice_is_allowed(self) -> None:
        transport = self.connect()
        transport.close()
        transport.close()

    def test_a_requeued_event_comes_back_as_it_was(self) -> None:
        transport, handler = self._handler()
        self.publish(transport, self.message(f"{handler.name}.placed", b"\x00", FOREIGN_HEADERS))
        for _ in range(3):
            (delivery,) = self.collect(transport)
            assert (delivery.body, delivery.retries) == (b"\x00", 0)
            assert _foreign(delivery) == FOREIGN_HEADERS
            self.answer(transport, [delivery], Action.REQUEUE)
        self.answer(transport, self.collect(transport), Action.ACK)
        assert self.collect_until_marker(transport, handler) == []

    def test_a_retried_event_keeps_all_but_its_retries(self) -> None:
        transport, handler = self._handler(delays=(0.1,))
        sent = self.message(f"{handler.name}.placed", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        for retries in range(4):
            (delivery,) = self.collect(transport)
            assert delivery.retries == retries
            assert (delivery.queue, delivery.body) == (handler.name, sent.body)
            assert (delivery.routing_key, delivery.event_id) == (sent.routing_key, sent.event_id)
            assert _foreign(delivery) == FOREIGN_HEADERS
            self.answer(transport, [delivery], Action.RETRY, 0.1, self.failure(attempts=retries + 1))

    def test_a_retried_event_comes_back_once_and_to_its_handler_only(self) -> None:
        transport, (one, other) = self._two_handlers()
        self.publish(transport, self.message(one.binding_keys[0]))
        by_queue = {delivery.queue: delivery for delivery in self.collect(transport, 2)}
        transport.settle(
            [
                Settlement(by_queue[one.name], Action.RETRY, 0.1),
                Settlement(by_queue[other.name], Action.ACK),
            ]
        )
        (again,) = self.collect(transport)
        assert (again.queue, again.retries) == (one.name, 1)
        self.answer(transport, [again], Action.ACK)
        self.publish(transport, self.message(one.binding_keys[0], b"marker"))
        assert _bodies(self.collect(transport, 2)) == [b"marker", b"marker"]

    def test_no_retry_comes_before_its_delay(self) -> None:
        transport, handler = self._handler(delays=(0.05, 0.2, 1.0))
        for delay in (0.05, 0.2, 1.0, 0.7):
            (delivery,) = self.deliver(transport, handler, b"{}")
            began = self.now()
            self.answer(transport, [delivery], Action.RETRY, delay)
            ((at, again),) = self.arrivals(transport, 1, delay + self.patience)
            assert at - began >= delay - EARLY, f"delay {delay}"
            self.answer(transport, [again], Action.ACK)

    def test_a_retry_without_delay_comes_back(self) -> None:
        transport, handler = self._handler()
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.0)
        assert self.collect(transport)[0].retries == 1

    def test_retries_of_many_delays_all_come_and_none_too_early(self) -> None:
        transport, handler = self._handler(delays=(0.1, 1.0))
        delays = {
            b"%d" % number: delay for number, delay in enumerate((1.6, 0.1, 0.55, 0.0, 1.0, 0.3, 0.123))
        }
        deliveries = self.deliver(transport, handler, *delays)
        began = self.now()
        transport.settle([Settlement(each, Action.RETRY, delays[each.body]) for each in deliveries])
        arrived = self.arrivals(transport, len(delays), 1.6 + self.patience)
        assert {each.body for _, each in arrived} == set(delays)
        early = [(each.body, at) for at, each in arrived if at - began < delays[each.body] - EARLY]
        assert early == []

    def test_a_long_delay_does_not_hold_up_a_short_one(self) -> None:
        transport, handler = self._handler(delays=(0.2, 300.0))
        long, short = self.deliver(transport, handler, b"long", b"short")
        self.answer(transport, [long], Action.RETRY, 300.0)
        self.answer(transport, [short], Action.RETRY, 0.2)
        assert _bodies(self.collect_until_marker_after(transport, handler)) == [b"short"]
        self.eventually(lambda: transport.stats([handler.name])[handler.name].delayed, 1)

    def test_a_retry_outlives_the_connection_that_asked_for_it(self) -> None:
        transport, handler = self._handler(delays=(0.3,))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.3)
        self.disconnect(transport)
        other = self.connect()
        other.subscribe(handler)
        assert self.collect(other)[0].retries == 1

    def test_a_batch_of_all_kinds_of_answers_is_settled(self) -> None:
        transport, handler = self._handler()
        done, later, dead, back = self.deliver(transport, handler, b"done", b"later", b"dead", b"back")
        transport.settle(
            [
                Settlement(done, Action.ACK),
                Settlement(later, Action.RETRY, 0.1, self.failure()),
                Settlement(dead, Action.DEAD, failure=self.failure()),
                Settlement(back, Action.REQUEUE),
            ]
        )
        again = self.collect(transport, 2)
        assert {(delivery.body, delivery.retries) for delivery in again} == {(b"later", 1), (b"back", 0)}
        assert _bodies_of(self.browse(transport.dead_letters(handler.name))) == [b"dead"]

    def test_settling_nothing_does_nothing(self) -> None:
        self.connect().settle([])

    # --- dead letters ----------------------------------------------------------------------

    def test_a_dead_letter_keeps_the_event_and_its_failure(self) -> None:
        transport, handler = self._handler()
        sent = self.message(f"{handler.name}.größe", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        failure = self.failure("retries-exhausted", attempts=4)
        self.answer(transport, self.collect(transport), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert (letter.queue, letter.body, letter.replays) == (handler.name, sent.body, 0)
        assert (letter.routing_key, letter.event_id) == (sent.routing_key, sent.event_id)
        assert letter.failure == failure
        assert _foreign(letter) == FOREIGN_HEADERS
        assert self.collect_until_marker(transport, handler) == []

    def test_a_dead_letter_after_retries_keeps_the_first_routing_key(self) -> None:
        transport, handler = self._handler(delays=(0.1,))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.1, self.failure())
        failure = self.failure("retries-exhausted", attempts=2)
        self.answer(transport, self.collect(transport), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert letter.routing_key == f"{handler.name}.placed"
        assert letter.failure == failure

    def test_a_failure_of_the_greatest_length_is_kept(self) -> None:
        transport, handler = self._handler()
        failure = replace(self.failure(), traceback="注\n" * (MAX_TRACEBACK // 2))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert letter.failure == failure

    def test_without_dead_letters_an_event_that_failed_is_deleted(self) -> None:
        transport, handler = self._handler(dead_letter=False)
        deliveries = self.deliver(transport, handler, b"{}")
        self.answer(transport, deliveries, Action.DEAD, failure=self.failure())
        assert self.collect_until_marker(transport, handler) == []
        letters = transport.dead_letters(handler.name)
        assert letters.count() == 0
        assert self.browse(letters) == []

    def test_looking_at_dead_letters_shows_all_once_oldest_first_and_ends(self) -> None:
        transport, handler = self._handler()
        bodies = [b"%d" % number for number in range(12)]
        self.dead_letters_with(transport, handler, *bodies)
        letters = self.connect().dead_letters(handler.name)
        assert _bodies_of(self.browse(letters)) == bodies
        self.eventually(letters.count, len(bodies))

    def test_looking_thirty_times_changes_nothing(self) -> None:
        transport, handler = self._handler()
        self.dead_letters_with(transport, handler, b"\xff", b"\x00", b"")
        letters = self.connect().dead_letters(handler.name)
        first = self.browse(letters)
        for _ in range(30):
            assert self.browse(letters) == first
        self.eventually(letters.count, 3)
        assert transport.receive(10, 0.1) == []

    def test_a_replayed_event_starts_anew(self) -> None:
        transport, handler = self._handler(delays=(0.1,))
        sent = self.message(f"{handler.name}.größe", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        for replays in range(3):
            self.answer(transport, self.collect(transport), Action.RETRY, 0.1, self.failure())
            self.answer(transport, self.collect(transport), Action.DEAD, failure=self.failure(attempts=2))
            letters = self.connect().dead_letters(handler.name)
            self.eventually(letters.count, 1)
            assert self._sift(letters.sift, Decision.RETRY) == ([replays], SiftReport(replayed=1))
            (again,) = self.collect(transport)
            assert (again.queue, again.body, again.retries) == (handler.name, sent.body, 0)
            assert (again.routing_key, again.event_id) == (sent.routing_key, sent.event_id)
            assert Failure.from_headers(again.headers) is None
            assert _foreign(again) == FOREIGN_HEADERS
            self.eventually(letters.count, 0)
            self.answer(transport, [again], Action.REQUEUE)

    def test_a_replayed_event_reaches_its_own_handler_only(self) -> None:
        transport, (one, other) = self._two_handlers()
        self.publish(transport, self.message(one.binding_keys[0], b"replayed"))
        for delivery in self.collect(transport, 2):
            action = Action.DEAD if delivery.queue == one.name else Action.ACK
            self.answer(transport, [delivery], action, failure=self.failure())
        letters = transport.dead_letters(one.name)
        self.eventually(letters.count, 1)
        letters.sift(lambda letter: Decision.RETRY)
        self.publish(transport, self.message(one.binding_keys[0], b"marker"))
        got = [(delivery.queue, delivery.body) for delivery in self.collect(transport, 3)]
        assert sorted(got) == sorted(
            [(one.name, b"replayed"), (one.name, b"marker"), (other.name, b"marker")]
        )

    def test_awkward_bodies_live_through_retry_death_and_replay(self) -> None:
        transport, handler = self._handler(delays=(0.1,))
        self.answer(transport, self.deliver(transport, handler, *AWKWARD_BODIES), Action.RETRY, 0.1)
        retried = self.collect(transport, len(AWKWARD_BODIES))
        assert sorted(_bodies(retried)) == sorted(AWKWARD_BODIES)
        self.answer(transport, retried, Action.DEAD, failure=self.failure())
        letters = transport.dead_letters(handler.name)
        self.eventually(letters.count, len(AWKWARD_BODIES))
        letters.sift(lambda letter: Decision.RETRY)
        assert sorted(_bodies(self.collect(transport, len(AWKWARD_BODIES)))) == sorted(AWKWARD_BODIES)

    def test_a_discarded_letter_is_gone(self) -> None:
        transport, handler = self._handler()
        letters = self.dead_letters_with(transport, handler, b"1", b"2")
        assert self._sift(letters.sift, Decision.DISCARD)[1] == SiftReport(discarded=2)
        self.eventually(letters.count, 0)
        assert self.collect_until_marker(transport, handler) == []

    def test_each_letter_gets_its_own_decision(self) -> None:
        transport, handler = self._handler()
        letters = self.dead_letters_with(transport, handler, b"retry", b"leave", b"discard", b"leave")
        report = letters.sift(lambda letter: Decision(letter.body.decode()))
        assert report == SiftReport(replayed=1, discarded=1, left=2)
        self.eventually(letters.count, 2)
        assert _bodies(self.collect_until_marker(transport, handler)) == [b"retry"]
        assert _bodies_of(self.browse(letters)) == [b"leave", b"leave"]

    def test_sifting_stops_at_its_limit(self) -> None:
        transport, handler = self._handler()
        letters = self.dead_letters_with(transport, handler, b"1", b"2", b"3")
        assert _bodies_of(self.browse(letters, limit=2)) == [b"1", b"2"]
        self.eventually(letters.count, 3)
        assert letters.sift(lambda letter: Decision.RETRY, limit=1) == SiftReport(replayed=1)
        self.eventually(letters.count, 2)
        assert _bodies_of(self.browse(letters)) == [b"2", b"3"]
        assert letters.sift(lambda letter: Decision.DISCARD, limit=0) == SiftReport()

    def test_a_decision_that_fails_leaves_its_letter_and_the_rest(self) -> None:
        transport, handler = self._handler()
        letters = self.dead_letters_with(transport, handler, b"1", b"2", b"3")

        def decide(letter: DeadLetter) -> Decision:
            if letter.body == b"1":
                return Decision.RETRY
            raise KeyboardInterrupt

        try:
            letters.sift(decide)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("what decide raises must pass through")
        self.eventually(letters.count, 2)
        assert _bodies_of(self.browse(letters)) == [b"2", b"3"]
        assert _bodies(self.collect_until_marker(transport, handler)) == [b"1"]

    def test_an_event_that_dies_while_sifting_is_not_shown(self) -> None:
        transport, handler = self._handler()
        self.dead_letters_with(transport, handler, b"1", b"2")
        seen: list[bytes] = []

        def decide(letter: DeadLetter) -> Decision:
            seen.append(letter.body)
            late = self.deliver(transport, handler, b"late")
            self.answer(transport, late, Action.DEAD, failure=self.failure())
            return Decision.LEAVE

        letters = self.connect().dead_letters(handler.name)
        assert letters.sift(decide).left == 2
        assert seen == [b"1", b"2"]
        self.eventually(letters.count, 4)

    def test_the_dead_letters_of_an_unknown_handler_are_none(self) -> None:
        transport = self.connect()
        letters = transport.dead_letters(self.fresh_name())
        assert letters.count() == 0
        assert self.browse(letters) == []
        handler = self.subscription()
        transport.subscribe(handler)
        assert len(self.deliver(transport, handler, b"still connected")) == 1

    # --- figures ---------------------------------------------------------------------------

    def test_stats_tell_whether_a_queue_exists(self) -> None:
        transport, handler = self._handler()
        absent = self.fresh_name()
        stats = transport.stats([handler.name, absent])
        assert stats[handler.name].exists is True
        assert stats[absent].exists is False
        assert (stats[absent].ready, stats[absent].delayed, stats[absent].dead) == (0, 0, 0)

    def test_stats_tell_what_is_ready_delayed_and_dead(self) -> None:
        transport, handler = self._handler(delays=(300.0,), prefetch=3)
        deliveries = self.deliver(transport, handler, b"1", b"2", b"3")
        self.answer(transport, deliveries[:2], Action.RETRY, 300.0)
        self.answer(transport, deliveries[2:], Action.DEAD, failure=self.failure())
        self.disconnect(transport)
        other = self.connect()
        self.publish_to(other, handler, b"4", b"5", b"6", b"7")

        def figures() -> tuple[int, int, int]:
            stats = other.stats([handler.name])[handler.name]
            return stats.ready, stats.delayed, stats.dead

        self.eventually(figures, (4, 2, 1))

    # --- shorthand of these tests ----------------------------------------------------------

    def _handler(self, **overrides: object) -> tuple[Transport, Subscription]:
        """Return a connection, and a handler it receives for."""
        transport, handler = self.connect(), self.subscription(**overrides)
        transport.subscribe(handler)
        return transport, handler

    def _two_handlers(self) -> tuple[Transport, tuple[Subscription, Subscription]]:
        """Return a connection that receives for two handlers bound with one and the same key."""
        transport, key = self.connect(), f"{self.fresh_name()}.placed"
        one, other = (self.subscription(binding_keys=(key,), delays=(0.1,)) for _ in range(2))
        transport.subscribe(one)
        transport.subscribe(other)
        return transport, (one, other)

    def collect_until_marker_after(self, transport: Transport, handler: Subscription) -> list[Delivery]:
        """Wait for one delivery, then return it with all that comes before a marker."""
        return self.collect(transport) + self.collect_until_marker(transport, handler)

    def _assert_refused(
        self, member: Callable[[Subscription], object], handler: Subscription, option: str
    ) -> None:
        try:
            member(handler)
        except UnsupportedOption as error:
            if option not in str(error):
                raise AssertionError(f"the error does not name {option!r}: {error}") from error
        else:
            raise AssertionError(f"{option}=True must be refused by {member}")

    def _publish_elsewhere(self, handler: Subscription) -> None:
        """Publish from a thread of its own, with a connection of its own."""
        transport = self.open()
        try:
            self.publish_to(transport, handler, b"{}")
        finally:
            transport.close()

    def _meanwhile(self, call: Callable[[], None]) -> _Meanwhile:
        return _Meanwhile(call)

    def _sift(
        self, sift: Callable[[Callable[[DeadLetter], Decision]], SiftReport], decision: Decision
    ) -> tuple[list[int], SiftReport]:
        """Give all letters one decision; return how often each was replayed before, and the report."""
        replays: list[int] = []

        def decide(letter: DeadLetter) -> Decision:
            replays.append(letter.replays)
            return decision

        return replays, sift(decide)


class _Meanwhile:
    """Runs something in another thread, a little after the body of ``with`` has begun.

    What it raises is raised when that body has ended.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Timer(0.2, self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error


def _ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.event_id for delivery in deliveries]


def _bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


def _bodies_of(letters: list[DeadLetter]) -> list[bytes]:
    return [letter.body for letter in letters]


def _foreign(carrier: Delivery | DeadLetter) -> dict[str, object]:
    """Return the headers of the other program; a transport may add some of its own."""
    return {name: value for name, value in carrier.headers.items() if name in FOREIGN_HEADERS}
