"""The tests that the page on guarantees names are there."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import DOCS, ROOT, Page

PAGE = Page(DOCS / "explanation/guarantees.rst")


def _named() -> set[str]:
    return {each for each in PAGE.literals() if re.fullmatch(r"test_\w+", each)}


def _existing() -> set[str]:
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "domain_event_broker/testing").glob("*.py")]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_test_that_is_named_exists() -> None:
    assert sorted(_named() - _existing()) == []


def test_each_hop_and_each_crash_names_a_test() -> None:
    hops, crashes, faults = PAGE.tables()[:3]
    assert len(hops) + len(crashes) + len(faults) > 25
    assert [row[0] for row in (*hops, *crashes, *faults) if "test_" not in row[-1]] == []
