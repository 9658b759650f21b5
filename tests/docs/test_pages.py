"""What holds for every page: it reads well, and what it points at is there."""

from __future__ import annotations

import ast
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.docs.pages import CHANGELOG, DOCS, README, ROOT, Block, Page, all_pages, documentation

#: Folders whose files pages name as they are seen from the root of the repository.
_FOLDERS = ("benchmarks/", "docs/", "domain_event_broker/", "example_project/", "tests/")
#: A pip line's extras: ``pip install "django-domain-event-broker[django,postgres]"``.
_EXTRAS = re.compile(r"django-domain-event-broker\[([\w,]+)\]")
#: Shelves of the documentation, as the README names them.
_SHELVES = ("how-to", "explanation", "reference")

pages = pytest.mark.parametrize("page", all_pages(), ids=str)


def _blocks(language: str) -> list[Block]:
    return [block for page in all_pages() for block in page.blocks(language)]


@pages
def test_a_page_parses_without_a_warning(page: Page) -> None:
    assert page.warnings == ""


@pages
def test_links_between_pages_lead_somewhere(page: Page) -> None:
    local = [link.partition("#")[0] for link in page.links() if "://" not in link and "@" not in link]
    assert [link for link in local if link and not (page.path.parent / link).exists()] == []


@pages
def test_files_that_a_page_names_exist(page: Page) -> None:
    words = page.literals() + re.findall(r"[\w./-]+\.rst\b", page.text)
    named = [word for word in words if word.startswith(_FOLDERS) and "*" not in word and " " not in word]
    assert [word for word in named if not (ROOT / word).exists()] == []


@pages
def test_a_block_says_what_language_it_is_in(page: Page) -> None:
    known = {"python", "console", "text", "ini", "yaml", "sql", "json"}
    assert [str(block) for block in page.blocks() if block.language not in known] == []


@pytest.mark.parametrize("block", _blocks("python"), ids=str)
def test_python_is_python(block: Block) -> None:
    if "signature" not in block.not_run:
        ast.parse(block.text)


@pytest.mark.parametrize("block", _blocks("console"), ids=str)
def test_a_block_of_console_holds_commands_a_shell_can_read(block: Block) -> None:
    for command, _ in block.commands:
        assert shlex.split(command)


def test_extras_in_pip_lines_are_declared() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = set(setup["options.extras_require"])
    text = "\n".join(page.text for page in all_pages())
    named = {extra for found in _EXTRAS.findall(text) for extra in found.split(",")}
    assert named
    assert named <= declared


def test_every_page_of_the_documentation_is_linked_from_its_front_page() -> None:
    front = Page(DOCS / "index.rst")
    linked = {(DOCS / link).resolve() for link in front.links() if "://" not in link}
    assert {page.path for page in documentation()} - {front.path} == linked


def test_each_shelf_that_the_readme_names_has_pages() -> None:
    for shelf in _SHELVES:
        assert f"docs/{shelf}/" in README.text
        assert list((DOCS / shelf).glob("*.rst"))


def test_the_commands_of_the_readme_for_a_checkout_can_be_started() -> None:
    commands = [block.commands[0][0].split()[0] for block in README.blocks("console") if block.not_run]
    programs = [Path(ROOT / command) for command in commands]
    assert programs
    for program in programs:
        assert program.stat().st_mode & 0o111, program


def test_readme_and_changelog_name_the_version_that_is_being_made() -> None:
    from domain_event_broker import __version__

    assert __version__ in CHANGELOG.text
