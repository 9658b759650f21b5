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


def test_who_publishes_loads_nothing_of_what_subscribers_need() -> None:
    parts = ("handlers", "injection", "subscriber", "workers", "replay", "transports.rabbitmq")
    program = f"""
import sys
from domain_event_broker import DomainEvent, publish_domain_event
publish_domain_event("a.b", {{"n": 1}}, connection_settings="memory:")
print([part for part in {parts!r} if "domain_event_broker." + part in sys.modules])
print("importlib.metadata" in sys.modules)
"""
    assert _run(program) == "[]\nFalse"


def test_a_module_is_there_once_the_package_is_imported() -> None:
    program = """
import domain_event_broker
domain_event_broker.settings.BROKER = None
print(domain_event_broker.publisher.publish_domain_event is domain_event_broker.publish_domain_event)
"""
    assert _run(program) == "True"


def test_each_public_name_is_that_of_the_module_that_has_it() -> None:
    for module, names in domain_event_broker._NAMES.items():
        for name in names:
            assert getattr(getattr(domain_event_broker, module), name) is getattr(domain_event_broker, name)
    assert {name for names in domain_event_broker._NAMES.values() for name in names} == {
        *domain_event_broker.__all__,
        "EventModel",
    } - {"__version__"}
