"""The terminal: lines that stay, and below them a few that are drawn anew all the time."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

#: Text with the name of a style; a line is a few of them.
Segment = tuple[str, str]
Line = Sequence[Segment]

_CODES = {"": "", "dim": "2", "bold": "1", "good": "32", "bad": "31", "warn": "33", "name": "36"}

#: Signs, and what stands for them where the terminal cannot show them.
_PLAIN = str.maketrans({"✓": "+", "✗": "x", "↻": "~", "─": "-", "→": ">", "·": ".", "…": ".", "█": "#"})


class Screen:
    """Writes to the terminal; plain lines where it is none."""

    def __init__(self) -> None:
        self._out = sys.stdout
        self.live = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self.colours = self.live and not os.environ.get("NO_COLOR")
        self._unicode = (self._out.encoding or "ascii").lower().replace("-", "") == "utf8"
        self._drawn = 0

    def say(self, text: str = "", style: str = "") -> None:
        """Write text that stays."""
        self.line([(text, style)])

    def line(self, line: Line) -> None:
        """Write a line that stays."""
        self.draw([], [line])

    def title(self, text: str) -> None:
        """Write what comes next."""
        self.say()
        self.say(text, "bold")

    def command(self, words: str, output: str) -> None:
        """Show a command as one would type it, and what it printed."""
        self.say(f"  $ {words}", "name")
        for text in output.rstrip().splitlines():
            self.say(f"    {text}")

    def draw(self, block: Sequence[Line], staying: Sequence[Line] = ()) -> None:
        """Write lines that stay, and below them the block, in place of the one drawn before."""
        parts = [self._erase()]
        parts += [self._text(line, None) + "\n" for line in staying]
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            parts += [self._text(line, width) + "\n" for line in block]
            self._drawn = len(block)
        self._out.write("".join(parts))
        self._out.flush()

    def _erase(self) -> str:
        drawn, self._drawn = self._drawn, 0
        return f"\x1b[{drawn}A\x1b[J" if drawn else ""

    def _text(self, line: Line, width: int | None) -> str:
        parts: list[str] = []
        for text, style in line:
            cut = text if width is None else text[:width]
            width = None if width is None else width - len(cut)
            plain = cut if self._unicode else cut.translate(_PLAIN).encode("ascii", "replace").decode()
            code = _CODES[style] if self.colours and plain else ""
            parts.append(f"\x1b[{code}m{plain}\x1b[0m" if code else plain)
        return "".join(parts).rstrip() if not self.colours else "".join(parts)
