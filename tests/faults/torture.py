"""Torture: random faults while publishers, relays and subscribers run; then the account, event by event.

    python -m tests.faults.torture --minutes 10 --seed 7 --transport rabbitmq

The seed gives the plan of faults, their times and their lengths. What the processes make of it is
theirs. At the end everything is healed and drained, and the law is checked: nothing lost, nothing
from a transaction that rolled back, each effect once, order per key on first arrival. Exit code: 0
if the law holds, 1 if not.
"""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.faults.account import Account
from tests.faults.apparatus import DATABASE, Program, Stage
from tests.harness.server import ServerError

HANDLERS = ("steady", "moody")
#: Seconds between two faults: they overlap with the recovery from the last one.
PAUSE = (0.5, 4.0)
#: Seconds to heal and drain at the end.
DRAIN_SECONDS = 120.0
#: Mean seconds between two events of one publisher.
PUBLISH_PAUSE = 0.015


@dataclass(frozen=True)
class Fault:
    """A fault of the plan.

    :param at: seconds after the start.
    :param dice: a number for what is chosen when it comes.
    :param length: seconds it lasts, where it lasts.
    """

    at: float
    name: str
    dice: int
    length: float


def plan(seed: int, seconds: float, transport: str) -> list[Fault]:
    """Return the faults of a seed, in the order of their times."""
    dice = random.Random(f"{seed} {transport}")
    weights = {name: weight for name, (weight, needs, _) in FAULTS.items() if needs in ("", transport)}
    faults, at = [], 1.0
    while at < seconds:
        (name,) = dice.choices(list(weights), list(weights.values()))
        faults.append(Fault(at, name, dice.randrange(1000), dice.choice((0.3, 1.0, 2.0, 4.0, 7.0))))
        at += dice.uniform(*PAUSE)
    return faults


class Torture:
    """Two publishers, two relays and two subscribers on a stage, kept going as a supervisor would."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.log = stage.directory / "published"
        self.publishers = [self._publisher(seed * 10 + number) for number in range(2)]
        self.relays = [stage.relay(), stage.relay()]
        self.subscribers = [stage.subscriber(*HANDLERS), stage.subscriber(*HANDLERS)]
        self.done: Counter[str] = Counter()
        self.strange_ends: list[str] = []
        self._frozen: list[tuple[float, Program]] = []
        self._heal: list[tuple[float, Callable[[], object]]] = []

    @property
    def fleets(self) -> tuple[list[Program], ...]:
        """The lists of programs that are kept going."""
        return self.publishers, self.relays, self.subscribers

    def run(self, faults: list[Fault], seconds: float) -> None:
        """Let the faults happen at their times."""
        start = time.monotonic()
        for fault in faults:
            self._live_until(start + fault.at)
            FAULTS[fault.name][2](self, fault)
            self.done[fault.name] += 1
        self._live_until(start + seconds)

    def heal(self) -> None:
        """End publishing and all that is wrong."""
        for publisher in self.publishers:
            publisher.kill()
        self.publishers.clear()
        for _, act in self._heal:
            act()
        self._heal.clear()
        self._mend()

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something in so many seconds: other faults happen meanwhile."""
        self._heal.append((time.monotonic() + seconds, act))

    def replace(self, fleet: list[Program], victim: Program) -> None:
        """Start a program in the place of one that ended."""
        with suppress(ValueError):
            successor = victim.again()
            fleet[fleet.index(victim)] = successor
            self.stage.programs.append(successor)

    def drain(self) -> None:
        """Wait until all is quiet, with programs that die by an event's fate started again."""
        end = time.monotonic() + DRAIN_SECONDS
        while True:
            self._mend()
            try:
                self.stage.wait_until_quiet(HANDLERS, 2.0)
                return
            except AssertionError:
                if time.monotonic() > end:
                    raise

    def _live_until(self, moment: float) -> None:
        while time.monotonic() < moment:
            self._mend()
            time.sleep(0.05)

    def _mend(self) -> None:
        due = [each for each in self._heal if each[0] <= time.monotonic()]
        self._heal = [each for each in self._heal if each not in due]
        for _, act in due:
            act()
        for fleet in self.fleets:
            for program in list(fleet):
                if program.exit_code is not None:
                    self._note_end(fleet, program)
                    self.replace(fleet, program)

    def _note_end(self, fleet: list[Program], program: Program) -> None:
        if program.killed or (program.asked_to_stop and program.exit_code == 0):
            return
        if program.asked_to_stop and program.exit_code == -signal.SIGTERM and not program.is_ready:
            return  # it was starting, and could not do better yet
        if fleet is self.subscribers and program.exit_code == -signal.SIGKILL:
            self.done["(subscriber killed by its handler)"] += 1
            return
        self.strange_ends.append(f"{program} ended with {program.exit_code}:\n{program.output()[-1500:]}")

    def _publisher(self, seed: int) -> Program:
        return self.stage.run("publish", str(self.log), str(seed), str(PUBLISH_PAUSE))


# --- faults


def _kill(fleet: str) -> Callable[[Torture, Fault], None]:
    def act(torture: Torture, fault: Fault) -> None:
        programs: list[Program] = getattr(torture, fleet)
        programs[fault.dice % len(programs)].kill()

    return act


def _terminate(fleet: str) -> Callable[[Torture, Fault], None]:
    """SIGTERM; whoever has not ended after a while is killed, as a supervisor does."""

    def act(torture: Torture, fault: Fault) -> None:
        programs: list[Program] = getattr(torture, fleet)
        victim = programs[fault.dice % len(programs)]
        if victim.exit_code is not None or victim.asked_to_stop:
            return  # a second SIGTERM means: at once
        victim.asked_to_stop = True
        victim.send(signal.SIGTERM)

        def kill_if_stuck() -> None:
            if victim.exit_code is None:
                torture.done["(SIGKILL 15 s after SIGTERM)"] += 1
                victim.kill()

        torture.later(15.0, kill_if_stuck)

    return act


def _freeze(fleet: str) -> Callable[[Torture, Fault], None]:
    """SIGSTOP, up to more than two leases; SIGCONT."""

    def act(torture: Torture, fault: Fault) -> None:
        programs: list[Program] = getattr(torture, fleet)
        victim = programs[fault.dice % len(programs)]
        victim.send(signal.SIGSTOP)
        torture.later(fault.length, lambda: victim.send(signal.SIGCONT))

    return act


def _kill_broker(torture: Torture, fault: Fault) -> None:
    broker = torture.stage.rabbitmq
    assert broker is not None
    broker.thaw()
    broker.kill()
    time.sleep(fault.length / 4)
    broker.start()


def _restart_broker(torture: Torture, fault: Fault) -> None:
    broker = torture.stage.rabbitmq
    assert broker is not None
    broker.stop()
    time.sleep(fault.length / 4)
    broker.start()


def _freeze_broker(torture: Torture, fault: Fault) -> None:
    broker = torture.stage.rabbitmq
    assert broker is not None
    broker.freeze()
    time.sleep(fault.length)
    broker.thaw()


def _alarm(torture: Torture, fault: Fault) -> None:
    """Short of memory: publishers are blocked."""
    broker = torture.stage.rabbitmq
    assert broker is not None
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    time.sleep(fault.length)
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1GB")


def _cut_broker(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.cut()


def _stall_broker(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.stall()
    torture.later(fault.length, torture.stage.broker_proxy.flow)


def _cut_database(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.cut()


def _stall_database(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.stall()
    torture.later(fault.length, torture.stage.database_proxy.flow)


def _lose_commit(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.lose_answer_to(b"COMMIT")


def _kill_database(torture: Torture, fault: Fault) -> None:
    torture.stage.postgres.kill()
    time.sleep(fault.length / 4)
    torture.stage.postgres.start()


def _restart_database(torture: Torture, fault: Fault) -> None:
    torture.stage.postgres.stop()
    time.sleep(fault.length / 4)
    torture.stage.postgres.start()


def _end_sessions(torture: Torture, fault: Fault) -> None:
    """Every session of the database ended by its administrator."""
    torture.stage.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid()"
    )


def _read_only(torture: Torture, fault: Fault) -> None:
    """A database that takes no writes, as the losing side of a fail-over."""
    set_read_only(torture.stage, True)

    def writable() -> None:
        set_read_only(torture.stage, False)

    torture.later(fault.length, writable)


def set_read_only(stage: Stage, on: bool) -> None:
    """Let the database refuse writes, or take them again; also in sessions that are open."""
    with psycopg.connect(stage.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        connection.execute("SELECT pg_reload_conf()")


#: Name of each fault, with its weight, the transport it needs, and what it does.
FAULTS: dict[str, tuple[int, str, Callable[[Torture, Fault], None]]] = {
    "publisher kill -9": (3, "", _kill("publishers")),
    "relay kill -9": (6, "", _kill("relays")),
    "relay SIGTERM": (3, "", _terminate("relays")),
    "relay frozen": (5, "", _freeze("relays")),
    "subscriber kill -9": (6, "", _kill("subscribers")),
    "subscriber SIGTERM": (3, "", _terminate("subscribers")),
    "subscriber frozen": (3, "", _freeze("subscribers")),
    "broker kill -9": (3, "rabbitmq", _kill_broker),
    "broker restart": (2, "rabbitmq", _restart_broker),
    "broker frozen": (2, "rabbitmq", _freeze_broker),
    "broker memory alarm": (1, "rabbitmq", _alarm),
    "broker connections cut": (4, "rabbitmq", _cut_broker),
    "broker network stalled": (2, "rabbitmq", _stall_broker),
    "database connections cut": (3, "", _cut_database),
    "database network stalled": (2, "", _stall_database),
    "answer to COMMIT lost": (5, "", _lose_commit),
    "database kill -9": (2, "", _kill_database),
    "database restart": (2, "", _restart_database),
    "database sessions ended": (2, "", _end_sessions),
    "database read-only": (2, "", _read_only),
}


# --- the whole of it


def torture(seed: int, seconds: float, transport: str) -> tuple[str, list[str]]:
    """Run it; return the report, and what broke the law."""
    faults = plan(seed, seconds, transport)
    with Stage(transport) as stage:
        run = Torture(stage, seed)
        problems: list[str] = []
        try:
            run.run(faults, seconds)
            run.heal()
            run.drain()
        except (AssertionError, ServerError) as error:
            problems.append(f"not drained: {error}")
        problems += _end(run)
        account = stage.account(HANDLERS)
        problems += [*account.violations(), *_broken_words(run, account), *run.strange_ends]
        if problems:
            keep = stage.directory.with_suffix(".kept")
            stage.directory.rename(keep)
            problems.append(f"the logs of the programs are in {keep}")
            return report(account, run, problems, keep / "published"), problems
        return report(account, run, problems, run.log), problems


def _end(run: Torture) -> Iterator[str]:
    """Stop the programs as operators do."""
    for program in (*run.relays, *run.subscribers):
        try:
            code = program.stop()
        except AssertionError as error:
            yield str(error)
        else:
            if code != 0:
                yield f"{program} was asked to stop and ended with {code}"


def _broken_words(run: Torture, account: Account) -> Iterator[str]:
    """What the database said to publishers must be what it did."""
    said = dict(reversed(line.split()) for line in run.log.read_text().splitlines())
    done = {event_id for event_id, word in said.items() if word == "done"}
    undone = {event_id for event_id, word in said.items() if word == "undone"}
    if missing := done - account.published:
        yield f"{len(missing)} committed transactions are gone from the database: {sorted(missing)[:5]}"
    if risen := undone & account.published:
        yield f"{len(risen)} rolled-back transactions are in the database: {sorted(risen)[:5]}"


def report(account: Account, run: Torture, problems: list[str], log: Path) -> str:
    """Return the tables of a run."""
    words = Counter(line.split()[0] for line in log.read_text().splitlines())
    lines = [f"{count:5}  {name}" for name, count in sorted(run.done.items())]
    lines += [
        f"{sum(run.done.values()):5}  faults in all",
        f"transactions: {words['done']} said to be committed, {words['undone']} rolled back, "
        f"{words['unknown']} without an answer; {len(account.published)} events in the database",
        f"copies that relays sent again: {account.sent_again}",
        account.table(),
        *(f"VIOLATION: {problem}" for problem in problems),
    ]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--transport", choices=("rabbitmq", "database"), default="rabbitmq")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes, {options.transport}", flush=True)
    text, problems = torture(options.seed, options.minutes * 60, options.transport)
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
