"""The service by which libraries are compared works with ours; the others are for the hand: see ``peers``."""

from __future__ import annotations

from pathlib import Path

from tests.faults.peers.__main__ import trial


def test_in_the_service_of_the_comparison_ours_loses_nothing(tmp_path: Path) -> None:
    figures = trial("ours", 8.0, 3, tmp_path).figures
    assert figures["published (business rows committed)"] > 0
    assert figures["LOST"] == 0
    assert figures["took effect twice"] == 0
    assert figures["waiting in outbox or queue"] == 0
