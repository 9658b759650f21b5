"""``manage.py backfill`` and what it is made of: sent events once more, for one handler."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from domain_event_broker import config, handlers, subscribe
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django import backfill
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import ArchivedEvent, InboxEntry
from domain_event_broker.errors import BrokerUnavailable, PublishFailed
from domain_event_broker.events import Message, decode
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Delivery, PublishOutcome, Stored, Subscription, Transport
from domain_event_broker.transports import memory, open_transport
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db


def settings_now() -> BrokerSettings:
    found = config.current()
    assert found is not None
    return found


@pytest.fixture
def transport(
    settings: Any, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Transport]:
    name = fresh_name("backfill")
    settings.DOMAIN_EVENT_BROKER = f"memory://{name}"
    monkeypatch.setattr(handlers.registry, "_handlers", {})
    opened = open_transport(settings_now())
    yield opened
    opened.close()
    memory.forget(name)


@pytest.fixture
def audit(transport: Transport, fresh_name: Callable[[str], str]) -> str:
    """A handler of the project with a queue; return its name."""
    name = fresh_name("shipping-audit")
    subscribe("order.*", name=name)(lambda event: None)
    transport.subscribe(Subscription(name, ("order.*",), prefetch=1000))
    return name


def ids(rows: Sequence[ArchivedEvent]) -> list[str]:
    return [row.event_id for row in rows]


def waiting(transport: Transport) -> list[Delivery]:
    return transport.receive(1000, 0)


def waiting_ids(transport: Transport) -> list[str]:
    return [delivery.event_id for delivery in waiting(transport)]


def run(*arguments: str) -> str:
    output = io.StringIO()
    call_command("backfill", *arguments, stdout=output)
    return output.getvalue()


def test_sent_events_go_to_one_handler_in_their_order(
    transport: Transport, audit: str, fresh_name: Callable[[str], str]
) -> None:
    other = fresh_name("other")
    transport.declare(Subscription(other, ("order.*",)))
    rows = [stage.sent("order.placed", key=f"order-{number % 3}") for number in range(50)]
    stage.sent("payment.charged")
    text = run(audit, "--yes")
    assert f"{audit}: 50 sent now, 50 in all; done" in text
    deliveries = waiting(transport)
    assert [each.event_id for each in deliveries] == ids(rows)
    assert {each.queue for each in deliveries} == {audit}
    assert [each.body.decode() for each in deliveries] == [row.body for row in rows]
    assert transport.stats([other])[other].ready == 0
    run_ = Backfill.objects.get()
    assert (run_.state, run_.sent, run_.expected) == ("done", 50, 50)


def test_a_dry_run_counts_and_changes_nothing(transport: Transport, audit: str) -> None:
    for _ in range(3):
        stage.sent("order.placed")
    assert f"{audit}: would get 3 sent events (order.*)" in run(audit, "--dry-run")
    assert waiting(transport) == []
    assert not Backfill.objects.exists()


def test_events_are_chosen_by_key_time_object_and_story(transport: Transport, audit: str) -> None:
    old = stage.sent("order.placed", key="order-1")
    ArchivedEvent.objects.filter(pk=old.pk).update(published_at=timezone.now() - timedelta(days=2))
    new = stage.sent("order.cancelled", key="order-2")
    ArchivedEvent.objects.filter(pk=new.pk).update(correlation_id="story-7")
    yesterday = f"{timezone.now() - timedelta(days=1):%Y-%m-%d}"
    for options, chosen in (
        (("--key", "order.placed"), [old.event_id]),
        (("--key", "order.placed", "--key", "order.cancelled"), [old.event_id, new.event_id]),
        (("--since", yesterday), [new.event_id]),
        (("--until", f"{yesterday}T00:00"), [old.event_id]),
        (("--object-id", "order-1"), [old.event_id]),
        (("--correlation-id", "story-7"), [new.event_id]),
    ):
        run(audit, "--yes", *options)
        assert waiting_ids(transport) == chosen, options


def test_nothing_to_send_is_told(transport: Transport, audit: str) -> None:
    assert "no sent event matches (order.*)" in run(audit, "--yes")


class Dying:
    """A transport whose process dies at one of its sends: before, or after the broker has the batch."""

    def __init__(self, transport: Transport, sends: int, *, stored: bool) -> None:
        self._transport = transport
        self._left, self._stored = sends, stored

    def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
        self._left -= 1
        if self._left == 0 and not self._stored:
            raise BrokerUnavailable("gone")
        outcomes: list[PublishOutcome] = self._transport.send_to(queue, messages)  # type: ignore[attr-defined]
        if self._left == 0:
            raise BrokerUnavailable("gone")
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("stored", [False, True])
def test_what_ends_in_the_middle_is_gone_on_with_and_leaves_nothing_out(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    rows = [stage.sent("order.placed") for _ in range(70)]
    with monkeypatch.context() as patched:
        patched.setattr(
            backfill, "open_transport", lambda settings: Dying(open_transport(settings), 2, stored=stored)
        )
        with pytest.raises(CommandError, match="gone") as caught:
            run(audit, "--yes")
        assert caught.value.returncode == 3
    assert Backfill.objects.get().sent == 20
    with pytest.raises(CommandError, match="--resume") as caught:
        run(audit, "--yes")
    assert caught.value.returncode == 1
    assert f"{audit}: 20 of 70 sent" in run("--list")
    assert "done" in run(audit, "--resume")
    arrived = waiting_ids(transport)
    assert list(dict.fromkeys(arrived)) == ids(rows)
    assert len(arrived) == 70 + (50 if stored else 0)
    assert "no back-fill is unfinished" in run("--list")


def test_events_that_are_sent_after_it_began_are_not_part_of_it(transport: Transport, audit: str) -> None:
    before = stage.sent("order.placed")
    chosen = backfill.Chosen(("order.*",))
    begun = backfill.begin("default", audit, chosen, force=False, expected=1, by="somebody")
    stage.sent("order.placed")
    assert backfill.go_on(begun, settings_now())
    assert waiting_ids(transport) == [before.event_id]


def test_who_is_second_at_the_same_back_fill_stops(transport: Transport, audit: str) -> None:
    rows = [stage.sent("order.placed") for _ in range(30)]
    chosen = backfill.Chosen(("order.*",))
    begun = backfill.begin("default", audit, chosen, force=False, expected=30, by="somebody")
    (same,) = backfill.unfinished("default", audit)
    assert backfill.go_on(begun, settings_now())
    assert not backfill.go_on(same, settings_now())
    assert list(dict.fromkeys(waiting_ids(transport))) == ids(rows)


def test_one_that_was_given_up_sends_no_more(transport: Transport, audit: str) -> None:
    stage.sent("order.placed")
    begun = backfill.begin(
        "default", audit, backfill.Chosen(("order.*",)), force=False, expected=1, by="somebody"
    )
    assert "given up" in run(audit, "--give-up")
    assert not backfill.go_on(begun, settings_now())
    assert Backfill.objects.get().state == "given up"
    assert f"no back-fill of {audit!r} is unfinished" in run(audit, "--give-up")


def test_stopping_ends_between_two_batches(transport: Transport, audit: str) -> None:
    for _ in range(30):
        stage.sent("order.placed")
    begun = backfill.begin(
        "default", audit, backfill.Chosen(("order.*",)), force=False, expected=30, by="somebody"
    )
    answers = iter([False, False, True])
    assert not backfill.go_on(begun, settings_now(), stop=lambda: next(answers))
    assert (begun.sent, len(waiting(transport))) == (20, 20)


def take_effect(transport: Transport, handler: Handler) -> list[bool]:
    """Handle what waits; return for each event whether the handler was called."""
    inbox = DjangoInbox()
    return [inbox.run(handler, decode(delivery.body, delivery.event_id)) for delivery in waiting(transport)]


def test_the_inbox_absorbs_what_took_effect_before_and_force_gives_it_anew(
    transport: Transport, audit: str
) -> None:
    known, new = stage.sent("order.placed"), stage.sent("order.placed")
    InboxEntry.objects.create(consumer=audit, event_id=known.event_id, handled_at=timezone.now())
    InboxEntry.objects.create(consumer="other", event_id=known.event_id, handled_at=timezone.now())
    handler = handlers.registry.select([audit])[0]
    run(audit, "--yes")
    assert take_effect(transport, handler) == [False, True]
    run(audit, "--yes", "--force")
    assert take_effect(transport, handler) == [True, True]
    assert InboxEntry.objects.filter(consumer="other", event_id=known.event_id).exists()
    assert InboxEntry.objects.filter(consumer=audit, event_id=new.event_id).exists()


def test_a_forced_one_that_was_killed_after_the_broker_had_a_batch_gives_no_event_twice(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [stage.sent("order.placed") for _ in range(30)]
    for row in rows:
        InboxEntry.objects.create(consumer=audit, event_id=row.event_id, handled_at=timezone.now())
    handler = handlers.registry.select([audit])[0]
    with monkeypatch.context() as patched:
        patched.setattr(
            backfill, "open_transport", lambda settings: Dying(open_transport(settings), 2, stored=True)
        )
        with pytest.raises(CommandError):
            run(audit, "--yes", "--force")
    assert take_effect(transport, handler) == [True] * 30
    run(audit, "--resume")
    assert take_effect(transport, handler) == [False] * 10


def test_an_event_that_was_published_again_is_forgotten_once(transport: Transport, audit: str) -> None:
    """It is in the archive twice, and the second of them may be of a later batch."""
    rows = [stage.sent("order.placed") for _ in range(25)]
    again = stage.sent("order.placed")
    ArchivedEvent.objects.filter(pk=again.pk).update(event_id=rows[0].event_id, body=rows[0].body)
    handler = handlers.registry.select([audit])[0]
    called: list[bool] = []

    class Handling(Dying):
        def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
            outcomes = super().send_to(queue, messages)
            called.extend(take_effect(transport, handler))
            return outcomes

    begun = backfill.begin(
        "default", audit, backfill.Chosen(("order.*",)), force=True, expected=26, by="somebody"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            backfill, "open_transport", lambda settings: Handling(open_transport(settings), 0, stored=True)
        )
        assert backfill.go_on(begun, settings_now())
    assert called == [True] * 25 + [False]


def test_two_that_begin_at_once_do_not_both(transport: Transport, audit: str) -> None:
    chosen = backfill.Chosen(("order.*",))
    first = backfill.begin("default", audit, chosen, force=True, expected=0, by="somebody")
    with pytest.raises(PublishFailed, match="another back-fill of"):
        backfill.begin("default", audit, chosen, force=True, expected=0, by="somebody else")
    assert [each.pk for each in backfill.unfinished("default", audit)] == [first.pk]


def test_who_is_second_at_the_same_back_fill_forgets_nothing(transport: Transport, audit: str) -> None:
    for _ in range(30):
        stage.sent("order.placed")
    chosen = backfill.Chosen(("order.*",))
    begun = backfill.begin("default", audit, chosen, force=True, expected=30, by="somebody")
    (same,) = backfill.unfinished("default", audit)
    assert backfill.go_on(begun, settings_now())
    take_effect(transport, handlers.registry.select([audit])[0])
    assert not backfill.go_on(same, settings_now())
    assert InboxEntry.objects.filter(consumer=audit).count() == 30


def test_an_event_that_the_queue_refuses_ends_it_and_is_tried_again(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [stage.sent("order.placed") for _ in range(3)]

    class Refusing(Dying):
        def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
            stored = self._transport.send_to(queue, messages[:1])  # type: ignore[attr-defined]
            return [*stored, *[PublishOutcome(Stored.REFUSED, "the queue is full")] * (len(messages) - 1)]

    begun = backfill.begin(
        "default", audit, backfill.Chosen(("order.*",)), force=False, expected=3, by="somebody"
    )
    with monkeypatch.context() as patched:
        patched.setattr(
            backfill, "open_transport", lambda settings: Refusing(open_transport(settings), 0, stored=True)
        )
        with pytest.raises(PublishFailed, match=f"{rows[1].event_id}.*the queue is full"):
            backfill.go_on(begun, settings_now())
    assert Backfill.objects.get().sent == 1
    run(audit, "--resume")
    assert waiting_ids(transport) == ids(rows)


def test_large_events_are_sent_few_at_a_time(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "BATCH_BYTES", 1000)
    sizes: list[int] = []

    class Watched(Dying):
        def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
            sizes.append(len(messages))
            return super().send_to(queue, messages)

    monkeypatch.setattr(
        backfill, "open_transport", lambda settings: Watched(open_transport(settings), 0, stored=True)
    )
    rows = [stage.sent("order.placed", data={"pad": "x" * 300}) for _ in range(26)]
    run(audit, "--yes")
    assert sizes == [20, 2, 2, 2]
    assert waiting_ids(transport) == ids(rows)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "name one handler, or use --list"),
        (("a", "b"), 2, "name one handler, or use --list"),
        (("nobody",), 2, "'nobody' is no handler of this project"),
        (("nobody", "--key", "order.*"), 1, "there is no queue 'nobody': run 'manage.py declare_queues'"),
        (("AUDIT", "--key", "order*"), 2, "a wildcard must stand alone"),
        (("AUDIT", "--since", "yesterday"), 2, "--since 'yesterday' is no time"),
        (("AUDIT", "--until", "2026-13-01"), 2, "--until '2026-13-01' is no time"),
        (("AUDIT", "--since", "0001-01-01"), 2, "--since '0001-01-01' is no time"),
        (("AUDIT", "--resume"), 2, "is unfinished"),
        (("AUDIT", "--resume", "--dry-run"), 2, "--dry-run is for a new back-fill, not for --resume"),
        (("AUDIT", "--give-up", "--dry-run"), 2, "--dry-run is for a new back-fill, not for --give-up"),
        (("AUDIT", "--resume", "--key", "a.*"), 2, "--key is for a new back-fill, not for --resume"),
        (("--list", "--object-id", "7"), 2, "--object-id is for a new back-fill, not for --list"),
        (("AUDIT", "--database", "elsewhere"), 2, "there is no database 'elsewhere'"),
    ],
)
def test_wrong_arguments_are_told_with_an_exit_code(
    audit: str, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    with pytest.raises(CommandError, match=re.escape(complaint)) as caught:
        run(*(audit if word == "AUDIT" else word for word in arguments))
    assert caught.value.returncode == code


@pytest.mark.parametrize(("answer", "sent"), [("y\n", 1), ("\n", 0)])
def test_it_asks_before_it_sends(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch, answer: str, sent: int
) -> None:
    stage.sent("order.placed")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    if sent:
        run(audit)
    else:
        with pytest.raises(SystemExit) as exit_code:
            run(audit)
        assert exit_code.value.code == 1
    assert len(waiting(transport)) == sent


def test_where_nobody_answers_it_sends_nothing(
    transport: Transport, audit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.sent("order.placed")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(CommandError, match="use --yes"):
        run(audit)
    assert waiting(transport) == []
