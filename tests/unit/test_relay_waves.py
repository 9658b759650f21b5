"""How a batch is cut so that the order of a key can be kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domain_event_broker.events import Message
from domain_event_broker.ports import OutboxRow
from domain_event_broker.relay import waves


def row(number: int, key: str | None) -> OutboxRow:
    return OutboxRow(number, 0, Message("a.b", b"{}", str(number), key))


def ids(rows: list[OutboxRow]) -> list[list[int]]:
    return [[each.id for each in wave] for wave in waves(rows)]


def test_rows_of_different_keys_go_together() -> None:
    assert ids([row(1, "a"), row(2, "b"), row(3, None), row(4, None)]) == [[1, 2, 3, 4]]


def test_rows_of_one_key_go_one_after_the_other() -> None:
    assert ids([row(1, "a"), row(2, "b"), row(3, "a"), row(4, "a"), row(5, "b")]) == [[1, 2], [3, 5], [4]]


@given(keys=st.lists(st.sampled_from(["a", "b", "c", None])))
def test_no_wave_holds_a_key_twice_and_no_row_is_lost_or_overtaken(keys: list[str | None]) -> None:
    rows = [row(number, key) for number, key in enumerate(keys)]
    cut = waves(rows)
    for wave in cut:
        held = [each.message.ordering_key for each in wave if each.message.ordering_key]
        assert len(held) == len(set(held))
    flat = [each for wave in cut for each in wave]
    assert sorted(each.id for each in flat) == [each.id for each in rows]
    for key in ("a", "b", "c"):
        sent = [each.id for each in flat if each.message.ordering_key == key]
        assert sent == sorted(sent)
