"""What is known about the orders on their way, put together from what the processes say.

Which events left the outbox is asked of the web server; what handlers made of them is read in
the log of the subscriber, where the library writes one line for each outcome. It is for the
eye alone: the account at the end asks the database and the broker instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.screen import Line, Segment

#: Orders shown while they are on their way.
ROWS = 8

CHARGE, SHIP, TIMELINE = "payments-charge", "shipping-ship", "orders-timeline"


@dataclass(slots=True)
class Journey:
    """One order, and how far its events got."""

    number: str
    what: str
    started: float
    sent: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    outcomes: dict[str, list[str]] = field(default_factory=dict)
    shown: bool = False

    def end(self) -> str:
        """Return how it ended; empty: it goes on."""
        for handler in (CHARGE, SHIP):
            if self.outcomes.get(handler, [""])[-1] == "dead-lettered":
                return "dead letter"
        if "payment.failed" in self.seen:
            return "declined"
        return "shipped" if "shipment.sent" in self.seen else ""

    def line(self) -> Line:
        """Return the order as one line: the stages, and what went wrong on the way."""
        line: list[Segment] = [(f"  {self.number:<8}", "name"), (f"{self.what:<24}", ""), ("placed", "good")]
        line += [(" → ", "dim"), ("sent", "good" if "order.placed" in self.sent else "dim")]
        for handler, verb in ((CHARGE, "charge"), (SHIP, "ship")):
            if handler in self.outcomes or not self.end():
                line += [(" → ", "dim"), *self._stage(handler, verb)]
        return [*line, *self._verdict()]

    def _stage(self, handler: str, verb: str) -> list[Segment]:
        outcomes = self.outcomes.get(handler, [])
        if not outcomes:
            return [(verb, "dim")]
        tries = "".join(" ↻" for outcome in outcomes if outcome == "retried")
        last = outcomes[-1]
        if last == "dead-lettered":
            return [(verb, "bad"), (tries, "warn"), (" ✗", "bad")]
        style = "good" if last in ("handled", "duplicate") else "warn"
        return [(verb, style), (tries, "warn"), (" ✓" if style == "good" else "", "good")]

    def _verdict(self) -> list[Segment]:
        end = self.end()
        if not end:
            return []
        style = "good" if end == "shipped" else "bad"
        return [(" → ", "dim"), (end, style), (f"  {time.monotonic() - self.started:.1f} s", "dim")]


@dataclass(slots=True)
class Counts:
    """Numbers for the line at the bottom."""

    placed: int = 0
    waiting: int = 0
    sent: int = 0
    handled: int = 0
    retried: int = 0
    dead: int = 0


class Road:
    """All orders that were placed in this show."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.last_sent = 0
        self._journeys: dict[str, Journey] = {}
        self._order_of: dict[str, str] = {}
        self._unplaced: dict[str, list[dict[str, Any]]] = {}
        self._offsets: dict[Path, int] = {}

    def placed(self, number: str, what: str) -> None:
        """Note an order that the shop has taken."""
        self.counts.placed += 1
        journey = self._journeys.setdefault(number, Journey(number, what, time.monotonic()))
        journey.what = what

    def take_events(self, answer: dict[str, Any]) -> None:
        """Note which events left the outbox."""
        self.counts.waiting = answer["waiting"] + answer["held"]
        for event in answer["sent"]:
            self.last_sent = max(self.last_sent, event["id"])
            self.counts.sent += 1
            number = event["ordering_key"]
            self._order_of[event["event_id"]] = number
            self._journey(number).sent.add(event["routing_key"])
            for record in self._unplaced.pop(event["event_id"], []):
                self._outcome(number, record)

    def read_logs(self, files: Iterable[Path]) -> None:
        """Note what the subscribers wrote into their logs since the last look."""
        for file in files:
            start = self._offsets.get(file, 0)
            with file.open("rb") as log:
                log.seek(start)
                text = log.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[file] = start + len(whole)
            for line in whole.splitlines():
                if line.startswith(b"{"):
                    self._record(line)

    def finished(self) -> list[Line]:
        """Return the lines of orders that came to an end since the last call."""
        ended = [each for each in self._journeys.values() if each.what and not each.shown and each.end()]
        for journey in ended:
            journey.shown = True
        return [journey.line() for journey in ended]

    def block(self) -> list[Line]:
        """Return the orders on their way, and a line with the numbers."""
        going = [each for each in self._journeys.values() if each.what and not each.end()]
        return [*(journey.line() for journey in going[:ROWS]), self.numbers()]

    def numbers(self) -> Line:
        """Return how many events are where."""
        counts = self.counts
        return [
            ("  ", ""),
            (f"{counts.placed} orders placed", "bold"),
            (
                f" · {counts.waiting} events in the outbox · {counts.sent} sent · {counts.handled} handled",
                "dim",
            ),
            (f" · {counts.retried} retries", "warn" if counts.retried else "dim"),
            (f" · {counts.dead} dead-lettered", "bad" if counts.dead else "dim"),
        ]

    def _record(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return  # a line cut off when its process was killed
        if not {"outcome", "handler", "event_id"} <= record.keys():
            return
        self.counts.handled += record["outcome"] == "handled"
        self.counts.retried += record["outcome"] == "retried"
        self.counts.dead += record["outcome"] == "dead-lettered"
        number = self._order_of.get(record["event_id"])
        if number is None:
            # Handlers may be quicker than the relay, which notes what it sent afterwards.
            self._unplaced.setdefault(record["event_id"], []).append(record)
        else:
            self._outcome(number, record)

    def _outcome(self, number: str, record: dict[str, Any]) -> None:
        journey, outcome = self._journey(number), record["outcome"]
        outcomes = journey.outcomes.setdefault(record["handler"], [])
        if outcomes and outcomes[-1] == "dead-lettered":
            outcomes.clear()  # it was replayed
            journey.shown = False
        outcomes.append(outcome)
        if record["handler"] == TIMELINE and outcome == "handled":
            journey.seen.add(record["routing_key"])

    def _journey(self, number: str) -> Journey:
        return self._journeys.setdefault(number, Journey(number, "", time.monotonic()))
