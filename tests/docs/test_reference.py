"""The reference says what the code says: nothing more, nothing less, nothing old."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from docutils import nodes

import domain_event_broker
from domain_event_broker import errors
from domain_event_broker.config import BrokerSettings, MonitoringSettings, OutboxSettings, SubscriberSettings
from domain_event_broker.django.management import base
from tests.docs.pages import DOCS, ROOT, Page, all_pages

REFERENCE = DOCS / "reference"
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "domain_event_broker/django/management/commands").glob("*.py")
    if not path.stem.startswith("_")
)


def _section(page: Page, title: str) -> nodes.section:
    found = [section for name, section in page.sections() if name == title]
    assert len(found) == 1, f"{page} has {len(found)} sections named {title!r}"
    return found[0]


def _rows(section: nodes.section) -> list[list[str]]:
    """The rows of the first table of a section, without its header."""
    body = next(iter(section.findall(nodes.tbody)))
    return [[entry.astext() for entry in row.findall(nodes.entry)] for row in body.findall(nodes.row)]


# --- settings ---------------------------------------------------------------------------


def _type_name(hint: Any) -> str:
    names = [getattr(kind, "__name__", str(kind)) for kind in getattr(hint, "__args__", None) or (hint,)]
    return " or ".join("None" if name == "NoneType" else name for name in names)


def _declared(cls: type[Any]) -> list[list[str]]:
    """Key, type and default of each plain setting of a dataclass."""
    hints = get_type_hints(cls)
    nested = (OutboxSettings, SubscriberSettings, MonitoringSettings)
    return [
        [item.name.upper(), _type_name(hints[item.name]), _written(item.default)]
        for item in fields(cls)
        if item.name not in ("url", "codec") and hints[item.name] not in nested
    ]


def _written(default: object) -> str:
    assert default is not MISSING
    return str(default) if isinstance(default, (int, float)) else repr(default).replace("'", '"')


#: Settings whose types and defaults are told in words.
_FREE = ("URL", "CODEC", "OUTBOX", "SUBSCRIBER", "MONITORING")

settings_sections = pytest.mark.parametrize(
    ("title", "cls"),
    [
        ("Top level", BrokerSettings),
        ("OUTBOX", OutboxSettings),
        ("SUBSCRIBER", SubscriberSettings),
        ("MONITORING", MonitoringSettings),
    ],
)


@settings_sections
def test_settings_are_listed_with_their_types_and_defaults(title: str, cls: type[Any]) -> None:
    rows = [row[:3] for row in _rows(_section(Page(REFERENCE / "settings.rst"), title))]
    assert [row for row in rows if row[0] not in _FREE] == _declared(cls)


@settings_sections
def test_settings_with_choices_list_all_of_them(title: str, cls: type[Any]) -> None:
    meanings = {row[0]: row[3] for row in _rows(_section(Page(REFERENCE / "settings.rst"), title))}
    for item in fields(cls):
        for choice in item.metadata.get("choices", ()):
            assert f'"{choice}"' in meanings[item.name.upper()]


# --- commands ---------------------------------------------------------------------------


def _command(name: str) -> BaseCommand:
    command = load_command_class("domain_event_broker.django", name)
    assert isinstance(command, BaseCommand)
    return command


def _own_actions(name: str) -> Iterator[Action]:
    """What a command adds to the options that every command of Django has."""
    common = {action.dest for action in BaseCommand().create_parser("manage.py", name)._actions}
    for action in _command(name).create_parser("manage.py", name)._actions:
        if action.dest not in common and action.help != SUPPRESS:
            yield action


def _spelled(action: Action) -> str:
    """How an argument is written in the reference: ``NAME...``, ``--limit N``, ``--json``."""
    if not action.option_strings:
        return f"{action.metavar}..."
    return f"{action.option_strings[0]} {action.metavar or _placeholder(action)}".rstrip()


def _placeholder(action: Action) -> str:
    return "" if action.nargs == 0 else action.dest.upper()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_described_with_all_its_options(name: str) -> None:
    section = _section(Page(REFERENCE / "commands.rst"), name)
    expected = [_spelled(action) for action in _own_actions(name)]
    assert sorted(row[0] for row in _rows(section)) == sorted(expected)


def test_no_command_is_described_that_does_not_exist() -> None:
    titles = [title for title, _ in Page(REFERENCE / "commands.rst").sections()]
    assert [title for title in titles if "_" in title and title not in COMMANDS] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_its_options(name: str) -> None:
    text = _command(name).create_parser("manage.py", name).format_help()
    for action in _own_actions(name):
        assert action.help, f"{name} {_spelled(action)} says nothing"
        for option in action.option_strings:
            assert option in text
    assert " object" not in text.replace(" object_id", "")


@pytest.mark.parametrize("page", all_pages(), ids=str)
def test_options_in_examples_exist(page: Page) -> None:
    for block in page.blocks("console"):
        for command, _ in block.commands:
            for name in (name for name in COMMANDS if re.search(rf"manage\.py {name}\b", command)):
                text = _command(name).create_parser("manage.py", name).format_help()
                used = command.partition(name)[2].partition("|")[0]
                assert [word for word in re.findall(r"--[\w-]+", used) if word not in text] == []


def test_exit_codes_are_those_of_the_commands() -> None:
    rows = _rows(_section(Page(REFERENCE / "commands.rst"), "Exit codes"))
    assert [int(row[0]) for row in rows] == [base.OK, base.FAILED, base.USAGE, base.AWAY, base.LEFT_BEHIND]


# --- errors -----------------------------------------------------------------------------


def _drawn_tree(text: str) -> dict[str, str]:
    """Read a tree drawn with lines: each name with that of its parent."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r"^(?P<lines>[ │├└─]*)(?P<name>\w+)", line)
        if found is None:
            path = []
            continue
        depth = len(found["lines"])
        path = [step for step in path if step[0] < depth]
        parents[found["name"]] = path[-1][1] if path else ""
        path.append((depth, found["name"]))
    return parents


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and each.__module__ == errors.__name__
    ]
    known = {each.__name__ for each in classes}
    expected = {
        each.__name__: (each.__bases__[0].__name__ if each.__bases__[0].__name__ in known else "")
        for each in classes
    }
    page = Page(REFERENCE / "errors.rst")
    assert _drawn_tree(page.blocks("text")[0].text) == expected
    assert _drawn_tree(inspect.getdoc(errors) or "").items() >= expected.items()


def test_each_error_is_explained() -> None:
    explained = {row[0] for table in Page(REFERENCE / "errors.rst").tables() for row in table}
    drawn = set(_drawn_tree(Page(REFERENCE / "errors.rst").blocks("text")[0].text))
    assert drawn - {"HandlerSignal"} <= explained


# --- the Python API -----------------------------------------------------------------------


def _one_line(signature: str) -> str:
    """A signature without the differences that do not matter: quotes, line breaks, last comma."""
    text = re.sub(r"\s+", " ", signature).replace('"', "'").replace("( ", "(").replace(" )", ")")
    return text.replace(",)", ")").strip()


def _plain(function: Any) -> str:
    """The signature of a function: names and defaults, without annotations and ``self``."""
    signature = inspect.signature(function)
    kept = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    text = str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))
    return text.replace("<function retry_event>", "retry_event")


def _described_signatures() -> dict[str, str]:
    """Each name of the page with what stands between its parentheses."""
    found: dict[str, str] = {}
    for block in Page(REFERENCE / "api.rst").blocks("python"):
        if "signature" in block.not_run:
            for match in re.finditer(r"^([\w.]+)(\((?:.|\n)*?\))$", block.text, re.MULTILINE):
                found[match[1]] = _one_line(match[2])
    return found


def _look_up(name: str) -> Any:
    value: Any = domain_event_broker
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_signatures_are_those_of_the_code() -> None:
    described = _described_signatures()
    assert described
    actual = {
        name: _one_line(re.sub(r"<function (\w+) at \w+>", r"\1", _plain(_look_up(name))))
        for name in described
    }
    assert described == actual


def test_each_public_name_is_described() -> None:
    page = Page(REFERENCE / "api.rst")
    mentioned = {re.split(r"[(.]", literal)[0] for literal in page.literals()}
    described = {name.partition(".")[0] for name in _described_signatures()} | mentioned
    assert set(domain_event_broker.__all__) - described == set()


@pytest.mark.parametrize("name", ["Publisher", "Subscriber", "DomainEvent"])
def test_each_public_method_is_described(name: str) -> None:
    described = _described_signatures()
    methods = [
        f"{name}.{member}"
        for member, value in vars(getattr(domain_event_broker, name)).items()
        if not member.startswith("_") and callable(getattr(value, "__func__", value))
    ]
    assert [method for method in methods if method not in described] == []
