"""Every warning and every error that can be in a log is explained on the page of failure modes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import DOCS, ROOT, Page

PAGE = Page(DOCS / "explanation/failure-modes.rst")
LEVELS = {"warning", "error", "exception", "critical", "log"}
#: What stands for anything: of a format, and of a quotation.
_PLACEHOLDER = re.compile(r"%[-+#0-9.]*[a-zA-Z]")


def _lines() -> Iterator[tuple[str, str]]:
    """Yield where each log line is written, and its text."""
    for path in sorted((ROOT / "domain_event_broker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = _text(node)
            if text:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
        return ""
    if "log" not in ast.unparse(node.func.value).lower():
        return ""
    constants = [each.value for each in node.args if isinstance(each, ast.Constant)]
    return next((text for text in constants if isinstance(text, str)), "")


def _quoted() -> list[re.Pattern[str]]:
    """What the page quotes, as patterns."""
    quotations = [" ".join(each.split()) for each in PAGE.literals() if " " in each]
    return [
        re.compile(".*".join(re.escape(part) for part in each.split("...")), re.DOTALL) for each in quotations
    ]


LINES = list(_lines())


def test_lines_are_found() -> None:
    assert len(LINES) > 20


@pytest.mark.parametrize(("place", "text"), LINES, ids=[place for place, _ in LINES])
def test_a_line_of_the_log_is_explained(place: str, text: str) -> None:
    written = _PLACEHOLDER.sub("X", text)
    known = [each for each in _quoted() if each.pattern.replace(".*", "").strip("; ")]
    assert any(each.fullmatch(written) for each in known), f"{place} writes {text!r}"


def test_no_quotation_stands_for_everything() -> None:
    """Or the test above could not fail."""
    unheard_of = "something of which nobody has ever heard in a log"
    assert not [each.pattern for each in _quoted() if each.fullmatch(unheard_of)]
