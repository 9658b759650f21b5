"""The stage of the fault suite: servers of its own, proxies before them, and the real programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import psycopg

from tests.faults.account import Account, BrokerView, DatabaseView, RabbitMQView
from tests.faults.proxy import Proxy
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import TimedOut, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
#: How a program of the project is run.
INTERPRETER = (sys.executable, "-m", "tests.faults.project")
DATABASE = "faults"
#: Handlers that run; ``spy`` never does.
HANDLERS = ("steady", "moody", "lethal", "slow")
ALL_HANDLERS = (*HANDLERS, "odd", "spy")
#: Seconds within which the broker has moved what it moves itself: it tries again after three minutes.
MOVED_SECONDS = 240.0
#: Lets publishers make no event that kills the process of ``moody``: a test of something else would wait
#: for it in vain.
SPARING = {"FAULTS_SPARE": "deadly"}
#: Tables that an empty stage has empty.
TABLES = (
    "faults_counter, faults_deed, faults_effect, domain_event_broker_outbox, domain_event_broker_held, "
    "domain_event_broker_archive, domain_event_broker_inbox, domain_event_broker_delivery, "
    "domain_event_broker_dead, domain_event_broker_relay"
)


class Program:
    """A process of the project, with what it printed in a file."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        checkout: Path = CHECKOUT,
        interpreter: Sequence[str | Path] = INTERPRETER,
    ) -> None:
        self._command, self._environment, self.log = command, environment, log
        self._checkout, self._interpreter = checkout, interpreter
        self.killed = False
        self.asked_to_stop = False
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*interpreter, *command],
                cwd=checkout,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __repr__(self) -> str:
        return f"<{' '.join(self._command)}, pid {self._process.pid}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has said, since it was started, that it listens to signals."""
        return b"Ctrl-C stops" in self.log.read_bytes()[self._log_start :]

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def show_stacks(self) -> None:
        """Let it print where each of its threads is, if it runs."""
        if self.exit_code is None and self.is_ready:
            size = len(self.output())
            self.send(signal.SIGUSR1)
            with suppress(TimedOut):
                wait_until(lambda: len(self.output()) > size, 2)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.killed = True
        self._process.kill()
        self._process.wait()

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM; return the exit code."""
        self.asked_to_stop = True
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} goes on after {timeout:g} s:\n{self.output()[-3000:]}") from None

    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def again(self) -> Program:
        """Start another one like it."""
        return Program(self._command, self._environment, self.log, self._checkout, self._interpreter)


class Stage:
    """PostgreSQL and, for ``rabbitmq``, a broker, each behind a proxy; both are ours to kill.

    :param transport: ``"rabbitmq"`` or ``"database"``.
    :param database_settings: further settings of PostgreSQL.
    :param postgres: a server made for this stage, not started yet.
    :param rabbitmq: the running broker of another stage, which is empty meanwhile.
    """

    def __init__(
        self,
        transport: str = "rabbitmq",
        database_settings: Mapping[str, str] | None = None,
        *,
        postgres: PrivatePostgreSQL | None = None,
        rabbitmq: PrivateRabbitMQ | None = None,
    ) -> None:
        self.transport = transport
        self.directory = Path(tempfile.mkdtemp(prefix="faults-"))
        self.programs: list[Program] = []
        #: The database that programs use and the account is drawn from.
        self.database = DATABASE
        #: Further variables of the environment of all programs.
        self.environment: dict[str, str] = {}
        self.postgres = postgres or PrivatePostgreSQL(
            {"max_connections": "60", "idle_session_timeout": "0", **(database_settings or {})}
        )
        self.rabbitmq = rabbitmq or (PrivateRabbitMQ() if transport == "rabbitmq" else None)
        self._owns_broker = rabbitmq is None
        self._proxies: list[Proxy] = []
        self._names = 0

    def __enter__(self) -> Stage:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        self.postgres.start()
        self.postgres.create_database(DATABASE)
        self.database_proxy = self._proxy(self.postgres.port)
        if self.rabbitmq is not None:
            if self._owns_broker:
                self.rabbitmq.start()
            self.broker_proxy = self._proxy(self.rabbitmq.port)
        migrating = self.run("migrate", "--run-syncdb", "-v0")
        assert migrating.wait() == 0, migrating.output()
        self.declare()

    def __exit__(self, *_: object) -> None:
        self.end_programs()
        for proxy in self._proxies:
            proxy.close()
        self.postgres.close()
        if self.rabbitmq is not None and self._owns_broker:
            self.rabbitmq.close()
        rmtree(self.directory, ignore_errors=True)

    def _proxy(self, port: int) -> Proxy:
        self._proxies.append(Proxy(port))
        return self._proxies[-1]

    def declare(self) -> None:
        """Make the queues of all handlers."""
        declaring = self.run("declare_queues", *ALL_HANDLERS, direct=True)
        assert declaring.wait() == 0, declaring.output()

    def reset(self) -> None:
        """End the programs, and empty tables, queues and dead letters."""
        self.end_programs()
        self.environment.clear()
        self.database = DATABASE
        self.broker.empty(ALL_HANDLERS)
        self.sql(f"TRUNCATE {TABLES}")
        self.sql("UPDATE domain_event_broker_lease SET owner = '', lease_until = 0")
        for pattern in ("died-*", "crash-*", "began-*", self.published_log.name):
            for trace in self.directory.glob(pattern):
                trace.unlink()

    def end_programs(self) -> None:
        """Kill every program that still runs."""
        for program in self.programs:
            if program.exit_code is None:
                program.kill()
        self.programs.clear()

    # --- programs

    def run(
        self, *command: str, direct: bool = False, checkout: Path = CHECKOUT, **environment: str
    ) -> Program:
        """Start a program of the project.

        :param direct: past the proxies.
        :param checkout: where the code is; that of another release, perhaps.
        :param environment: further variables, such as ``FAULTS_CRASH``.
        """
        self._names += 1
        log = self.directory / f"{self._names:04d}-{command[0]}.log"
        variables = {**os.environ, **self._addresses(direct), **self.environment, **environment}
        variables["PYTHONPATH"] = str(checkout)
        program = Program(command, variables, log, checkout)
        self.programs.append(program)
        return program

    def relay(self, **environment: str) -> Program:
        """Start a relay."""
        return self.run("run_relay", **environment)

    def subscriber(self, *names: str, **environment: str) -> Program:
        """Start a subscriber for the named handlers."""
        return self.run("run_subscriber", *names, **environment)

    def publish(
        self,
        count: int,
        routing_key: str = "faults.done",
        event_ids: Sequence[str] = (),
        seconds: float = 0,
    ) -> None:
        """Publish so many events, and wait until they are committed.

        Unless they are asked for by name, none is deadly to a subscriber of ``moody``.

        :param seconds: what the handler ``slow`` takes for each.
        """
        command = ("publish-some", str(count), routing_key, *event_ids)
        publishing = self.run(*command, direct=True, FAULTS_SECONDS=str(seconds), **SPARING)
        assert publishing.wait() == 0, publishing.output()

    def publisher(self, pause: float = 0.01) -> Program:
        """Start a program that publishes until it is killed; none of its events is deadly."""
        return self.run("publish", str(self.published_log), "1", str(pause), **SPARING)

    @property
    def published_log(self) -> Path:
        """What :meth:`publisher` was told of each of its transactions."""
        return self.directory / "published"

    def _addresses(self, direct: bool) -> dict[str, str]:
        database = self.postgres.port if direct else self.database_proxy.port
        broker = "database:"
        if self.rabbitmq is not None:
            broker = self.rabbitmq.url() + "?heartbeat=3"
            if not direct:
                broker = broker.replace(f":{self.rabbitmq.port}/", f":{self.broker_proxy.port}/")
        return {
            "FAULTS_DATABASE": self.postgres.url(self.database).replace(
                f":{self.postgres.port}/", f":{database}/"
            ),
            "FAULTS_BROKER": broker,
            "FAULTS_DIRECTORY": str(self.directory),
        }

    # --- looking

    def session(self) -> psycopg.Connection[Any]:
        """Open a session of the database past the proxy, in autocommit."""
        return psycopg.connect(self.postgres.dsn(self.database), autocommit=True)

    def sql(self, statement: str) -> list[Any]:
        """Run a statement past the proxy; return its rows."""
        with self.session() as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    @property
    def broker(self) -> BrokerView:
        """What is in the queues."""
        if self.rabbitmq is not None:
            return RabbitMQView(self.rabbitmq.url())
        return DatabaseView(self.sql)

    def account(self, handlers: Sequence[str] = ("steady", "moody"), spied: Sequence[str] = ()) -> Account:
        """Where each event is, for each of the handlers.

        An event that RabbitMQ itself takes from a delay queue to the queue of its handler is for a moment in
        neither, as far as a client can see; for minutes, if that queue was deleted and made anew meanwhile
        (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering). What is lost stays lost: if something is
        missing, it is looked for until then.

        :param spied: what was taken out of the queue of the spy before.
        """
        accounts: list[Account] = []

        def complete() -> bool:
            accounts[:] = [Account.draw(self.sql, self.broker, handlers, spied)]
            return not any(each.lost for each in accounts[0].handlers.values())

        with suppress(TimedOut):
            wait_until(complete, MOVED_SECONDS, interval=1.0)
        return accounts[0]

    def effects(self, handler: str) -> int:
        """How many effects a handler had."""
        return int(self.sql(f"SELECT count(*) FROM faults_effect WHERE handler = '{handler}'")[0][0])

    def archived(self) -> int:
        """How many events relays took out of the outbox as sent."""
        return int(self.sql("SELECT count(*) FROM domain_event_broker_archive")[0][0])

    def waiting(self) -> int:
        """How many events wait to be sent."""
        outbox = "(SELECT count(*) FROM domain_event_broker_outbox)"
        held = "(SELECT count(*) FROM domain_event_broker_held WHERE state = 'retrying')"
        return int(self.sql(f"SELECT {outbox} + {held}")[0][0])

    def wait_until_quiet(self, handlers: Sequence[str], timeout: float = 60.0) -> None:
        """Wait until nothing is on its way any more: outbox, queues and delays are empty, effects rest."""
        seen: list[Any] = []

        def quiet() -> bool:
            state = [self.waiting(), self.broker.depths(handlers), self._results()]
            seen[:] = [*seen[-2:], state]
            moving = state[0] or any(state[1].values())
            return not moving and len(seen) == 3 and all(each == state for each in seen)

        wait_until(quiet, timeout, lambda: f"quiet; the last looks: {seen}", interval=0.3)

    def _results(self) -> Any:
        return self.sql(
            "SELECT count(*), (SELECT count(*) FROM domain_event_broker_inbox) FROM faults_effect"
        )

    def traces(self) -> str:
        """The last lines of the logs of all programs, for the message of a failure."""
        for program in self.programs:
            program.show_stacks()
        return "\n".join(f"--- {each}\n{each.output()[-4000:]}" for each in self.programs)


@contextmanager
def healing(act: Any) -> Iterator[None]:
    """Call ``act`` at the end, so that a test that fails leaves the stage whole."""
    try:
        yield
    finally:
        act()
