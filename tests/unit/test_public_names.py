"""The root of the package: light to import, and complete when asked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import domain_event_broker
from domain_event_broker.typed import EventModel

#: What a program that only publishes or subscribes shall not have to load.
HEAVY = ("asyncio", "pydantic", "django", "celery", "pika", "redis", "confluent_kafka")


def _run(program: str) -> str:
    """Run a program in a Python of its own, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def test_importing_the_package_loads_no_heavy_library() -> None:
    names = f"[name for name in {HEAVY!r} if name in sys.modules]"
    assert _run(f"import sys, domain_event_broker; print({names})") == "[]"


def test_names_that_are_loaded_late_are_listed_and_there() -> None:
    assert "EventModel" in dir(domain_event_broker)
    assert domain_event_broker.EventModel is EventModel
    for name in domain_event_broker.__all__:
        assert hasattr(domain_event_broker, name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'EventModl'"):
        _ = domain_event_broker.EventModl  # type: ignore[attr-defined]


def test_without_pydantic_all_works_but_typed_events_which_say_what_to_install() -> None:
    program = """
import sys
sys.modules["pydantic"] = None
from domain_event_broker import *
from domain_event_broker.errors import MissingDependency
publish_domain_event("a.b", {"n": 1}, connection_settings="memory:")
import domain_event_broker
try:
    domain_event_broker.EventModel
except MissingDependency as error:
    print(error)
"""
    assert _run(program).endswith("pip install 'django-domain-event-broker[typed]'")
