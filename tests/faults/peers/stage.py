"""The stage for a library: real servers, and its programs run by a Python that has it, and not ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pika
import pika.exceptions

from tests.faults.apparatus import CHECKOUT, Program, Stage
from tests.faults.proxy import Proxy
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until

SERVICE = Path(__file__).parent / "service"


@dataclass(frozen=True)
class Peer:
    """A library, and how it is run.

    :param module: its module in ``service/libraries``, and its name in the settings.
    :param requirements: what pip installs; empty: the Python that runs this.
    :param relay: command of its relay; empty: it has none.
    :param subscriber: command of its subscriber.
    :param outbox: query for the ids of events that wait to be sent; empty: it has no outbox.
    :param given_up: query for the ids of events that its relay gave up on.
    :param environment: further variables.
    """

    module: str
    requirements: tuple[str, ...]
    relay: tuple[str, ...]
    subscriber: tuple[str, ...]
    outbox: str = ""
    given_up: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def packages(self) -> list[str]:
        """Names of what is required."""
        return [re.split(r"[^\w-]", each)[0] for each in self.requirements]


_OUTBOX_PATTERN = Peer(
    "outbox_pattern",
    ("django-outbox-pattern==3.2.1", "Django>=5.2,<5.3", "psycopg[binary]>=3.1"),
    ("publish",),
    ("subscribe", "libraries.outbox_pattern.callback", "/topic/ledger.written", "steady"),
    "SELECT body->>'uuid_string' FROM published WHERE status = 1",
    "SELECT body->>'uuid_string' FROM published WHERE status = -1",
)
PEERS = {
    "ours": Peer(
        "ours",
        (),
        ("run_relay",),
        ("run_subscriber",),
        "SELECT event_id FROM domain_event_broker_outbox",
        "SELECT event_id FROM domain_event_broker_held",
    ),
    "domain-event-broker": Peer(
        "older",
        ("domain-event-broker==3.0.2", "Django>=4.2,<4.3", "psycopg[binary]>=3.1"),
        (),
        ("consume",),
    ),
    "django-outbox-pattern": _OUTBOX_PATTERN,
    "django-outbox-pattern-persistent": Peer(
        **{**_OUTBOX_PATTERN.__dict__, "environment": (("PEER_PERSISTENT", "yes"),)}
    ),
}


class StompRabbitMQ(PrivateRabbitMQ):
    """A RabbitMQ that speaks STOMP as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stomp_port = self.lease_port()

    def prepare(self) -> None:
        """Write the configuration, with the plugin."""
        super().prepare()
        self._write("enabled_plugins", "[rabbitmq_stomp].\n")

    def _configuration(self) -> str:
        return f"{super()._configuration()}stomp.listeners.tcp.1 = 127.0.0.1:{self.stomp_port}\n"


class PeerStage(Stage):
    """The programs of a library in place of ours, and queues looked at whatever their names are."""

    def __init__(self, peer: Peer, virtualenvs: Path) -> None:
        super().__init__(rabbitmq=StompRabbitMQ())
        self._owns_broker = True
        self._peer = peer
        self.python = interpreter_of(peer, virtualenvs)
        self.has_relay = bool(peer.relay)

    def __enter__(self) -> PeerStage:
        self._stomp_proxy: Proxy | None = None
        super().__enter__()
        return self

    def __exit__(self, *arguments: object) -> None:
        if self._stomp_proxy is not None:
            self._stomp_proxy.close()
        super().__exit__(*arguments)

    def declare(self) -> None:
        """Let the subscriber make its queue: libraries do so when theirs starts."""
        first = self.subscriber()
        wait_until(lambda: "steady" in self.queues(), 60, first.output, interval=0.5)
        time.sleep(2)  # a quorum queue younger than a second can vanish with a broker that is killed
        self.end_programs()

    def cut(self) -> None:
        """Cut the connections to the broker, by whatever protocol."""
        self.broker_proxy.cut()
        self._stomp().cut()

    def run(
        self, *command: str, direct: bool = False, checkout: Path = SERVICE, **environment: str
    ) -> Program:
        """Start a program of the service."""
        self._names += 1
        log = self.directory / f"{self._names:04d}-{command[0]}.log"
        variables = {
            **os.environ,
            **self._addresses(direct),
            **dict(self._peer.environment),
            **environment,
            "PEER": self._peer.module,
            "FAULTS_STOMP_PORT": str(self._stomp().port),
            # Ours comes from this checkout, the others from their virtualenvs.
            "PYTHONPATH": "" if self._peer.requirements else str(CHECKOUT),
        }
        program = Program(command, variables, log, checkout, (self.python, "program.py"))
        self.programs.append(program)
        return program

    def relay(self, **environment: str) -> Program:
        """Start a relay."""
        return self.run(*self._peer.relay, **environment)

    def subscriber(self, *names: str, **environment: str) -> Program:
        """Start a subscriber; it has one handler."""
        return self.run(*self._peer.subscriber, **environment)

    def _stomp(self) -> Proxy:
        if self._stomp_proxy is None:
            assert isinstance(self.rabbitmq, StompRabbitMQ)
            self._stomp_proxy = Proxy(self.rabbitmq.stomp_port)
        return self._stomp_proxy

    # --- looking

    def queues(self) -> list[str]:
        """Return the names of all queues."""
        assert self.rabbitmq is not None
        return self.rabbitmq.ctl("list_queues", "--no-table-headers", "name").split()

    def wait_until_left(self) -> None:
        """Wait until the broker has noticed that programs are gone, and has put back what they held."""
        broker = self.rabbitmq
        assert broker is not None
        look = ("list_queues", "--no-table-headers", "messages_unacknowledged")
        wait_until(
            lambda: not broker.connections() and not any(map(int, broker.ctl(*look).split())),
            60,
            "connections and what they held are gone",
            interval=1.0,
        )

    def waiting(self) -> int:
        """How many events wait in the outbox."""
        return len(self.ids(self._peer.outbox))

    def given_up(self) -> set[str]:
        """Events that the relay gave up on."""
        return set(self.ids(self._peer.given_up))

    def in_outbox(self) -> set[str]:
        """Events that wait to be sent."""
        return set(self.ids(self._peer.outbox))

    def ids(self, query: str) -> list[str]:
        """Return the first column of a query; nothing where there is none to ask."""
        return [each for (each,) in self.sql(query)] if query else []

    def queued(self) -> dict[str, list[str]]:
        """Return the ids of events by queue."""
        names = self.queues()
        with closing(self._connection()) as connection:
            return {name: _read(connection, name) for name in names}

    def moving(self) -> int:
        """How many events are in the outbox, or ready in a queue that is not one of dead letters."""
        names = [name for name in self.queues() if not is_dead(name)]
        with closing(self._connection()) as connection:
            return self.waiting() + sum(_depth(connection, name) for name in names)

    def state(self) -> tuple[int, int, int]:
        """Return what moves, and how many effects there are."""
        ((effects, ids),) = self.sql("SELECT count(*), count(DISTINCT event_id) FROM faults_effect")
        return self.moving(), effects, ids

    def _connection(self) -> pika.BlockingConnection:
        assert self.rabbitmq is not None
        return pika.BlockingConnection(pika.URLParameters(self.rabbitmq.url()))


def is_dead(queue: str) -> bool:
    """Tell a queue of dead letters by its name, in the manner of each library."""
    return queue.endswith("-dl") or queue.startswith("DLQ.")


def interpreter_of(peer: Peer, virtualenvs: Path) -> Path:
    """Return the Python of a virtualenv of its own, made if it is not there."""
    if not peer.requirements:
        return Path(sys.executable)
    python = virtualenvs / peer.module / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *peer.requirements], check=True)
    return python


def versions(python: Path, names: Iterable[str]) -> str:
    """Return the versions of packages that a Python has."""
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _read(connection: pika.BlockingConnection, queue: str) -> list[str]:
    """Read a queue and give all back."""
    channel = connection.channel()
    found: list[str] = []
    while True:
        method, _, body = channel.basic_get(queue)
        if method is None:
            channel.close()
            return found
        found.append(str(json.loads(body)["uuid_string"]))


def _depth(connection: pika.BlockingConnection, queue: str) -> int:
    channel = connection.channel()
    try:
        count = channel.queue_declare(queue, passive=True).method.message_count
    except pika.exceptions.ChannelClosedByBroker:
        return 0  # a delay queue that ended meanwhile
    channel.close()
    return int(count)
