"""Replays that are killed, cut off, left open, or beside each other: no letter is ever nowhere."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
import pytest
from django.core.management import call_command

from domain_event_broker.config import BrokerSettings, parse
from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.failures import Failure, History
from domain_event_broker.ports import Action, DeadLetter, Decision, SiftReport, Subscription
from domain_event_broker.replay import LetterFilter, browse, replay
from domain_event_broker.transports.rabbitmq import RabbitMQTransport, topology, wire
from domain_event_broker.transports.rabbitmq.publishing import Outgoing
from tests.faults.apparatus import Stage
from tests.faults.proxy import Proxy
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, collect

#: Seconds for what takes a moment on a quiet machine.
PATIENCE = 60.0
KILLED = -9


def bury(url: str, queue: str, names: Sequence[str], replays: int = 0) -> None:
    """Put dead letters of these names into the queue for them."""
    failure = Failure("error", "ServiceDown", "no answer", failed_at=1_800_000_000.0)
    headers = {"event-routing-key": f"{queue}.x", **failure.to_headers()}
    if replays:
        headers["event-replays"] = replays
    copies = [
        Outgoing(
            "",
            f"{queue}-dl",
            pika.BasicProperties(message_id=name, delivery_mode=2, headers=headers),
            b'{"routing_key": "%b.x", "data": {}, "uuid_string": "%b"}' % (queue.encode(), name.encode()),
        )
        for name in names
    ]
    transport = RabbitMQTransport(_settings(url))
    try:
        assert len(transport._any_sender().send(copies)) == len(names)
    finally:
        transport.close()


def _settings(url: str) -> BrokerSettings:
    found = parse(url)
    assert found is not None
    return found


class Desk:
    """The dead letters of one handler, on connections of their own."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._open: list[RabbitMQTransport] = []
        self.connect().declare(Subscription(name, (f"{name}.#",)))

    def connect(self, url: str = "") -> RabbitMQTransport:
        """Open a connection that is closed at the end."""
        self._open.append(RabbitMQTransport(_settings(url or self.url)))
        return self._open[-1]

    def letters(self) -> list[str]:
        """Return the names of the dead letters, in their order."""
        found = browse(self.connect().dead_letters(self.name), LetterFilter())
        return [letter.event_id for letter in found]

    def queued(self) -> list[str]:
        """Return the names of the events in the queue, in their order; they are gone from it then."""
        transport = self.connect()
        count = transport.stats([self.name])[self.name].ready
        transport.subscribe(Subscription(self.name, (f"{self.name}.#",), prefetch=5000))
        got = collect(transport, count, PATIENCE)
        answer(transport, got, Action.ACK)
        transport.close()
        return [delivery.event_id for delivery in got]

    def close(self) -> None:
        """Close all connections, and delete the queues."""
        for transport in self._open:
            transport.close()
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for spec in topology.layout_of(Subscription(self.name, ())).all():
                connection.channel().queue_delete(spec.name)


@pytest.fixture
def desk(
    rabbitmq_server: PrivateRabbitMQ,
    fresh_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> Iterator[Desk]:
    """A handler without letters, and nobody who works for it."""
    monkeypatch.setattr(topology, "SETTLE_SECONDS", 0.0)
    settings.DOMAIN_EVENT_BROKER = rabbitmq_server.url()
    made = Desk(rabbitmq_server.url(), fresh_name("replay"))
    yield made
    made.close()


def names_of(count: int) -> list[str]:
    return [f"letter-{number:05d}" for number in range(count)]


# --- killed

MANY = 600


@pytest.mark.parametrize("point", ["letters fetched", "letters sent", "letters acknowledged"])
def test_a_replay_killed_at_its_worst_lines_leaves_each_letter_somewhere(stage: Stage, point: str) -> None:
    assert stage.rabbitmq is not None
    names = names_of(MANY)
    bury(stage.rabbitmq.url(), "moody", names)
    killed = stage.run("replay_dlq", "moody", direct=True, FAULTS_CRASH=point)
    assert killed.wait() == KILLED, killed.output()
    wait_until(lambda: _found(stage) >= set(names), PATIENCE)
    queued = stage.broker.queued("moody")
    assert len(queued) == len(set(queued)), "nothing is in the queue twice before the second run"
    again = stage.run("replay_dlq", "moody", direct=True)
    assert again.wait() == 0, again.output()
    assert stage.broker.letters("moody") == []
    queued = stage.broker.queued("moody")
    assert set(queued) == set(names)
    assert len(queued) <= MANY + 200, "no more than one batch is there twice"


def _found(stage: Stage) -> set[str]:
    return set(stage.broker.queued("moody")) | {name for name, _ in stage.broker.letters("moody")}


def test_a_replay_killed_at_any_moment_leaves_each_letter_somewhere(stage: Stage) -> None:
    assert stage.rabbitmq is not None
    names = names_of(5000)
    bury(stage.rabbitmq.url(), "moody", names)
    replaying = stage.run("replay_dlq", "moody", direct=True)
    wait_until(lambda: stage.broker.depths(["moody"])["moody"] > 100, PATIENCE, interval=0.01)
    replaying.kill()
    wait_until(lambda: _found(stage) == set(names), PATIENCE)
    assert stage.run("replay_dlq", "moody", direct=True).wait() == 0
    assert set(stage.broker.queued("moody")) == set(names)
    assert stage.broker.letters("moody") == []


def test_a_connection_cut_in_the_middle_of_a_replay_loses_no_letter(
    desk: Desk, rabbitmq_server: PrivateRabbitMQ
) -> None:
    names = names_of(1000)
    bury(desk.url, desk.name, names)
    proxy = Proxy(rabbitmq_server.port)
    try:
        transport = desk.connect(desk.url.replace(f":{rabbitmq_server.port}/", f":{proxy.port}/"))
        shown: list[str] = []

        def cut_in_the_middle(letter: DeadLetter) -> None:
            shown.append(letter.event_id)
            if len(shown) == 500:
                proxy.cut()

        with pytest.raises(BrokerUnavailable):
            replay(transport.dead_letters(desk.name), LetterFilter(), progress=cut_in_the_middle)
    finally:
        proxy.close()
    wait_until(lambda: desk.connect().dead_letters(desk.name).count() >= 500, PATIENCE)
    left, queued = desk.letters(), desk.queued()
    assert set(left) | set(queued) == set(names)
    assert len(left) + len(queued) <= len(names) + 400, "two batches at most are there twice"


# --- looked at, and left


def test_leaving_all_of_many_letters_ends_and_keeps_them_in_their_order(desk: Desk) -> None:
    names = names_of(1500)
    bury(desk.url, desk.name, names)
    for _ in range(3):
        assert desk.letters() == names
    assert desk.queued() == []


def test_each_of_many_letters_gets_its_own_decision_and_the_rest_keep_their_order(desk: Desk) -> None:
    names = names_of(1500)
    bury(desk.url, desk.name, names)
    wanted = {name: list(Decision)[number % 3] for number, name in enumerate(names)}
    report = desk.connect().dead_letters(desk.name).sift(lambda letter: wanted[letter.event_id])
    assert report == SiftReport(replayed=500, discarded=500, left=500)
    assert desk.letters() == [name for name in names if wanted[name] is Decision.LEAVE]
    assert desk.queued() == [name for name in names if wanted[name] is Decision.RETRY]


def test_no_letter_comes_back_after_a_replay_said_that_it_is_done(desk: Desk) -> None:
    names = names_of(1500)
    bury(desk.url, desk.name, names)
    transport = desk.connect()
    assert replay(transport.dead_letters(desk.name), LetterFilter()).replayed == 1500
    transport.close()
    assert desk.letters() == []
    assert desk.queued() == names


def test_a_replay_of_a_few_among_many_looks_no_further_than_it_must(desk: Desk) -> None:
    names = names_of(1500)
    bury(desk.url, desk.name, names)
    looked: list[str] = []

    class Looking(LetterFilter):
        def accepts(self, letter: DeadLetter) -> bool:
            looked.append(letter.event_id)
            return letter.event_id.endswith("5")

    report = replay(desk.connect().dead_letters(desk.name), Looking(), limit=3)
    assert (report.replayed, len(looked)) == (3, 36)
    assert desk.queued() == ["letter-00005", "letter-00015", "letter-00025"]
    assert desk.letters() == [
        name for name in names if name not in ("letter-00005", "letter-00015", "letter-00025")
    ]


def test_a_replay_ends_while_new_letters_arrive(desk: Desk) -> None:
    names = names_of(300)
    bury(desk.url, desk.name, names)
    arriving = iter(names_of(10_000))
    shown: list[str] = []

    def another(letter: DeadLetter) -> None:
        shown.append(letter.event_id)
        if len(shown) % 50 == 0:
            bury(desk.url, desk.name, [f"late-{next(arriving)}"])

    report = replay(desk.connect().dead_letters(desk.name), LetterFilter(), progress=another)
    assert report.replayed == 300
    late = desk.letters()
    assert len(late) == 6
    assert all(name.startswith("late-") for name in late)
    assert desk.queued() == names


def test_two_replays_beside_each_other_replay_each_letter_once(desk: Desk) -> None:
    names = names_of(2000)
    bury(desk.url, desk.name, names)
    reports: list[Any] = []

    def one(transport: RabbitMQTransport) -> None:
        reports.append(replay(transport.dead_letters(desk.name), LetterFilter()))

    threads = [threading.Thread(target=one, args=(desk.connect(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sum(report.replayed for report in reports) == 2000
    assert Counter(desk.queued()) == Counter(names)
    assert desk.letters() == []


# --- by hand


def test_an_interactive_replay_may_be_left_open_past_the_heartbeat(
    desk: Desk, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DOMAIN_EVENT_BROKER = f"{desk.url}?heartbeat=1"
    bury(desk.url, desk.name, names_of(3))
    answers = iter("rdl")

    def input_after_a_while(prompt: str = "") -> str:
        threading.Event().wait(3.5)  # the broker gives up a client that is silent for two heartbeats
        return next(answers)

    monkeypatch.setattr("builtins.input", input_after_a_while)
    output = io.StringIO()
    call_command("replay_dlq", desk.name, "--interactive", stdout=output)
    assert "1 replayed, 1 discarded, 1 left" in output.getvalue()
    assert desk.letters() == ["letter-00002"]
    assert desk.queued() == ["letter-00000"]


def test_letters_that_are_decided_one_by_one_count_at_once(desk: Desk) -> None:
    bury(desk.url, desk.name, names_of(40))
    other = desk.connect()
    decided: list[int] = []

    def decide(letter: DeadLetter) -> Decision:
        if len(decided) == 20:
            # What was decided more than a moment ago has happened, also if this process dies now.
            threading.Event().wait(0.6)
        if len(decided) == 21:
            assert other.stats([desk.name])[desk.name].ready == 21
        decided.append(1)
        return Decision.RETRY

    assert desk.connect().dead_letters(desk.name).sift(decide).replayed == 40


# --- round and round


def test_a_letter_that_came_back_three_times_is_left_and_keeps_its_history(desk: Desk) -> None:
    bury(desk.url, desk.name, ["looping"])
    for replays in range(3):
        transport = desk.connect()
        assert replay(transport.dead_letters(desk.name), LetterFilter()).replayed == 1
        transport.subscribe(Subscription(desk.name, (f"{desk.name}.#",)))
        (delivery,) = collect(transport, 1, PATIENCE)
        failure = Failure("error", "ServiceDown", f"again {replays}", attempts=2)
        answer(transport, [delivery], Action.DEAD, failure=failure)
        transport.close()
    letters = desk.connect().dead_letters(desk.name)
    wait_until(lambda: letters.count() == 1, PATIENCE)
    report = replay(letters, LetterFilter())
    assert (report.replayed, report.left, report.looping) == (0, 1, 1)
    (letter,) = browse(letters, LetterFilter())
    assert letter.failure is not None
    assert (letter.failure.message, letter.replays) == ("again 2", 3)
    assert History.from_headers(letter.headers) == History("error: ServiceDown no answer", 1_800_000_000.0, 5)
    assert replay(letters, LetterFilter(), max_replays=None).replayed == 1
    assert wire.replays_of(collect_one(desk).token.properties) == 4


def collect_one(desk: Desk) -> Any:
    """Return the one delivery that is in the queue."""
    transport = desk.connect()
    transport.subscribe(Subscription(desk.name, (f"{desk.name}.#",)))
    (delivery,) = collect(transport, 1, PATIENCE)
    return delivery
