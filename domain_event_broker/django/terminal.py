"""What commands show in a terminal: a progress bar and a table, plain where it is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO

from django.core.management.base import OutputWrapper

#: Seconds between two drawings of a progress bar.
REDRAW_SECONDS = 0.1
#: Characters of the bar itself.
BAR_WIDTH = 30


class Progress:
    """A progress bar of one line; where ``stream`` is no terminal, only its last state is printed.

    :param label: what is counted.
    :param total: how many there are; ``None``: not known.
    """

    def __init__(self, stream: IO[str] | OutputWrapper, label: str, total: int | None) -> None:
        self._stream = stream
        self._label = label
        self._total = total
        self._started = time.monotonic()
        self._drawn = 0.0
        self._live = stream.isatty()

    def update(self, done: int) -> None:
        """Draw the bar, unless that was done a moment ago."""
        now = time.monotonic()
        if self._live and now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._write("\r\x1b[K" + self.line(done))

    def finish(self, done: int) -> None:
        """Draw the last state and end the line."""
        self._write(("\r\x1b[K" if self._live else "") + self.line(done) + "\n")

    def _write(self, text: str) -> None:
        if isinstance(self._stream, OutputWrapper):
            self._stream.write(text, ending="")
        else:
            self._stream.write(text)
        self._stream.flush()

    def line(self, done: int) -> str:
        """Return the bar as text."""
        rate = done / max(time.monotonic() - self._started, 0.001)
        if not self._total:
            return f"{self._label} {done:,} ({rate:,.0f}/s)"
        share = min(done / self._total, 1.0)
        bar = "#" * round(share * BAR_WIDTH)
        return f"{self._label} [{bar:<{BAR_WIDTH}}] {done:,}/{self._total:,} {share:4.0%} ({rate:,.0f}/s)"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table: the first column to the left, numbers to the right; ``None`` as ``-``."""
    shown = [
        ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [list(header), *shown]) for i in range(len(header))]
    numeric = [
        all(isinstance(row[i], (int, type(None))) for row in rows) and bool(rows) for i in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        parts = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(header)), *(line(cells) for cells in shown)])
