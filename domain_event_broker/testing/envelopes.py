"""What a transport promises about that which travels beside the body."""

from __future__ import annotations

from domain_event_broker.events import (
    HEADER_CAUSATION_ID,
    HEADER_CORRELATION_ID,
    HEADER_SCHEMA_VERSION,
    decode,
)
from domain_event_broker.ports import Action, DeadLetter, Decision, Delivery
from domain_event_broker.testing.workbench import TransportWorkbench

#: The headers of an event that is part of a story, as a publisher writes them.
_WRITTEN: dict[str, str | int] = {
    HEADER_CORRELATION_ID: "größe/story-1",
    HEADER_CAUSATION_ID: "01890000-0000-7000-8000-000000000001",
    HEADER_SCHEMA_VERSION: 2,
    "tenant": "acme",
}


class EnvelopePromises(TransportWorkbench):
    """What a transport promises about that which travels beside the body."""

    def test_story_cause_version_and_headers_survive_retry_dead_letter_and_replay(self) -> None:
        transport, handler = self.start_handler(delays=(0.1,))
        self.publish(transport, self.message(f"{handler.name}.placed", b"{}", _WRITTEN))
        first = self.collect(transport)
        self.answer(transport, first, Action.RETRY, 0.1, self.failure())
        second = self.collect(transport)
        self.answer(transport, second, Action.DEAD, failure=self.failure())
        letters = transport.dead_letters(handler.name)
        self.eventually(letters.count, 1)
        (letter,) = self.browse(letters)
        letters.sift(lambda _: Decision.RETRY)
        third = self.collect(transport)
        stages: list[Delivery | DeadLetter] = [*first, *second, letter, *third]
        for stage in stages:
            assert _written_of(stage) == _WRITTEN

    def test_an_event_that_begins_a_story_is_not_said_to_be_part_of_another(self) -> None:
        transport, handler = self.start_handler()
        sent = self.message(f"{handler.name}.placed", b'{"routing_key": "a.b", "data": {}}')
        self.publish(transport, sent)
        (got,) = self.collect(transport)
        event = decode(got.body, got.event_id, headers=got.headers)
        assert (event.correlation_id, event.causation_id) == (sent.event_id, None)


def _written_of(event: Delivery | DeadLetter) -> dict[str, object]:
    return {name: value for name, value in event.headers.items() if name in _WRITTEN}
