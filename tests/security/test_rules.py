"""Rules of security are on for the whole package, and each exception has its reason beside it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "domain_event_broker"
#: An exception from a rule of security (S...), and what is said for it.
_EXCEPTION = re.compile(r"# (?:ruff: )?noqa:? ?(?P<rules>[A-Z0-9, ]*)(?P<rest>.*)")


def _exceptions() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = _EXCEPTION.search(line)
            if match:
                place = f"{path.relative_to(ROOT)}:{number}"
                found.append((place, match["rules"].strip(" ,"), match["rest"].strip(" -")))
    return found


def test_exceptions_are_found() -> None:
    assert any("S608" in rules for _, rules, _ in _exceptions())


def test_no_exception_is_made_from_all_rules() -> None:
    assert [place for place, rules, _ in _exceptions() if not rules] == []


def test_each_exception_from_a_rule_of_security_says_why() -> None:
    unexplained = [
        place for place, rules, reason in _exceptions() if re.search(r"\bS\d{3}", rules) and len(reason) < 8
    ]
    assert unexplained == []


def test_statements_are_put_together_in_the_django_app_only() -> None:
    places = {place.rpartition(":")[0] for place, rules, _ in _exceptions() if "S608" in rules}
    assert {Path(place).parent.name for place in places} == {"django"}


@pytest.mark.parametrize("forbidden", ["pickle", "marshal", "shelve", "eval(", "exec(", "mark_safe", "|safe"])
def test_what_could_run_what_others_wrote_is_nowhere(forbidden: str) -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.html")]
    word = re.compile(rf"(?<![\w.]){re.escape(forbidden)}" if forbidden[0] != "|" else r"\|\s*safe\b")
    assert [str(path) for path in files if word.search(_code(path))] == []


def _code(path: Path) -> str:
    """Return a file without its comments and docstrings, which may name what they avoid."""
    if path.suffix != ".py":
        return path.read_text()
    return ast.unparse(_without_docstrings(ast.parse(path.read_text())))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return tree


def test_the_rules_are_on_and_the_package_keeps_them() -> None:
    pytest.importorskip("ruff", reason="the environment 'lint' has it")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "S", str(PACKAGE)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
