"""``manage.py declare_queues``: what is left of earlier releases, on the ``database:`` transport."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from domain_event_broker import config, subscribe
from domain_event_broker.django.management.commands import broker_status, declare_queues
from domain_event_broker.events import DomainEvent, encode
from domain_event_broker.handlers import Registry
from domain_event_broker.ports import Stored
from domain_event_broker.transports import open_transport

pytestmark = pytest.mark.django_db(transaction=True)


class Project:
    """Handlers of a project that change from release to release."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = name
        self._monkeypatch = monkeypatch

    def release(self, *keys: str) -> None:
        """Let the handler have these keys; without any it has left the code."""
        handlers = Registry()
        if keys:
            subscribe(*(f"{self.name}.{key}" for key in keys), name=self.name, to=handlers)(print)
        for command in (broker_status, declare_queues):
            self._monkeypatch.setattr(command, "discover", lambda: handlers)

    def reached(self, key: str) -> bool:
        """Publish an event; tell whether a queue got it."""
        transport = open_transport(config.current())  # type: ignore[arg-type]
        try:
            (outcome,) = transport.publish([encode(DomainEvent(f"{self.name}.{key}", {}))])
        finally:
            transport.close()
        return outcome.stored is Stored.STORED


@pytest.fixture
def project(settings: Any, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Project:
    settings.DOMAIN_EVENT_BROKER = "database:"
    return Project(fresh_name("handler"), monkeypatch)


def run(command: str, *arguments: str) -> str:
    output = io.StringIO()
    call_command(command, *arguments, stdout=output)
    return output.getvalue()


def test_a_key_that_no_handler_asks_for_stays_bound_until_it_is_pruned(project: Project) -> None:
    project.release("placed", "paid")
    run("declare_queues")
    project.release("placed")
    assert f"{project.name}: still bound with '{project.name}.paid'" in run("declare_queues")
    assert f"{project.name} still gets '{project.name}.paid'" in run("broker_status")
    assert project.reached("paid")
    assert "its events stay" in run("declare_queues", "--prune", "--yes")
    assert not project.reached("paid")
    assert project.reached("placed")
    assert "no binding is left over" in run("declare_queues", "--prune", "--yes")
    assert "still" not in run("broker_status")


def test_a_handler_that_has_left_is_told_of_as_long_as_its_queue_matters(project: Project) -> None:
    project.release("placed")
    run("declare_queues")
    assert project.reached("placed")
    project.release()
    assert f"{project.name} has left the code, and its queue holds 1 event" in run("broker_status")
    run("declare_queues", "--prune", "--yes")
    assert not project.reached("placed")
    assert "its queue holds 1 event" in run("broker_status")
    project.release("placed")
    run("declare_queues")
    assert "left the code" not in run("broker_status")


def test_only_a_yes_takes_bindings_away(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.release("placed", "paid")
    run("declare_queues")
    project.release("placed")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    with pytest.raises(SystemExit) as stopped:
        run("declare_queues", "--prune")
    assert stopped.value.code == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(CommandError, match="--yes") as caught:
        run("declare_queues", "--prune")
    assert caught.value.returncode == 2
    assert project.reached("paid")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    run("declare_queues", "--prune")
    assert not project.reached("paid")
