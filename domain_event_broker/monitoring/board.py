"""Figures in memory that a process shares with those that it forks: one row for each of them.

Each process writes its own row, nobody waits for anybody, and whoever answers Prometheus reads all rows.
What a process has written stays when it is killed, so counters never fall.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence

#: A figure is named by a word and the labels that it has, such as ``("outcome", "billing", "handled")``.
Column = tuple[str, ...]

_BYTES = 8


class Row:
    """The figures of one process. For one writer; anybody may read.

    A figure is a float of eight bytes at a multiple of eight, so a reader sees the old one or the new one.
    """

    def __init__(self, cells: memoryview[float], places: dict[Column, int]) -> None:
        self.cells = cells
        self._places = places

    def place(self, *column: str) -> int:
        """Return the index of a figure in :attr:`cells`, for those that are written often."""
        return self._places[column]

    def get(self, *column: str) -> float:
        """Return a figure."""
        return float(self.cells[self._places[column]])

    def set(self, value: float, *column: str) -> None:
        """Replace a figure."""
        self.cells[self._places[column]] = value

    def add(self, amount: float, *column: str) -> None:
        """Add to a figure."""
        self.cells[self._places[column]] += amount


class Board:
    """So many rows of figures, all of them 0 at the beginning.

    Anonymous shared memory (https://docs.python.org/3/library/mmap.html): nothing of it is a file, and it
    ends with the last process that has it.

    :param columns: names of the figures.
    :param rows: processes that write.
    """

    def __init__(self, columns: Iterable[Column], rows: int = 1) -> None:
        places = {column: number for number, column in enumerate(columns)}
        width = len(places)
        cells = memoryview(mmap.mmap(-1, _BYTES * width * rows)).cast("d")
        self.rows: Sequence[Row] = [
            Row(cells[number * width : (number + 1) * width], places) for number in range(rows)
        ]

    def total(self, *column: str) -> float:
        """Return a figure, added up over all rows."""
        return sum(row.get(*column) for row in self.rows)
