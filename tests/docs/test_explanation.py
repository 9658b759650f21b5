"""Names and figures on the explaining pages are those of the code."""

from __future__ import annotations

import re
from typing import Any

from django.apps import apps

from domain_event_broker import events, execution, failures
from domain_event_broker.django.models import BUCKETS
from domain_event_broker.ports import Subscription
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS
from domain_event_broker.transports.rabbitmq.topology import QueueSpec, layout_of
from tests.docs.pages import DOCS, ROOT, Page

QUEUES = Page(DOCS / "explanation/queues.rst")
ARCHITECTURE = Page(DOCS / "explanation/architecture.rst")
GUARANTEES = Page(DOCS / "explanation/guarantees.rst")


def _written(argument: str) -> tuple[str, Any]:
    name, _, value = argument.partition("=")
    return name, int(value) if value.isdigit() else value.strip('"')


def _described(row: list[str]) -> dict[str, Any]:
    return dict(_written(line) for line in row[1].split("\n") if line.strip())


def _actual(spec: QueueSpec, step: int) -> dict[str, Any]:
    return {name: "MS" if value == step else value for name, value in spec.arguments.items()}


def test_the_arguments_of_queues_are_those_that_are_declared() -> None:
    described = {row[0]: _described(row) for row in QUEUES.tables()[0]}
    layout = layout_of(Subscription("NAME", ("order.*",)))
    step, delay = next(iter(layout.delays.items()))
    assert layout.letters is not None
    assert described == {
        layout.handler.name: _actual(layout.handler, step),
        delay.name.replace(str(step), "MS"): _actual(delay, step),
        layout.letters.name: _actual(layout.letters, step),
    }


def test_the_steps_of_the_ladder_are_all_named() -> None:
    sentence = re.search(r"``MS`` is one of ([\d, and]+):", QUEUES.text)
    assert sentence is not None
    assert [int(number) for number in re.findall(r"\d+", sentence[1])] == list(LADDER_MS)


def test_the_headers_are_those_that_travel() -> None:
    named = [literal for literal in QUEUES.literals() if literal.startswith("event-")]
    errors = set(failures.Failure("error").to_headers())
    described = {name for name in named if not name.startswith("event-error")}
    assert described == {
        events.HEADER_ATTEMPT,
        events.HEADER_ROUTING_KEY,
        events.HEADER_NOT_BEFORE,
        events.HEADER_REPLAYS,
        events.HEADER_CODEC,
    }
    parts = next(row[0] for table in QUEUES.tables() for row in table if "event-error" in row[0]).split(", ")
    assert {f"event-error{part.removeprefix('event-error')}" for part in parts} == errors


def test_files_of_the_walk_exist() -> None:
    package = ROOT / "domain_event_broker"
    files = [row[1] for row in ARCHITECTURE.tables()[0]] + [row[2] for row in ARCHITECTURE.tables()[1]]
    named = [name for cell in files for name in re.findall(r"[\w/]+(?:\.py|/)", cell)]
    assert named
    assert [name for name in named if not (package / name).exists()] == []


def test_modules_of_the_arrows_exist() -> None:
    drawn = ARCHITECTURE.blocks("text")[0].text
    names = [
        name for line in drawn.splitlines() for name in re.findall(r"[\w/]+", line.partition("    the ")[0])
    ]
    package = ROOT / "domain_event_broker"
    modules = [name for name in names if (package / f"{name}.py").exists() or (package / name).is_dir()]
    in_code = {path.stem for path in package.glob("*.py")} - {"__init__", "_version", "apps"}
    folders = {path.name for path in package.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert {name.rstrip("/") for name in modules} >= in_code | folders


def test_tables_are_those_of_the_models() -> None:
    named = {
        literal for literal in ARCHITECTURE.literals() if re.fullmatch(r"domain_event_broker_\w+", literal)
    }
    models = apps.get_app_config("domain_event_broker").get_models()
    assert named == {model._meta.db_table for model in models if model._meta.managed}


def test_figures_of_the_guarantees_are_those_of_the_code() -> None:
    assert f"spread over {BUCKETS} buckets" in GUARANTEES.text
    assert f"After {execution.MAX_CRASHES} such deaths" in GUARANTEES.text
