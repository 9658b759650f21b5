"""Whether workers live, and whether they can do their work: verdicts over a board, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from domain_event_broker.config import MonitoringSettings
from domain_event_broker.monitoring.board import Board, Row


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a probe.

    :param reasons: what is wrong, in words; empty: nothing is.
    """

    reasons: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons

    def as_dict(self) -> dict[str, object]:
        """Return it as what ``json.dumps`` takes."""
        return {"status": "ok" if self.is_well else "failing", **asdict(self)}


def too_late(lag: float | None, settings: MonitoringSettings) -> tuple[str, ...]:
    """Return what is wrong with a lag in seconds, in words; ``None``: nothing is known, so nothing is."""
    if lag is None or lag <= settings.lag_seconds:
        return ()
    return (f"the oldest event has waited {lag:.0f} s to be sent; {settings.lag_seconds:g} s are allowed",)


class Health:
    """Looks at the rows that workers write.

    :param what: what a worker is called: ``"relay"``, ``"subscriber"``.
    :param settings: how long may be how long.
    :param lag: age in seconds of the oldest event that could have been sent; ``None``: nothing
        waits, or it is not known.
    :param clock: reading of the monotonic clock that the workers read, in seconds.
    """

    def __init__(
        self,
        what: str,
        board: Board,
        settings: MonitoringSettings,
        lag: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._board = board
        self._settings = settings
        self._lag = lag
        self._clock = clock

    def live(self) -> Verdict:
        """Tell whether each worker goes on: one that does not is to be started anew."""
        return Verdict(tuple(text for name, row in self._workers() for text in self._stuck(name, row)))

    def ready(self) -> Verdict:
        """Tell whether each worker can do its work, and is not late with it."""
        reasons = [text for name, row in self._workers() for text in self._unable(name, row)]
        return Verdict((*reasons, *too_late(self._lag(), self._settings)))

    def _workers(self) -> Iterator[tuple[str, Row]]:
        rows = self._board.rows
        for number, row in enumerate(rows, 1):
            yield (f"the {self._what}" if len(rows) == 1 else f"{self._what} {number} of {len(rows)}"), row

    def _stuck(self, name: str, row: Row) -> Iterator[str]:
        silent_until = row.get("silent until")
        silent = self._clock() - silent_until
        if silent_until and silent > self._settings.stuck_seconds:
            yield f"{name} should have gone on {silent:.0f} s ago: it is stuck, or cannot be started"

    def _unable(self, name: str, row: Row) -> Iterator[str]:
        yield from self._stuck(name, row)
        away = [
            (f"the {peer} has been away for {self._clock() - since:.0f} s", self._clock() - since)
            for peer in ("broker", "database")
            if (since := row.get(f"{peer} away since"))
        ]
        yield from (f"{name}: {text}" for text, seconds in away if seconds > self._settings.away_seconds)
        if not row.get("at work") and not away:
            yield f"{name} is being started"
