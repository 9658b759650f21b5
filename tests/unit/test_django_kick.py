"""Commits that start the relay task, where Celery is missing or its broker away: no request pays for it."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import transaction

from domain_event_broker import publish_domain_event
from domain_event_broker.django import outbox as outbox_module
from domain_event_broker.django.kick import Kicker
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.errors import TaskQueueUnavailable
from tests.integration.tasks.conftest import app

SETTING = {"URL": "memory:", "OUTBOX": {"RELAY_TASK": True}}


@pytest.fixture
def kicked(monkeypatch: pytest.MonkeyPatch, settings: Any) -> list[str]:
    """The aliases for which the task was started."""
    started: list[str] = []
    settings.DOMAIN_EVENT_BROKER = SETTING

    def start(self: Kicker, alias: str) -> None:
        started.append(alias)

    monkeypatch.setattr(Kicker, "_start", start)
    monkeypatch.setattr(outbox_module, "kicker", Kicker())
    return started


@pytest.fixture
def celery_away() -> None:
    """Celery's broker is where nobody listens."""
    app.conf.update(broker_url="amqp://guest:very-secret@127.0.0.1:1//", task_always_eager=False)


@pytest.mark.django_db(transaction=True)
def test_a_transaction_starts_the_task_once_after_it_has_committed(kicked: list[str]) -> None:
    with transaction.atomic():
        publish_domain_event("order.placed", {})
        publish_domain_event("order.paid", {})
        assert kicked == []
    assert kicked == ["default"]


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_rolled_back_starts_nothing(kicked: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        publish_domain_event("order.placed", {"rate": 1 / 0})
    assert kicked == []


@pytest.mark.django_db(transaction=True)
def test_nothing_is_started_unless_it_is_asked_for(kicked: list[str], settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "memory:"
    publish_domain_event("order.placed", {})
    assert kicked == []


@pytest.mark.django_db(transaction=True)
def test_a_broker_of_celery_that_is_away_is_told_once_and_left_alone(
    celery_away: None, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DOMAIN_EVENT_BROKER = SETTING
    monkeypatch.setattr(outbox_module, "kicker", Kicker())
    for _ in range(3):
        publish_domain_event("order.placed", {})
    assert OutboxEvent.objects.count() == 3
    told = [record.getMessage() for record in caplog.records if "relay task" in record.getMessage()]
    assert len(told) == 1
    assert "127.0.0.1:1" in told[0]
    assert "very-secret" not in told[0]


def test_it_is_tried_again_after_a_while_and_told_when_it_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception | None] = [TaskQueueUnavailable("away"), TaskQueueUnavailable("away"), None]

    def start(self: Kicker, alias: str) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(Kicker, "_start", start)
    kicker = Kicker(pause_seconds=0)
    with caplog.at_level("INFO", "domain_event_broker.outbox"):
        for _ in range(3):
            kicker.kick("default")
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert answers == []


def test_while_it_is_left_alone_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def start(self: Kicker, alias: str) -> None:
        tries.append(alias)
        raise TaskQueueUnavailable("away")

    monkeypatch.setattr(Kicker, "_start", start)
    kicker = Kicker(pause_seconds=3600)
    for _ in range(3):
        kicker.kick("default")
    assert tries == ["default"]


@pytest.mark.django_db
def test_celery_that_is_missing_is_found_by_the_checks(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DOMAIN_EVENT_BROKER = SETTING
    assert run_checks(tags=["domain_event_broker"]) == []
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(ModuleNotFoundError):
        import celery  # noqa: F401
    messages = run_checks(tags=["domain_event_broker"])
    assert [message.id for message in messages] == ["domain_event_broker.E006"]


@pytest.fixture
def silent() -> Iterator[list[socket.socket]]:
    """Connections to Celery's broker, which takes them and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                taken.append(connection)
                if ended.is_set():
                    return

        ended = threading.Event()
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        app.conf.update(broker_url=f"amqp://guest:guest@127.0.0.1:{port}//", task_always_eager=False)
        yield taken
        ended.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(30)
        for connection in taken:
            connection.close()


def test_a_broker_of_celery_that_says_nothing_is_not_asked_a_second_time(
    silent: list[socket.socket],
) -> None:
    Kicker().kick("default")
    # Kombu tries twice to connect, and it is not told to begin again.
    assert 1 <= len(silent) <= 2


def test_after_a_failure_one_request_tries_and_no_other_waits_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[str] = []
    kicker = Kicker(pause_seconds=0)

    def start(self: Kicker, alias: str) -> None:
        tries.append(alias)
        if alias == "first":
            raise TaskQueueUnavailable("away")
        kicker.kick("another request, meanwhile")

    monkeypatch.setattr(Kicker, "_start", start)
    kicker.kick("first")
    kicker._pause_seconds = 3600
    kicker.kick("second")
    assert tries == ["first", "second"]
    assert kicker._may_try()
