"""A pytest plugin: the table of the contract suite, transports against promises.

Loaded for the whole run, not by the tests it reports on: with xdist those run in other
processes, and only what is on the report of a test comes back.
"""

from __future__ import annotations

import pytest

#: Name of the property that tells transport and promise of a test.
PROPERTY = "transport-contract"
#: What a cell says, worst last: a test has several reports, and the worst counts.
OUTCOMES = ("kept", "n/a", "FAILED")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note on the test which promise of which transport it is."""
    test_class: type = getattr(item, "cls", None) or object
    contract = [base for base in test_class.__mro__ if base.__name__ == "TransportContract"]
    if contract and hasattr(contract[0], item.name):
        promise = item.name.removeprefix("test_").replace("_", " ")
        item.user_properties.append((PROPERTY, [transport_title(test_class), promise]))


def transport_title(test_class: type) -> str:
    """Return the name of a column: the attribute ``title``, or the name of the class."""
    return getattr(test_class, "title", None) or test_class.__name__.removeprefix("Test")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if any promise was tested."""
    cells = _cells(terminalreporter)
    if cells:
        terminalreporter.section("transports x promises")
        for line in table(cells):
            terminalreporter.write_line(line)


def _cells(reporter: pytest.TerminalReporter) -> dict[tuple[str, str], str]:
    words = {"passed": "kept", "skipped": "n/a", "failed": "FAILED", "error": "FAILED"}
    cells: dict[tuple[str, str], str] = {}
    for kind, word in words.items():
        for report in reporter.stats.get(kind, []):
            for name, value in getattr(report, "user_properties", []):
                if name == PROPERTY:
                    transport, promise = value
                    before = cells.get((promise, transport), word)
                    cells[promise, transport] = max(before, word, key=OUTCOMES.index)
    return cells


def table(cells: dict[tuple[str, str], str]) -> list[str]:
    """Return the lines of the table: a row for each promise, a column for each transport."""
    promises = list(dict.fromkeys(promise for promise, _ in cells))
    transports = sorted({transport for _, transport in cells})
    width = max(map(len, promises))
    heading = " | ".join([" " * width, *transports])
    lines = [heading, "-" * len(heading)]
    for promise in sorted(promises):
        row = [cells.get((promise, each), "").ljust(len(each)) for each in transports]
        lines.append(" | ".join([promise.ljust(width), *row]).rstrip())
    return [*lines, _sum(cells, len(promises), transports)]


def _sum(cells: dict[tuple[str, str], str], promises: int, transports: list[str]) -> str:
    counts = {word: sum(1 for each in cells.values() if each == word) for word in OUTCOMES}
    told = ", ".join(f"{number} {word}" for word, number in counts.items())
    return f"{promises} promises, {len(transports)} transports: {told}"
