"""Soak: steady load for long, and a look every so often at what could grow that must not.

    python -m tests.faults.soak --minutes 60 --rate 100

One relay and one subscriber with two handlers, real servers, no faults but, if asked for, connections
cut every few minutes, so that what a reconnect leaves behind adds up. Prints a line for each look, and
at the end for each figure whether it stayed flat after a warm-up. Exit code: 0 if all did.
"""

# ruff: noqa: T201 - a program for people prints

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.apparatus import DATABASE, Program, Stage

HANDLERS = ("steady", "moody")
PUBLISHERS = 2
#: Letters would fill their queue for as long as it runs: of what goes wrong only retries are left.
SPARED = "deadly error exit leak close exhaust"
#: Looks that a judgement needs, however short the run and slow the machine.
LEAST_LOOKS = 4
#: Part of the run that is not judged: caches fill, pools grow to their size.
WARM_UP = 0.25
#: Growth that counts as flat, as a part of the middle value.
TOLERANCE = 0.05
#: Write-ahead log is recycled from this size on, so that an hour shows whether it stays.
DATABASE_SETTINGS = {"max_wal_size": "64MB", "checkpoint_timeout": "60s", "autovacuum_naptime": "10s"}
#: Figures of one process, of the broker, and of the database; ``True``: a whole number that may not grow.
FIGURES = {
    "relay KB": False,
    "relay fds": True,
    "relay threads": True,
    "subscriber KB": False,
    "subscriber fds": True,
    "subscriber threads": True,
    "connections": True,
    "channels": True,
    "sessions": True,
    "outbox KB": False,
    "held KB": False,
    "lease KB": False,
    "WAL KB": False,
    "waiting": False,
}
#: What those may grow by that are small and go up and down, in their own units.
SLACK = {"outbox KB": 512.0, "held KB": 128.0, "lease KB": 512.0, "WAL KB": 32768.0, "waiting": 200.0}

Look = dict[str, float]


@dataclass(frozen=True)
class Trend:
    """What became of one figure after the warm-up.

    :param first: middle value of the first third.
    :param last: middle value of the last third.
    :param slope: growth in an hour, by the line that fits best.
    """

    name: str
    first: float
    last: float
    slope: float
    flat: bool


class Soak:
    """The programs under load, and what is looked at."""

    def __init__(self, stage: Stage, rate: float) -> None:
        self.stage = stage
        pause = str(PUBLISHERS / rate)
        log = stage.directory / "published"
        self.publishers = [
            stage.run("publish", str(log), str(seed), pause, FAULTS_SPARE=SPARED)
            for seed in range(PUBLISHERS)
        ]
        self.programs: Mapping[str, Program] = {
            "relay": stage.relay(),
            "subscriber": stage.subscriber(*HANDLERS),
        }

    def run(self, seconds: float, every: float, cut_every: float) -> Iterator[tuple[float, Look]]:
        """Look every so many seconds; yields the time and the figures."""
        start = time.monotonic()
        cut_at = start + cut_every if cut_every else float("inf")
        number = 0
        while time.monotonic() < start + seconds or number < LEAST_LOOKS:
            number += 1
            time.sleep(max(0.0, start + number * every - time.monotonic()))
            yield time.monotonic() - start, self.look()
            if time.monotonic() >= cut_at:
                cut_at += cut_every
                self.stage.broker_proxy.cut()
                self.stage.database_proxy.cut()

    def look(self) -> Look:
        """Return the figures of now; those of the spy's queue do not count: it is emptied."""
        self.stage.broker.take("spy")
        figures = {"handled": float(self._effects()), "waiting": float(self._waiting())}
        for name, program in self.programs.items():
            assert program.exit_code is None, f"{program} ended:\n{program.output()[-3000:]}"
            figures |= {f"{name} {what}": value for what, value in of_process(program.pid).items()}
        return figures | self._of_broker() | self._of_database()

    def _of_broker(self) -> Look:
        assert self.stage.rabbitmq is not None
        return {
            "connections": float(len(self.stage.rabbitmq.connections())),
            "channels": float(len(self.stage.rabbitmq.ctl("list_channels", "pid").splitlines())),
            "broker KB": of_process(self.stage.rabbitmq.pid)["KB"],
        }

    def _of_database(self) -> Look:
        sizes = {
            f"{table} KB": self._number(
                f"SELECT pg_total_relation_size('domain_event_broker_{table}') / 1024"
            )
            for table in ("outbox", "held", "lease", "archive", "inbox")
        }
        return sizes | {
            "WAL KB": self._number("SELECT sum(size) / 1024 FROM pg_ls_waldir()"),
            "sessions": self._number(
                f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{DATABASE}' "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ),
        }

    def _number(self, statement: str) -> float:
        return float(self.stage.sql(statement)[0][0])

    def _effects(self) -> int:
        return sum(self.stage.effects(name) for name in HANDLERS)

    def _waiting(self) -> int:
        """In the outbox, in queues and in delays."""
        return self.stage.waiting() + sum(self.stage.broker.depths(HANDLERS).values())


def of_process(pid: int) -> Look:
    """Return memory in KB, open files and threads of a process, as Linux counts them."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "KB": float(fields["VmRSS"].split()[0]),
        "fds": float(len(list(Path(f"/proc/{pid}/fd").iterdir()))),
        "threads": float(fields["Threads"]),
    }


def trend(name: str, times: Sequence[float], values: Sequence[float], is_count: bool) -> Trend:
    """Judge one figure: counts may not grow by one, sizes not by more than the tolerance."""
    begin = int(len(values) * WARM_UP)
    times, values = times[begin:], values[begin:]
    third = max(1, len(values) // 3)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    slope = statistics.linear_regression(times, values).slope * 3600
    allowed = 0.0 if is_count else max(TOLERANCE * first, SLACK.get(name, 0.0))
    return Trend(name, first, last, slope, last - first <= allowed)


def trends(looks: Sequence[tuple[float, Look]]) -> list[Trend]:
    """Judge all figures that must stay."""
    times = [at for at, _ in looks]
    return [trend(name, times, [look[name] for _, look in looks], kind) for name, kind in FIGURES.items()]


def table(found: Sequence[Trend]) -> str:
    """Return the verdict as lines for people."""
    lines = [f"{'figure':20} {'first third':>12} {'last third':>12} {'per hour':>10}"]
    for each in found:
        verdict = "flat" if each.flat else "GROWS"
        lines.append(f"{each.name:20} {each.first:12,.0f} {each.last:12,.0f} {each.slope:+10,.1f}  {verdict}")
    return "\n".join(lines)


def soak(minutes: float, rate: float, every: float, cut_minutes: float) -> tuple[str, bool]:
    """Run it; return the verdict in words, and whether all stayed flat and nothing was lost."""
    looks: list[tuple[float, Look]] = []
    with Stage(database_settings=DATABASE_SETTINGS) as stage:
        run = Soak(stage, rate)
        for at, look in run.run(minutes * 60, every, cut_minutes * 60):
            looks.append((at, look))
            shown = " ".join(f"{name} {value:,.0f};" for name, value in sorted(look.items()))
            print(f"{at / 60:6.1f} min: {shown}", flush=True)
        found = trends(looks)
        for publisher in run.publishers:
            publisher.kill()
        stage.wait_until_quiet(HANDLERS, 120)
        problems = stage.account(HANDLERS).violations()
    seconds, last = looks[-1]
    return (
        f"{last['handled']:,.0f} effects in {seconds / 60:.0f} minutes ({last['handled'] / seconds:.0f}/s)\n"
        f"{table(found)}\nviolations: {problems}"
    ), all(each.flat for each in found) and not problems


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="events a second, each for two handlers")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks")
    parser.add_argument(
        "--cut-minutes", type=float, default=0.0, help="cut all connections so often; 0: never"
    )
    options = parser.parse_args()
    text, is_flat = soak(options.minutes, options.rate, options.every, options.cut_minutes)
    print(text)
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
