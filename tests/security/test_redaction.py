"""What the hook REDACT lets be seen, and that nothing else is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from domain_event_broker import DomainEvent, config, redaction
from domain_event_broker.codecs import bodies_of
from domain_event_broker.events import HEADER_CODEC, encode
from tests.integration.admin import stage

HOOKS = "tests.security.hooks"
SECRET = "4111-1111-t0p"
EVENT = DomainEvent("order.placed", {"card": SECRET, "total": 25})


def shown(settings: Any, body: bytes | None = None, headers: Any = None, **options: Any) -> str:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", **options}
    return redaction.shown(encode(EVENT).body if body is None else body, headers or {})


def test_without_the_hook_the_body_is_shown(settings: Any) -> None:
    assert shown(settings) == encode(EVENT).body.decode()


def test_with_the_hook_its_answer_is_shown_and_nothing_else(settings: Any) -> None:
    assert shown(settings, REDACT=f"{HOOKS}.redact") == '{"total": 25}'
    assert shown(settings, REDACT=f"{HOOKS}.redact_to_text") == "an order of 25"
    assert shown(settings, REDACT=f"{HOOKS}.redact_to_nothing") == "(hidden)"


@pytest.mark.parametrize(
    "hook", ["redact_badly", "redact_to_what_json_cannot_hold", "no_function", "missing"]
)
def test_a_hook_that_fails_shows_nothing(hook: str, settings: Any) -> None:
    text = shown(settings, REDACT=f"{HOOKS}.{hook}")
    assert text.startswith("(hidden: ")
    assert SECRET not in text


def test_a_body_that_the_hook_cannot_get_is_hidden(settings: Any) -> None:
    text = shown(settings, b'{"card": "%s"' % SECRET.encode(), REDACT=f"{HOOKS}.redact")
    assert text == f"(hidden: {len(SECRET) + 11} bytes that are no event, or cannot be opened here)"


def test_settings_that_cannot_be_read_show_nothing(settings: Any) -> None:
    text = shown(settings, REDACT=f"{HOOKS}.redact", WRONG="key")
    assert text.startswith("(hidden: ")
    assert SECRET not in text


def test_what_is_sealed_is_shown_only_by_the_hook(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "CODEC": f"{HOOKS}.reversing"}
    broker = config.current()
    assert broker is not None
    sealed = bodies_of(broker).encode(EVENT)
    assert (
        redaction.shown(sealed.body, sealed.headers) == f"(sealed with 'reversing', {len(sealed.body)} bytes)"
    )
    options = {"CODEC": f"{HOOKS}.reversing", "REDACT": f"{HOOKS}.redact"}
    assert shown(settings, sealed.body, sealed.headers, **options) == '{"total": 25}'
    other = {HEADER_CODEC: "unknown"}
    assert shown(settings, sealed.body, other, **options).startswith("(hidden: ")


@pytest.mark.parametrize("make", [stage.waiting, stage.held, stage.sent])
def test_the_pages_of_events_show_what_the_hook_lets_through(
    make: Callable[..., Any], admin: Client, settings: Any
) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "REDACT": f"{HOOKS}.redact"}
    row = make(data=EVENT.data)
    page = admin.get(reverse(f"admin:domain_event_broker_{row._meta.model_name}_change", args=[row.pk]))
    text = page.content.decode()
    assert "&quot;total&quot;: 25" in text
    assert SECRET not in text


@pytest.fixture
def letter(settings: Any, fresh_name: Callable[[str], str]) -> str:
    """Return the name of a handler with one dead letter, in settings with the hook."""
    settings.DOMAIN_EVENT_BROKER = {"URL": f"memory://{fresh_name('redacted')}", "REDACT": f"{HOOKS}.redact"}
    name = fresh_name("billing")
    stage.bury(name, DomainEvent("order.placed", dict(EVENT.data)))
    return name


def test_the_page_of_dead_letters_shows_what_the_hook_lets_through(admin: Client, letter: str) -> None:
    page = admin.get(reverse("admin:domain_event_broker_deadletter_changelist"), {"queue": letter})
    text = page.content.decode()
    assert "&quot;total&quot;: 25" in text
    assert SECRET not in text


@pytest.mark.parametrize("how", ["--dry-run", "--interactive"])
def test_replay_dlq_prints_what_the_hook_lets_through(
    how: str, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("l\n"))
    output = io.StringIO()
    call_command("replay_dlq", letter, how, stdout=output)
    assert '{"total": 25}' in output.getvalue()
    assert SECRET not in output.getvalue()


def test_what_others_wrote_cannot_steer_a_terminal(
    settings: Any, fresh_name: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('steering')}"
    name = fresh_name("billing")
    error = ValueError("\x1b]0;owned\x07\nreplayed: all is well")
    stage.bury(name, DomainEvent("order.placed", {"text": "\x1b[2J"}), error=error)
    output = io.StringIO()
    call_command("replay_dlq", name, "--dry-run", stdout=output)
    assert "\x1b" not in output.getvalue()
    assert "\\x1b]0;owned\\x07\\nreplayed: all is well" in output.getvalue()
