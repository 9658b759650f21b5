"""The reader notices when a page is wrong: else the other tests here would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, Page
from tests.docs.reader import Reader, find_lines


def _console(text: str) -> Block:
    return Block(ROOT / "README.rst", 1, "console", text)


def _python(text: str, not_run: str = "") -> Block:
    return Block(ROOT / "README.rst", 1, "python", text, not_run)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (["one", "two"], True),
        (["two", "one"], False),
        (["three: ... items"], True),
        (["thr"], False),
        (["...", "two"], True),
        (["four"], False),
        ([], True),
    ],
)
def test_lines_are_found_whole_and_in_their_order(expected: list[str], found: bool) -> None:
    printed = "one\nsomething else\n  two\nthree: 17 items\n"
    assert (find_lines(expected, printed) is not None) is found


def test_output_that_does_not_come_fails_the_page(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="and not\ngood morning"):
        reader.do(_console("$ echo good evening\ngood morning"))


def test_a_command_that_fails_fails_the_page(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        reader.do(_console("$ exit 3"))


def test_a_worker_that_ends_fails_the_page(reader: Reader) -> None:
    reader.write("manage.py", "print('I have other plans')")
    with pytest.raises(AssertionError, match="I have other plans"):
        reader.do(_console("$ python manage.py run_relay"))


def test_python_that_raises_fails_the_page(reader: Reader) -> None:
    reader.start_project()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        reader.do(_python("1 / 0"))
    reader.do(_python("1 / 0", not_run="it would fail"))


def test_a_file_is_written_and_added_to(reader: Reader) -> None:
    reader.do(_python("# shop/greeting.py\nprint('hello')"))
    reader.do(_python("# shop/greeting.py, at the end\nprint('again')"))
    reader.do(_console("$ python shop/greeting.py\nhello\nagain"))


def test_a_page_tells_its_warnings_and_blocks(tmp_path: Path) -> None:
    path = tmp_path / "page.rst"
    path.write_text(
        "Page\n====\n\n.. not run: because\n\n.. code-block:: python\n\n    1 / 0\n\nA `broken <reference.\n"
    )
    page = Page(path)
    assert "Inline interpreted text" in page.warnings
    assert [(block.language, block.text, block.not_run) for block in page.blocks()] == [
        ("python", "1 / 0", "because")
    ]
