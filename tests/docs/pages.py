"""The pages of the documentation, read as docutils reads them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"

#: The rst comment before a block that a reader cannot simply run, with the reason.
NOT_RUN = "not run:"

#: First line of a block of Python that belongs into a file of the reader's project.
_FILE_LINE = re.compile(r"# (?P<path>[\w/]+\.py)(?P<append>, at the end)?\s*")


@dataclass(frozen=True)
class Block:
    """A ``code-block``.

    :param not_run: why it is not executed; empty: it is.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> tuple[str, bool] | None:
        """The file that the block is for, and whether it is added at the end of that file."""
        found = _FILE_LINE.fullmatch(self.text.partition("\n")[0])
        return (found["path"], bool(found["append"])) if found else None

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands of a block of console, each with the lines that it shall print."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and line.strip():
                found[-1][1].append(line.strip())
        return found


@dataclass(frozen=True)
class Page:
    """One page of the documentation."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """The source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def _parsed(self) -> tuple[nodes.document, str]:
        warnings = io.StringIO()
        overrides = {
            "report_level": 2,
            "halt_level": 5,
            "warning_stream": warnings,
            "syntax_highlight": "none",
            "input_encoding": "utf-8",
        }
        tree = publish_doctree(self.text, source_path=str(self.path), settings_overrides=overrides)
        return tree, warnings.getvalue()

    @property
    def tree(self) -> nodes.document:
        """The document."""
        return self._parsed[0]

    @property
    def warnings(self) -> str:
        """What docutils has to say against the page."""
        return self._parsed[1]

    def blocks(self, language: str | None = None) -> list[Block]:
        """The code blocks, in order."""
        found = [self._block(node) for node in self.tree.findall(nodes.literal_block)]
        return [block for block in found if language in (None, block.language)]

    def blocks_in(self, title: str) -> list[Block]:
        """The code blocks of one section, in order."""
        section = next(section for name, section in self.sections() if name == title)
        return [self._block(node) for node in section.findall(nodes.literal_block)]

    def sections(self) -> Iterator[tuple[str, nodes.section]]:
        """Each section, with its title."""
        for section in self.tree.findall(nodes.section):
            yield section[0].astext(), section

    def tables(self) -> list[list[list[str]]]:
        """The tables: rows of cells, without the header."""
        return [
            [[entry.astext() for entry in row.findall(nodes.entry)] for row in body.findall(nodes.row)]
            for body in self.tree.findall(nodes.tbody)
        ]

    def literals(self) -> list[str]:
        """What is written between double backquotes."""
        return [node.astext() for node in self.tree.findall(nodes.literal)]

    def links(self) -> list[str]:
        """The targets of links."""
        return [node["refuri"] for node in self.tree.findall(nodes.reference) if "refuri" in node]

    def _block(self, node: nodes.literal_block) -> Block:
        language = next((name for name in node["classes"] if name != "code"), "")
        text = node.astext()
        first = text.partition("\n")[0]
        line = next((n for n, each in enumerate(self.text.splitlines(), 1) if each.strip() == first), 0)
        return Block(self.path, line, language, text, _reason_before(node))


def _reason_before(node: nodes.literal_block) -> str:
    position = node.parent.index(node)
    before = node.parent[position - 1] if position else None
    if isinstance(before, nodes.comment) and before.astext().startswith(NOT_RUN):
        return before.astext().removeprefix(NOT_RUN).strip()
    return ""


README = Page(ROOT / "README.rst")
CHANGELOG = Page(ROOT / "CHANGELOG.rst")


def documentation() -> list[Page]:
    """All pages below docs/."""
    return [Page(path) for path in sorted(DOCS.rglob("*.rst"))]


def all_pages() -> list[Page]:
    """All pages, those in the root of the repository first."""
    return [README, CHANGELOG, *documentation()]
