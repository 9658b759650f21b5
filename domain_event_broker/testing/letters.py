"""What a transport promises about dead letters, and the figures it tells."""

from __future__ import annotations

from dataclasses import replace

from domain_event_broker.failures import MAX_TRACEBACK, Failure
from domain_event_broker.ports import (
    Action,
    DeadLetter,
    Decision,
    SiftReport,
)
from domain_event_broker.testing.samples import AWKWARD_BODIES, FOREIGN_HEADERS
from domain_event_broker.testing.workbench import (
    TransportWorkbench,
    bodies_of,
    foreign_headers_of,
)


class DeadLetterPromises(TransportWorkbench):
    """What a transport promises about dead letters, and the figures it tells."""

    # --- dead letters --------------------------------------------------------------------

    def test_a_dead_letter_keeps_the_event_and_its_failure(self) -> None:
        transport, handler = self.start_handler()
        sent = self.message(f"{handler.name}.größe", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        failure = self.failure("retries-exhausted", attempts=4)
        self.answer(transport, self.collect(transport), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert (letter.queue, letter.body, letter.replays) == (handler.name, sent.body, 0)
        assert (letter.routing_key, letter.event_id) == (sent.routing_key, sent.event_id)
        assert letter.failure == failure
        assert foreign_headers_of(letter) == FOREIGN_HEADERS
        assert self.collect_until_marker(transport, handler) == []

    def test_a_dead_letter_after_retries_keeps_the_first_routing_key(self) -> None:
        transport, handler = self.start_handler(delays=(0.1,))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 0.1, self.failure())
        failure = self.failure("retries-exhausted", attempts=2)
        self.answer(transport, self.collect(transport), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert letter.routing_key == f"{handler.name}.placed"
        assert letter.failure == failure

    def test_a_failure_of_the_greatest_length_is_kept(self) -> None:
        transport, handler = self.start_handler()
        failure = replace(self.failure(), traceback="注\n" * (MAX_TRACEBACK // 2))
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.DEAD, failure=failure)
        (letter,) = self.browse(transport.dead_letters(handler.name))
        assert letter.failure == failure

    def test_without_dead_letters_an_event_that_failed_is_deleted(self) -> None:
        transport, handler = self.start_handler(dead_letter=False)
        deliveries = self.deliver(transport, handler, b"{}")
        self.answer(transport, deliveries, Action.DEAD, failure=self.failure())
        assert self.collect_until_marker(transport, handler) == []
        letters = transport.dead_letters(handler.name)
        assert letters.count() == 0
        assert self.browse(letters) == []

    def test_looking_at_dead_letters_shows_all_once_oldest_first_and_ends(self) -> None:
        transport, handler = self.start_handler()
        bodies = [b"%d" % number for number in range(12)]
        self.dead_letters_with(transport, handler, *bodies)
        letters = self.connect().dead_letters(handler.name)
        assert bodies_of(self.browse(letters)) == bodies
        self.eventually(letters.count, len(bodies))

    def test_looking_thirty_times_changes_nothing(self) -> None:
        transport, handler = self.start_handler()
        self.dead_letters_with(transport, handler, b"\xff", b"\x00", b"")
        letters = self.connect().dead_letters(handler.name)
        first = self.browse(letters)
        for _ in range(30):
            assert self.browse(letters) == first
        self.eventually(letters.count, 3)
        assert transport.receive(10, 0.1) == []

    def test_a_replayed_event_starts_anew(self) -> None:
        transport, handler = self.start_handler(delays=(0.1,))
        sent = self.message(f"{handler.name}.größe", b"\xff\x00", FOREIGN_HEADERS)
        self.publish(transport, sent)
        for replays in range(3):
            self.answer(transport, self.collect(transport), Action.RETRY, 0.1, self.failure())
            self.answer(transport, self.collect(transport), Action.DEAD, failure=self.failure(attempts=2))
            letters = self.connect().dead_letters(handler.name)
            self.eventually(letters.count, 1)
            assert self.sift_all(letters, Decision.RETRY) == ([replays], SiftReport(replayed=1))
            (again,) = self.collect(transport)
            assert (again.queue, again.body, again.retries) == (handler.name, sent.body, 0)
            assert (again.routing_key, again.event_id) == (sent.routing_key, sent.event_id)
            assert Failure.from_headers(again.headers) is None
            assert foreign_headers_of(again) == FOREIGN_HEADERS
            self.eventually(letters.count, 0)
            self.answer(transport, [again], Action.REQUEUE)

    def test_a_replayed_event_reaches_its_own_handler_only(self) -> None:
        transport, (one, other) = self.start_two_handlers()
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
        transport, handler = self.start_handler(delays=(0.1,))
        self.answer(transport, self.deliver(transport, handler, *AWKWARD_BODIES), Action.RETRY, 0.1)
        retried = self.collect(transport, len(AWKWARD_BODIES))
        assert sorted(bodies_of(retried)) == sorted(AWKWARD_BODIES)
        self.answer(transport, retried, Action.DEAD, failure=self.failure())
        letters = transport.dead_letters(handler.name)
        self.eventually(letters.count, len(AWKWARD_BODIES))
        letters.sift(lambda letter: Decision.RETRY)
        assert sorted(bodies_of(self.collect(transport, len(AWKWARD_BODIES)))) == sorted(AWKWARD_BODIES)

    def test_a_discarded_letter_is_gone(self) -> None:
        transport, handler = self.start_handler()
        letters = self.dead_letters_with(transport, handler, b"1", b"2")
        assert self.sift_all(letters, Decision.DISCARD)[1] == SiftReport(discarded=2)
        self.eventually(letters.count, 0)
        assert self.collect_until_marker(transport, handler) == []

    def test_each_letter_gets_its_own_decision(self) -> None:
        transport, handler = self.start_handler()
        letters = self.dead_letters_with(transport, handler, b"retry", b"leave", b"discard", b"leave")
        report = letters.sift(lambda letter: Decision(letter.body.decode()))
        assert report == SiftReport(replayed=1, discarded=1, left=2)
        self.eventually(letters.count, 2)
        assert bodies_of(self.collect_until_marker(transport, handler)) == [b"retry"]
        assert bodies_of(self.browse(letters)) == [b"leave", b"leave"]

    def test_sifting_stops_at_its_limit(self) -> None:
        transport, handler = self.start_handler()
        letters = self.dead_letters_with(transport, handler, b"1", b"2", b"3")
        assert bodies_of(self.browse(letters, limit=2)) == [b"1", b"2"]
        self.eventually(letters.count, 3)
        assert letters.sift(lambda letter: Decision.RETRY, limit=1) == SiftReport(replayed=1)
        self.eventually(letters.count, 2)
        assert bodies_of(self.browse(letters)) == [b"2", b"3"]
        assert letters.sift(lambda letter: Decision.DISCARD, limit=0) == SiftReport()

    def test_a_decision_that_fails_leaves_its_letter_and_the_rest(self) -> None:
        transport, handler = self.start_handler()
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
        assert bodies_of(self.browse(letters)) == [b"2", b"3"]
        assert bodies_of(self.collect_until_marker(transport, handler)) == [b"1"]

    def test_an_event_that_dies_while_sifting_is_not_shown(self) -> None:
        transport, handler = self.start_handler()
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

    # --- figures -------------------------------------------------------------------------

    def test_stats_tell_whether_a_queue_exists(self) -> None:
        transport, handler = self.start_handler()
        absent = self.fresh_name()
        stats = transport.stats([handler.name, absent])
        assert stats[handler.name].exists is True
        assert stats[absent].exists is False
        assert (stats[absent].ready, stats[absent].delayed, stats[absent].dead) == (0, 0, 0)

    def test_stats_tell_what_is_ready_delayed_and_dead(self) -> None:
        transport, handler = self.start_handler(delays=(300.0,), prefetch=3)
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
