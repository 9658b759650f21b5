"""What commands show in a terminal: progress bars, colours and tables, plain where it is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import IO, Protocol, cast

from django.core.management.base import OutputWrapper

#: Seconds between two drawings of a progress bar.
REDRAW_SECONDS = 0.1
#: Characters of the bar itself.
BAR_WIDTH = 30


class Progress:
    """A progress bar of one line, on a terminal; elsewhere nothing is shown, since a summary follows.

    With the package ``rich`` installed the bar is drawn by it.

    :param label: what is counted.
    :param total: how many there are; ``None``: not known.
    """

    def __init__(self, stream: IO[str] | OutputWrapper, label: str, total: int | None) -> None:
        self._drawn = 0.0
        self._drawing = _drawing(_plain(stream), label, total) if stream.isatty() else None

    def update(self, done: int) -> None:
        """Draw the bar, unless that was done a moment ago."""
        now = time.monotonic()
        if self._drawing is not None and now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._drawing.draw(done)

    def finish(self, done: int) -> None:
        """Draw the last state and end the line."""
        drawing, self._drawing = self._drawing, None
        if drawing is not None:
            drawing.draw(done)
            drawing.end()


class _Drawing(Protocol):
    """How a bar gets onto the terminal."""

    def draw(self, done: int) -> None:
        """Replace what is drawn."""

    def end(self) -> None:
        """Go on below it."""


class Bar:
    """A bar of plain characters."""

    def __init__(self, stream: IO[str], label: str, total: int | None) -> None:
        self._stream, self._label, self._total = stream, label, total
        self._started = time.monotonic()

    def draw(self, done: int) -> None:
        """Replace what is drawn."""
        self._stream.write("\r\x1b[K" + self.line(done)[: _width() - 1])
        self._stream.flush()

    def end(self) -> None:
        """Go on below it."""
        self._stream.write("\n")
        self._stream.flush()

    def line(self, done: int) -> str:
        """Return the bar as text."""
        rate = done / max(time.monotonic() - self._started, 0.001)
        if not self._total:
            return f"{self._label} {done:,} ({rate:,.0f}/s)"
        share = min(done / self._total, 1.0)
        bar = "#" * round(share * BAR_WIDTH)
        return f"{self._label} [{bar:<{BAR_WIDTH}}] {done:,}/{self._total:,} {share:4.0%} ({rate:,.0f}/s)"


class _RichBar:
    """A bar drawn by ``rich``: no thread of its own, so that a signal finds nothing half drawn."""

    def __init__(self, stream: IO[str], label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._total = total
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=stream, force_terminal=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task(label, total=total)
        self._bar.start()
        # rich hides it, and a process that is killed would leave it so.
        self._bar.console.show_cursor(True)

    def draw(self, done: int) -> None:
        """Replace what is drawn."""
        total = self._total if self._total is None else max(self._total, done)
        self._bar.update(self._task, completed=done, total=total, refresh=True)

    def end(self) -> None:
        """Go on below it."""
        self._bar.stop()


def _drawing(stream: IO[str], label: str, total: int | None) -> _Drawing:
    try:
        return _RichBar(stream, label, total)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("rich"):
            raise
        return Bar(stream, label, total)


def _plain(stream: IO[str] | OutputWrapper) -> IO[str]:
    """Return the stream itself: Django's wrapper ends each text with a new line."""
    return cast("IO[str]", stream._out) if isinstance(stream, OutputWrapper) else stream


def _width() -> int:
    return shutil.get_terminal_size().columns


def may_colour(stream: IO[str] | OutputWrapper) -> bool:
    """Tell whether colours are welcome: on a terminal, and not with NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


#: Makes the text of a cell stand out, given its column and its value; the text is padded already.
Paint = Callable[[str, object, str], str]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    paint: Paint = lambda column, value, text: text,
) -> str:
    """Return an aligned table: the first column to the left, numbers to the right; ``None`` as ``-``."""
    shown = [
        ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [list(header), *shown]) for i in range(len(header))]
    numeric = [
        all(isinstance(row[i], (int, type(None))) for row in rows) and bool(rows) for i in range(len(header))
    ]

    def line(cells: Sequence[str]) -> list[str]:
        return [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)]

    lines = ["  ".join(line(list(header))).rstrip()]
    for row, cells in zip(rows, shown, strict=True):
        padded = line(cells)
        padded[-1] = padded[-1].rstrip()
        painted = [paint(*each) for each in zip(header, row, padded, strict=True)]
        lines.append("  ".join(painted).rstrip())
    return "\n".join(lines)
