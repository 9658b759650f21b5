"""What a transport promises to those who subscribe and receive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from domain_event_broker.errors import UnsupportedOption
from domain_event_broker.ports import (
    Action,
    Delivery,
    Stored,
    Subscription,
)
from domain_event_broker.testing.workbench import (
    Meanwhile,
    TransportWorkbench,
    bodies_of,
    ids_of,
)


class ReceivingPromises(TransportWorkbench):
    """What a transport promises to those who subscribe and receive."""

    # --- subscribing ---------------------------------------------------------------------

    def test_subscribing_twice_delivers_once(self) -> None:
        transport, handler = self.start_handler()
        transport.subscribe(handler)
        (sent,) = self.publish_to(transport, handler, b"{}")
        assert ids_of(self.collect_until_marker(transport, handler)) == [sent.event_id]

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
        transport, handler = self.start_handler()
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
        assert ids_of(self.collect_until_marker(transport, handler)) == [sent.event_id]

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

    # --- receiving -----------------------------------------------------------------------

    def test_events_of_a_queue_arrive_in_the_order_they_were_published(self) -> None:
        transport, handler = self.start_handler(prefetch=200)
        bodies = [str(number).encode() for number in range(120)]
        for start in range(0, 60, 20):
            self.publish_to(transport, handler, *bodies[start : start + 20])
        for body in bodies[60:]:
            self.publish_to(transport, handler, body)
        assert bodies_of(self.collect(transport, len(bodies))) == bodies

    def test_receive_returns_no_more_than_its_limit(self) -> None:
        transport, handler = self.start_handler()
        self.publish_to(transport, handler, b"1", b"2", b"3", b"4", b"5")
        first = transport.receive(2, self.patience)
        assert 1 <= len(first) <= 2
        assert bodies_of(first + self.collect(transport, 5 - len(first))) == [b"1", b"2", b"3", b"4", b"5"]

    def test_receive_with_a_limit_of_nought_takes_its_time_and_nothing_else(self) -> None:
        transport, handler = self.start_handler()
        (sent,) = self.publish_to(transport, handler, b"{}")
        began = time.monotonic()
        assert transport.receive(0, 0.3) == []
        assert time.monotonic() - began > 0.25
        assert self.collect(transport)[0].event_id == sent.event_id

    def test_receive_without_events_returns_none_when_its_time_is_over(self) -> None:
        transport, _ = self.start_handler()
        transport.receive(10, 0.05)
        began = time.monotonic()
        assert transport.receive(10, 0.3) == []
        assert 0.25 < time.monotonic() - began < self.patience / 2

    def test_receive_without_time_returns_at_once(self) -> None:
        transport, _ = self.start_handler()
        began = time.monotonic()
        assert transport.receive(10, 0) == []
        assert time.monotonic() - began < self.patience / 4

    def test_receive_returns_as_soon_as_there_is_an_event(self) -> None:
        transport, handler = self.start_handler()
        began = time.monotonic()
        with Meanwhile(lambda: self._publish_elsewhere(handler)):
            found: list[Delivery] = []
            while not found and time.monotonic() - began < self.patience:
                found = transport.receive(10, self.patience * 3)
        assert len(found) == 1
        assert time.monotonic() - began < self.patience

    def test_no_more_than_prefetch_deliveries_are_under_way(self) -> None:
        transport, handler = self.start_handler(prefetch=3)
        self.publish_to(transport, handler, *(str(number).encode() for number in range(8)))
        first = self.collect(transport, 3)
        assert transport.receive(10, 0.3) == []
        self.answer(transport, first[:2], Action.ACK)
        second = self.collect(transport, 2)
        assert transport.receive(10, 0.3) == []
        self.answer(transport, first[2:] + second, Action.ACK)
        assert bodies_of(first + second + self.collect(transport, 3)) == [b"%d" % n for n in range(8)]

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
                got += ids_of(batch)
                self.answer(receiver, batch, Action.ACK)
        assert sorted(got) == sorted(message.event_id for message in sent)

    def test_wake_from_another_thread_ends_a_receive(self) -> None:
        transport, _ = self.start_handler()
        for limit in (10, 0):
            assert transport.receive(limit, 0.1) == []
            began = time.monotonic()
            timer = threading.Timer(0.2, transport.wake)
            timer.start()
            assert transport.receive(limit, self.patience * 3) == []
            timer.join()
            assert time.monotonic() - began < self.patience, f"limit {limit}"

    def test_a_wake_just_before_receive_is_not_missed(self) -> None:
        transport, _ = self.start_handler()
        assert transport.receive(10, 0.1) == []
        thread = threading.Thread(target=transport.wake)
        thread.start()
        thread.join()
        began = time.monotonic()
        assert transport.receive(10, self.patience * 3) == []
        assert time.monotonic() - began < self.patience

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
