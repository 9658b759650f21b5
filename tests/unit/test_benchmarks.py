"""What the benchmarks make of their samples."""

from __future__ import annotations

import json

import pytest

from benchmarks.program import Figure, as_json, as_table, main


def test_a_figure_is_shown_with_as_many_digits_as_mean_something() -> None:
    assert (
        "12,346 events/s  (999.9 to 12,346)" in Figure("pace", "events/s", [999.9, 12345.6, 12345.7]).line()
    )
    assert "0.76 ratio" in Figure("share", "ratio", [0.7551, 0.7571]).line()


def test_the_table_has_a_row_for_each_figure() -> None:
    table = as_table([Figure("pace", "events/s", [1.0, 2.0, 3.0]), Figure("share", "ratio", [0.5])])
    assert table.splitlines()[3:] == [
        "   * - What",
        "     - Median",
        "     - Range",
        "   * - pace",
        "     - 2.0 events/s",
        "     - 1.0 to 3.0",
        "   * - share",
        "     - 0.50",
        "     - 0.50 to 0.50",
    ]


def test_the_file_says_what_the_figures_are_of() -> None:
    written = json.loads(json.dumps(as_json([Figure("pace", "events/s", [1.0, 3.0])])))
    assert {"python", "system", "processors", "Django", "psycopg", "pika"} <= set(written["machine"])
    assert written["figures"] == [{"name": "pace", "unit": "events/s", "median": 2.0, "samples": [1.0, 3.0]}]


@pytest.mark.parametrize("arguments", [[], ["publsh"]])
def test_what_there_is_to_measure_is_told_where_nothing_known_was_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "publish, relay, subscribe" in capsys.readouterr().err
