"""What ``manage.py check`` says of handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from domain_event_broker import DeadLetter, subscribe
from domain_event_broker.django import checks
from domain_event_broker.errors import HandlerError
from domain_event_broker.handlers import Registry


@pytest.fixture
def discover(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Callable[[Callable[[], Registry]], None]:
    """Return a function that says how handlers are found."""
    settings.DOMAIN_EVENT_BROKER = "database:"
    return lambda find: monkeypatch.setattr(checks, "discover", find)


def failing(error: Exception) -> Callable[[], Registry]:
    def find() -> Registry:
        raise error

    return find


def test_the_handlers_of_the_project_are_in_order() -> None:
    assert checks.check_handlers() == []


def test_a_handler_that_cannot_be_called_is_an_error(discover: Callable[[Any], None]) -> None:
    discover(failing(HandlerError("shop.charge has the parameter 'amount'")))
    (message,) = checks.check_handlers()
    assert message.id == "domain_event_broker.E004"
    assert "'amount'" in message.msg


def test_a_module_that_cannot_be_imported_is_a_warning(discover: Callable[[Any], None]) -> None:
    discover(failing(ModuleNotFoundError("No module named 'shpo'")))
    (message,) = checks.check_handlers()
    assert message.id == "domain_event_broker.W004"
    assert "No module named 'shpo'" in message.msg


def test_what_the_broker_cannot_do_is_an_error(discover: Callable[[Any], None], settings: Any) -> None:
    registry = Registry()
    subscribe("#", name="ledger", dead_letter=DeadLetter(max_length=9), to=registry)(print)
    discover(lambda: registry)
    (message,) = checks.check_handlers()
    assert message.id == "domain_event_broker.E005"
    assert "'ledger' limits its dead letters" in message.msg
    settings.DOMAIN_EVENT_BROKER = "memory:"
    assert checks.check_handlers() == []


@pytest.mark.parametrize("value", [None, "ftp://somewhere"])
def test_without_a_broker_nothing_is_imported(
    discover: Callable[[Any], None], settings: Any, value: object
) -> None:
    discover(failing(AssertionError("not to be asked")))
    settings.DOMAIN_EVENT_BROKER = value
    assert checks.check_handlers() == []
