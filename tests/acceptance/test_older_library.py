"""Services on domain-event-broker 3.0.2 and ours over one broker, in both directions.

The same two programs (``tests/acceptance/service``) run on either library, as they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from domain_event_broker import DomainEvent
from tests.acceptance.shop import CHECKOUT, developers_environment, newcomers_environment, run
from tests.harness.waiting import wait_until

PROGRAMS = Path(__file__).parent / "service"
SHOP = CHECKOUT / "example_project"
#: Seconds in which a message gets from one service to the other.
PATIENCE = 20
#: What JSON can do, and what often goes wrong on the way.
DATA = {"text": "Zażółć gęślą jaźń ☃ 𝄞", "nested": [{"a": None}, [1, -2.5, 1e300]], "": True, "big": 2**60}
EVENT: dict[str, Any] = {
    "routing_key": "user.registered",
    "data": DATA,
    "domain_object_id": "u-1",
    "uuid_string": "3f2c9d1e-0000-4000-8000-00000000cafe",
    "timestamp": 1_700_000_000.25,
}

Calls = Callable[[], list[dict[str, Any]]]


class Service:
    """A service that uses one of the two libraries, without Django."""

    def __init__(self, python: Path | str, environment: dict[str, str], url: str, folder: Path) -> None:
        self._python = python
        self._environment = environment
        self._url = url
        self._folder = folder

    def publish(self, *events: dict[str, Any]) -> list[str]:
        """Publish events; return their identities."""
        done = subprocess.run(
            [self._python, PROGRAMS / "publish.py", self._url],
            input="\n".join(map(json.dumps, events)),
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout.split()

    @contextmanager
    def subscriber(self, name: str, *arguments: str) -> Iterator[Calls]:
        """Run a subscriber; yields a function that returns the calls of its handler so far."""
        path = self._folder / f"calls-of-{name}"
        with (
            path.open("w") as output,
            subprocess.Popen(
                [self._python, PROGRAMS / "subscribe.py", self._url, name, *arguments],
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                wait_until(lambda: "ready\n" in path.read_text(), PATIENCE, path.read_text)
                yield lambda: [json.loads(line) for line in path.read_text().splitlines() if line[0] == "{"]
            finally:
                process.kill()


class Shop:
    """The example shop on SQLite, and on the broker that it shares with the old service."""

    def __init__(self, folder: Path, url: str) -> None:
        database = str(folder / "shop.sqlite3")
        self._environment = developers_environment(SHOP_DATABASE=database, DOMAIN_EVENT_BROKER=url)
        self._log = folder / "subscriber.log"
        self.manage("migrate")

    def manage(self, *words: str, code: int = 0) -> str:
        """Run one of the shop's commands to its end."""
        done = run([sys.executable, "manage.py", *words], self._environment, SHOP)
        assert done.returncode == code, done.stdout
        return done.stdout

    def place_order(self) -> str:
        """Place an order with a note; return its number."""
        return self._answer("place_order(PRODUCTS['kite'], 1, 'Cork', 'Ring twice.').number")

    def timeline(self, number: str) -> list[str]:
        """Return the routing keys in an order's timeline."""
        entries = f"TimelineEntry.objects.filter(order_id=Order.id_of('{number}'))"
        return self._answer(f"' '.join({entries}.values_list('routing_key', flat=True))").split()

    @contextmanager
    def handling(self, events: int) -> Iterator[None]:
        """Run ``run_subscriber orders-timeline`` until it has handled so many events."""
        with (
            self._log.open("w") as output,
            subprocess.Popen(
                [sys.executable, "manage.py", "run_subscriber", "orders-timeline"],
                cwd=SHOP,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                yield
                wait_until(lambda: self._handled() >= events, PATIENCE, self._log.read_text)
            finally:
                process.terminate()
                assert process.wait(PATIENCE) == 0

    def _handled(self) -> int:
        return self._log.read_text().count('"outcome": "handled"')

    def _answer(self, expression: str) -> str:
        """Return what an expression comes to in the shop's shell."""
        names = (
            "from orders.catalogue import PRODUCTS; from orders.services import place_order; "
            "from orders.models import Order, TimelineEntry; "
        )
        output = self.manage("shell", "-c", f"{names}print('answer:', {expression})")
        return output.rpartition("answer:")[2].strip()


@pytest.fixture
def theirs(old_python: Path, broker_url: str, tmp_path: Path) -> Service:
    """A service on the older library."""
    return Service(old_python, newcomers_environment(tmp_path / "home"), broker_url, tmp_path)


@pytest.fixture
def ours(broker_url: str, tmp_path: Path) -> Service:
    """A service on ours."""
    return Service(sys.executable, developers_environment(), broker_url, tmp_path)


@pytest.fixture
def shop(broker_url: str, tmp_path: Path) -> Shop:
    """The shop, which is on ours."""
    return Shop(tmp_path, broker_url)


def test_the_two_services_do_not_run_on_one_and_the_same_library(old_python: Path) -> None:
    code = "import domain_event_broker as library; print(library.__file__)"
    environments = {
        old_python: newcomers_environment(Path.home()),
        Path(sys.executable): developers_environment(),
    }
    files = {run([python, "-c", code], each, Path("/")).stdout for python, each in environments.items()}
    assert len(files) == 2, files


@pytest.mark.parametrize("direction", ["old to new", "new to old"])
def test_an_event_arrives_unchanged(direction: str, theirs: Service, ours: Service) -> None:
    sender, receiver = (theirs, ours) if direction == "old to new" else (ours, theirs)
    with receiver.subscriber("audit", "user.*") as calls:
        assert sender.publish(EVENT) == [EVENT["uuid_string"]]
        wait_until(calls, PATIENCE)
    assert calls() == [{**EVENT, "retries": 0}]


@pytest.mark.parametrize("direction", ["old to new", "new to old"])
def test_bytes_given_to_a_publisher_arrive_unchanged(direction: str, theirs: Service, ours: Service) -> None:
    sender, receiver = (theirs, ours) if direction == "old to new" else (ours, theirs)
    with receiver.subscriber("audit", "user.*") as calls:
        sender.publish({"body": DomainEvent(**EVENT).to_json(), "routing_key": "user.registered"})
        wait_until(calls, PATIENCE)
    assert calls() == [{**EVENT, "retries": 0}]


def test_our_outbox_and_relay_feed_the_old_subscriber(theirs: Service, shop: Shop) -> None:
    with theirs.subscriber("audit", "order.#") as calls:
        number = shop.place_order()
        assert calls() == [], "the outbox holds it until a relay comes"
        shop.manage("run_relay", "--drain")
        wait_until(lambda: len(calls()) == 2, PATIENCE)
    assert [call["routing_key"] for call in calls()] == ["order.placed", "order.note_added"]
    assert {call["domain_object_id"] for call in calls()} == {number}
    assert calls()[1]["data"] == {"text": "Ring twice."}


def test_the_old_publisher_feeds_run_subscriber(theirs: Service, shop: Shop) -> None:
    number = shop.place_order()
    event = {"routing_key": "payment.gift_card_used", "data": {}, "domain_object_id": number}
    shop.manage("declare_queues")
    with shop.handling(2):
        theirs.publish(*[{**event, "uuid_string": identity} for identity in ("one", "one", "another")])
    assert shop.timeline(number) == ["payment.gift_card_used"] * 2, "the same event twice is one"


def test_retries_of_either_side_are_seen_by_that_side_alone(theirs: Service, ours: Service) -> None:
    with (
        theirs.subscriber("audit-old", "user.*", "1", "3") as their_calls,
        ours.subscriber("audit-new", "user.*", "2", "3") as our_calls,
    ):
        events = {*theirs.publish({"routing_key": "user.registered", "data": {}})}
        events |= {*ours.publish({"routing_key": "user.renamed", "data": {}})}
        wait_until(lambda: len(their_calls()) >= 4 and len(our_calls()) >= 6, PATIENCE)
    for calls, most in ((their_calls(), 1), (our_calls(), 2)):
        wanted = [(event, retries) for event in events for retries in range(most + 1)]
        assert sorted((call["uuid_string"], call["retries"]) for call in calls) == sorted(wanted)


def test_a_queue_of_the_old_library_moves_to_ours_with_the_events_in_it(theirs: Service, shop: Shop) -> None:
    number = shop.place_order()
    event = {"routing_key": "payment.gift_card_used", "data": {}, "domain_object_id": number}
    with theirs.subscriber("orders-timeline", "payment.#"):
        pass
    theirs.publish(*[event] * 5)
    refused = shop.manage("declare_queues", code=1)
    assert "the queue 'orders-timeline' exists with other arguments" in refused
    assert "declare_queues --migrate" in refused
    shop.manage("declare_queues", "--migrate")
    with shop.handling(6):
        theirs.publish(event)
    assert shop.timeline(number) == ["payment.gift_card_used"] * 6
