"""Torture: random faults while publishers, relays and subscribers run; then the account, event by event.

    python -m tests.faults.torture --minutes 10 --seed 7 --transport rabbitmq

The seed gives the plan of faults, their times and their lengths. What the processes make of it is
theirs. At the end everything is healed and drained, and the law is checked: nothing lost, nothing
from a transaction that rolled back, each effect once, order per key on first arrival, no dead letter
without its reason, no program that would not stop. Exit code: 0 if the law holds, 1 if not.
"""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from tests.faults.account import Account
from tests.faults.apparatus import Program, Stage
from tests.faults.project.fates import ENDS_DEAD, fate_of
from tests.faults.random_faults import FAULTS, Fault, administer
from tests.faults.report import report
from tests.harness.waiting import TimedOut, wait_until

HANDLERS = ("steady", "moody")
#: Seconds between two faults: they overlap with the recovery from the last one.
PAUSE = (0.5, 4.0)
#: Seconds to heal and drain at the end.
DRAIN_SECONDS = 300.0
#: Mean seconds between two events of one publisher.
PUBLISH_PAUSE = 0.015
#: Seconds between two looks at the order in which events came, and between two lines about a long run.
LOOK_SECONDS = 60.0
#: Seconds for programs to start: a busy machine needs many.
START_SECONDS = 120.0
#: Seconds that a program has to end after SIGTERM: its grace, a stalled network, a busy machine.
STOP_SECONDS = 30.0
#: Reasons of letters that are not the fault of an event: what the handler raised because of ours.
DATABASE_ERRORS = "error django.db.utils."


def plan(
    seed: int,
    seconds: float,
    transport: str,
    names: Collection[str] = tuple(FAULTS),
    pause: tuple[float, float] = PAUSE,
) -> list[Fault]:
    """Return the faults of a seed, in the order of their times.

    :param names: those that may happen.
    :param pause: least and most seconds between two.
    """
    dice = random.Random(f"{seed} {transport}")
    weights = {
        name: weight
        for name, (weight, needs, _) in FAULTS.items()
        if name in names and needs in ("", transport)
    }
    faults, at = [], 1.0
    while at < seconds:
        (name,) = dice.choices(list(weights), list(weights.values()))
        faults.append(Fault(at, name, dice.randrange(1000), dice.choice((0.3, 1.0, 2.0, 4.0, 7.0))))
        at += dice.uniform(*pause)
    return faults


class Torture:
    """Two publishers, two relays and two subscribers on a stage, kept going as a supervisor would."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.log = stage.directory / "published"
        self.publishers: list[Program] = []
        self.relays: list[Program] = []
        self.subscribers: list[Program] = []
        self.done: Counter[str] = Counter()
        self.deaths = 0
        self.seconds = 0.0
        self.strange_ends: list[str] = []
        #: Ids of events as the spy's queue got them.
        self.spied: list[str] = []
        #: Programs that were asked to stop, and until when they may take to do so.
        self._stopping: list[tuple[float, Program]] = []
        self._heal: list[tuple[float, Callable[[], object]]] = []

        self.start(seed)

    def start(self, seed: int) -> None:
        """Start two of each."""
        self.publishers += [self._publisher(seed * 10 + number) for number in range(2)]
        self.relays += [self.stage.relay(), self.stage.relay()]
        self.subscribers += [
            self.stage.subscriber(*HANDLERS),
            self.stage.subscriber(*HANDLERS, "--processes", "2"),
        ]

    @property
    def fleets(self) -> tuple[list[Program], ...]:
        """The lists of programs that are kept going."""
        return self.publishers, self.relays, self.subscribers

    def one_of(self, fleet: str, dice: int) -> Program:
        """Return the program that the dice say."""
        programs: list[Program] = getattr(self, fleet)
        return programs[dice % len(programs)]

    def run(self, faults: list[Fault], seconds: float) -> None:
        """Let the faults happen at their times, once events are published."""
        wait_until(self.log.exists, START_SECONDS, "a transaction was made")
        start = time.monotonic()
        look_at = LOOK_SECONDS
        for fault in faults:
            self._live_until(start + fault.at)
            self.happen(fault)
            self.done[fault.name] += 1
            self.seconds = time.monotonic() - start
            if self.seconds >= look_at:
                look_at += LOOK_SECONDS
                self._look(self.seconds)
        self._live_until(start + seconds)
        self.seconds = time.monotonic() - start

    def happen(self, fault: Fault) -> None:
        """Let a fault happen."""
        FAULTS[fault.name][2](self, fault)

    def heal(self) -> None:
        """End publishing and all that is wrong."""
        for publisher in self.publishers:
            publisher.kill()
        self.publishers.clear()
        for _, act in self._heal:
            act()
        self._heal.clear()
        administer(self.stage, "SELECT 1")
        while self._stopping:
            self._mend()
            time.sleep(0.05)
        self._mend()

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something in so many seconds: other faults happen meanwhile."""
        self._heal.append((time.monotonic() + seconds, act))

    def ask_to_stop(self, program: Program) -> None:
        """SIGTERM. A second one would mean: at once. It has ``STOP_SECONDS``."""
        if program.exit_code is None and not program.asked_to_stop:
            program.asked_to_stop = True
            program.send(signal.SIGTERM)
            self._stopping.append((time.monotonic() + STOP_SECONDS, program))

    def _give_up(self) -> None:
        """Kill programs that were asked to stop and have not, and note where they were."""
        for each in list(self._stopping):
            deadline, program = each
            if program.exit_code is not None:
                self._stopping.remove(each)
            elif time.monotonic() > deadline:
                program.show_stacks()
                self.strange_ends.append(f"{program} did not stop:\n{program.output()[-6000:]}")
                program.kill()

    def drain(self) -> None:
        """Wait until all is quiet, with programs that die by an event's fate started again."""
        end = time.monotonic() + DRAIN_SECONDS
        while True:
            self._mend()
            try:
                self.stage.wait_until_quiet(HANDLERS, 2.0)
                return
            except TimedOut:
                if time.monotonic() > end:
                    raise

    def _live_until(self, moment: float) -> None:
        while time.monotonic() < moment:
            self._mend()
            time.sleep(0.05)

    def _look(self, seconds: float) -> None:
        """Take what the spy has: its queue would grow with the run."""
        self.spied += self.stage.broker.take("spy")
        print(
            f"{seconds / 60:5.1f} min: {sum(self.done.values())} faults, {len(self.spied)} copies", flush=True
        )

    def _mend(self) -> None:
        due = [each for each in self._heal if each[0] <= time.monotonic()]
        self._heal = [each for each in self._heal if each not in due]
        for _, act in due:
            act()
        self._give_up()
        for fleet in self.fleets:
            for program in list(fleet):
                if program.exit_code is not None:
                    self._note_end(fleet, program)
                    self._replace(fleet, program)

    def _replace(self, fleet: list[Program], victim: Program) -> None:
        successor = victim.again()
        fleet[fleet.index(victim)] = successor
        with suppress(ValueError):
            self.stage.programs.remove(victim)
        self.stage.programs.append(successor)

    def _note_end(self, fleet: list[Program], program: Program) -> None:
        if program.killed or (program.asked_to_stop and program.exit_code == 0):
            return
        if program.asked_to_stop and program.exit_code == -signal.SIGTERM and not program.is_ready:
            return  # it was starting, and could not do better yet
        if fleet is self.subscribers and program.exit_code == -signal.SIGKILL:
            self.deaths += 1
            return
        self.strange_ends.append(f"{program} ended with {program.exit_code}:\n{program.output()[-1500:]}")

    def _publisher(self, seed: int) -> Program:
        return self.stage.run("publish", str(self.log), str(seed), str(PUBLISH_PAUSE))


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
        except Exception as error:
            # Whatever it was: after an hour, the account is worth to be drawn.
            problems.append(f"not drained: {error!r}\n{traceback.format_exc()}")
        problems += _end(run)
        account = stage.account(HANDLERS, run.spied)
        words = words_of(run)
        problems += [*account.violations(), *_undeserved(account), *_broken_words(words, account)]
        problems += run.strange_ends
        text = report(account, run.done, words, run.deaths, problems)
        text = f"{run.seconds / 60:.1f} minutes of faults\n{text}"
        if problems:
            keep = stage.directory.with_suffix(".kept")
            stage.directory.rename(keep)
            text += f"\nthe logs of the programs are in {keep}"
        return text, problems


def _end(run: Torture) -> Iterator[str]:
    """Stop the programs as operators do."""
    for program in (*run.relays, *run.subscribers):
        try:
            code = program.stop(60.0)
        except AssertionError as error:
            yield str(error)
        else:
            if code != 0:
                yield f"{program} was asked to stop and ended with {code}"


def _undeserved(account: Account) -> Iterator[str]:
    """Dead letters of events that should have worked, and effects of those that failed."""
    steady, moody = (account.handlers[name] for name in HANDLERS)
    if steady.dead:
        yield f"steady gives up on nothing, but there are letters: {list(steady.dead.items())[:5]}"
    odd = {
        event_id: reason
        for event_id, reason in moody.dead.items()
        if fate_of(event_id) not in ENDS_DEAD and not reason.startswith(DATABASE_ERRORS)
    }
    if odd:
        yield f"{len(odd)} events of moody are dead without a cause: {list(odd.items())[:5]}"
    if half := {event_id for event_id in moody.handled if fate_of(event_id) in ENDS_DEAD}:
        yield f"{len(half)} events failed and left an effect: {sorted(half)[:5]}"


def words_of(run: Torture) -> dict[str, str]:
    """Return what publishers know of each transaction; one without a word was killed in it."""
    lines = (line.partition(" ") for line in run.log.read_text().splitlines())
    return {event_id: word for word, _, event_id in lines}


def _broken_words(said: dict[str, str], account: Account) -> Iterator[str]:
    """What the database said to publishers must be what it did."""
    done = {event_id for event_id, word in said.items() if word == "done"}
    undone = {event_id for event_id, word in said.items() if word == "undone"}
    if missing := done - account.published:
        yield f"{len(missing)} committed transactions are gone from the database: {sorted(missing)[:5]}"
    if risen := undone & account.published:
        yield f"{len(risen)} rolled-back transactions are in the database: {sorted(risen)[:5]}"


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--transport", choices=("rabbitmq", "database"), default="rabbitmq")
    options = parser.parse_args()
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # our own looks at a broker under torture
    print(f"seed {options.seed}, {options.minutes:g} minutes, {options.transport}", flush=True)
    text, problems = torture(options.seed, options.minutes * 60, options.transport)
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
