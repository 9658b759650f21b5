"""Other libraries under the faults of the torture, and ours beside them, in the one same service.

    python -m tests.faults.peers --peer django-outbox-pattern --minutes 10 --seed 1

Each is installed from the package index into a virtualenv of its own, and run as its documents say:
two publishers, two relays where there is one, two subscribers with one handler. Programs that end are
started again at once, as a supervisor does. Faults are those that every library has to live with:
processes killed, the broker restarted and killed, its connections cut, the database killed. Then all
is healed; who does not come to rest is started again. The account says where each event is.
"""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.apparatus import Program
from tests.faults.peers.service.ledger.hopeless import is_hopeless
from tests.faults.peers.stage import PEERS, PeerStage, is_dead, versions
from tests.faults.random_faults import FAULTS, Fault
from tests.faults.torture import Torture, plan, words_of
from tests.harness.waiting import TimedOut, wait_until

#: What is done to every library.
NAMES = (
    "publisher kill -9",
    "relay kill -9",
    "subscriber kill -9",
    "broker kill -9",
    "broker restart",
    "broker connections cut",
    "database kill -9",
)
#: Seconds between two faults.
PAUSE = (2.0, 8.0)
#: Mean seconds between two events of one publisher.
PUBLISH_PAUSE = 0.1
#: Seconds without any change after which all is at rest, and how long to wait for that.
REST_SECONDS = 10.0
DRAIN_SECONDS = 240.0


class Trial(Torture):
    """The torture, with the programs of a library; what they do about it is counted, not judged."""

    stage: PeerStage

    def __init__(self, stage: PeerStage, seed: int) -> None:
        self.ends: Counter[str] = Counter()
        #: Events that moved only after all programs had been started again.
        self.stuck = 0
        super().__init__(stage, seed)

    def start(self, seed: int) -> None:
        """Start two of each."""
        self.publishers = [
            self.stage.run("publish-deeds", str(self.log), str(seed + number), str(PUBLISH_PAUSE))
            for number in range(2)
        ]
        self.relays = [self.stage.relay(), self.stage.relay()] if self.stage.has_relay else []
        self.subscribers = [self.stage.subscriber(), self.stage.subscriber()]

    def happen(self, fault: Fault) -> None:
        """Let a fault happen; its connections are those of STOMP as well."""
        if fault.name == "broker connections cut":
            self.stage.cut()
        else:
            FAULTS[fault.name][2](self, fault)

    def concerns(self, fault: str) -> bool:
        """Tell whether there was somebody for a fault to happen to."""
        return bool(self.relays) or not fault.startswith("relay")

    def drain(self) -> None:
        """Wait for rest; who does not find it is started again, once."""
        try:
            self._rest()
        except TimedOut:
            self.stuck = self.stage.moving()
            for program in (*self.relays, *self.subscribers):
                program.kill()
            self._rest_or_not()

    def _rest_or_not(self) -> None:
        try:
            self._rest()
        except TimedOut as error:
            print(f"still not at rest: {error}", flush=True)

    def _rest(self) -> None:
        seen: list[tuple[float, tuple[int, int, int]]] = []

        def at_rest() -> bool:
            self._mend()
            state = self.stage.state()
            if seen and seen[-1][1] != state:
                seen.clear()
            seen.append((time.monotonic(), state))
            return not state[0] and seen[-1][0] - seen[0][0] >= REST_SECONDS

        wait_until(at_rest, DRAIN_SECONDS, lambda: f"at rest: {seen[-1:]}", interval=1.0)

    def _look(self, seconds: float) -> None:
        print(f"{seconds / 60:5.1f} min: {sum(self.done.values())} faults, {self.stage.state()}", flush=True)

    def _note_end(self, fleet: list[Program], program: Program) -> None:
        if not program.killed:
            self.ends[("publisher", "relay", "subscriber")[self.fleets.index(fleet)]] += 1


@dataclass
class Account:
    """Where the events are."""

    published: set[str]
    handled: set[str]
    twice: set[str]
    outbox: set[str]
    given_up: set[str]
    queued: set[str]
    dead: set[str]
    told: set[str]

    @classmethod
    def draw(cls, stage: PeerStage, said: Mapping[str, str]) -> Account:
        """Ask tables and queues, with no program running any more.

        :param said: what publishers know of their transactions.
        """
        effects = Counter(stage.ids("SELECT event_id FROM faults_effect"))
        queues = stage.queued()
        return cls(
            set(stage.ids("SELECT event_id FROM faults_deed")),
            set(effects),
            {event_id for event_id, count in effects.items() if count > 1},
            stage.in_outbox(),
            stage.given_up(),
            {event_id for name, ids in queues.items() if not is_dead(name) for event_id in ids},
            {event_id for name, ids in queues.items() if is_dead(name) for event_id in ids},
            {event_id for event_id, word in said.items() if word == "unknown"},
        )

    def figures(self) -> dict[str, int]:
        """Return the figures of the table."""
        waiting = (self.outbox | self.queued) - self.handled - self.dead
        dead = self.dead - self.handled
        somewhere = self.handled | waiting | self.given_up | dead
        lost = self.published - somewhere
        return {
            "published (business rows committed)": len(self.published),
            "handled": len(self.handled),
            "dead letters of events that never work": sum(map(is_hopeless, dead)),
            "dead letters of events that would have worked": sum(not is_hopeless(each) for each in dead),
            "given up by the relay": len(self.given_up),
            "waiting in outbox or queue": len(waiting),
            "LOST": len(lost),
            "... after which the publisher got an exception": len(lost & self.told),
            "... of those that never work: their dead letters are gone": sum(map(is_hopeless, lost)),
            "from transactions that rolled back": len(somewhere - self.published),
            "took effect twice": len(self.twice),
            "handled, and a dead letter as well": len(self.dead & self.handled),
        }


@dataclass
class Verdict:
    """What came out.

    :param figures: the law, in events.
    :param faults: how often each happened.
    :param ends: how often programs ended by themselves.
    :param stuck: events that moved only after all programs had been started again.
    """

    library: str
    figures: dict[str, int]
    faults: dict[str, int]
    ends: dict[str, int]
    stuck: int

    def __str__(self) -> str:
        lines = [f"{count:6}  {fault}" for fault, count in sorted(self.faults.items())]
        lines += [f"{count:6}  {what}" for what, count in self.figures.items()]
        lines += [f"{count:6}  times a {who} ended by itself" for who, count in sorted(self.ends.items())]
        lines += [f"{self.stuck:6}  waited for a restart of all programs after {DRAIN_SECONDS:g} s of peace"]
        return "\n".join([self.library, *lines])


def trial(name: str, seconds: float, seed: int, virtualenvs: Path) -> Verdict:
    """Run one library."""
    peer = PEERS[name]
    with PeerStage(peer, virtualenvs) as stage:
        run = Trial(stage, seed)
        run.run(plan(seed, seconds, "rabbitmq", NAMES, PAUSE), seconds)
        run.heal()
        run.drain()
        stage.end_programs()
        stage.wait_until_left()
        figures = Account.draw(stage, words_of(run)).figures()
        library = f"{name}: {versions(stage.python, peer.packages) if peer.requirements else 'this checkout'}"
    faults = {fault: count for fault, count in run.done.items() if run.concerns(fault)}
    return Verdict(library, figures, faults, dict(run.ends), run.stuck)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.peers", description=__doc__)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    default = Path(tempfile.gettempdir(), "fault-peers")
    parser.add_argument(
        "--virtualenvs", type=Path, default=default, help="folder for them (default: %(default)s)"
    )
    options = parser.parse_args()
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    print(f"{options.peer}, seed {options.seed}, {options.minutes:g} minutes", flush=True)
    print(trial(options.peer, options.minutes * 60, options.seed, options.virtualenvs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
