"""System checks that warn of what would let strangers in."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks

from domain_event_broker.handlers import registry

HOOKS = "tests.security.hooks"

#: A database without our tables would be warned of, too.
pytestmark = pytest.mark.django_db


def ids(settings: Any, value: Any, deploy: bool = False) -> list[str]:
    settings.DOMAIN_EVENT_BROKER = value
    found = run_checks(tags=["domain_event_broker"], include_deployment_checks=deploy)
    return [
        str(message.id).rpartition(".")[2] for message in found if "domain_event_broker" in str(message.id)
    ]


def texts(settings: Any, value: Any) -> str:
    settings.DOMAIN_EVENT_BROKER = value
    return " ".join(map(str, run_checks(tags=["domain_event_broker"], include_deployment_checks=True)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"CODEC": f"{HOOKS}.vault", "REDACT": f"{HOOKS}.redact"}, []),
        ({"CODEC": ["plain", f"{HOOKS}.vault"]}, []),
        ({"CODEC": f"{HOOKS}.missing"}, ["E010"]),
        ({"REDACT": "no.such.module"}, ["E010"]),
        ({"REDACT": f"{HOOKS}.no_function", "CODEC": f"{HOOKS}.nameless"}, ["E010", "E010"]),
        ({"REDACT": 5}, ["E001"]),
        ({"MAX_JSON_DEPTH": 501}, ["E001"]),
    ],
)
def test_hooks_that_are_not_there_are_told_before_they_are_needed(
    options: dict[str, Any], expected: list[str], settings: Any
) -> None:
    assert ids(settings, {"URL": "memory:", **options}) == expected


@pytest.mark.parametrize(
    "url",
    [
        "amqps://u:s3cret@host/?insecure_accept_any_certificate=yes",
        "rediss://host/?ssl_cert_reqs=none",
        "rediss://host/?ssl_cert_reqs=CERT_NONE",
    ],
)
def test_a_certificate_that_is_not_verified_is_always_warned_of(url: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": url}
    found = [str(each) for each in run_checks(tags=["domain_event_broker"]) if str(each.id).endswith("W010")]
    assert len(found) == 1
    assert "s3cret" not in found[0]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://shop:p@broker.example/", ["W011"]),
        ("amqp://guest:guest@broker.example/", ["W011", "W012"]),
        ("amqp://broker.example/", ["W011", "W012"]),
        ("amqps://guest:guest@10.0.0.5/", ["W012"]),
        ("amqps://shop:p@broker.example/", []),
        ("amqp://guest:guest@localhost/", []),
        ("amqp://guest:guest@127.0.0.1/", []),
        ("amqp://guest:guest@[::1]/", []),
        ("amqp://shop:p@localhost,broker.example/", ["W011"]),
        ("database:", ["W007"]),
        ("memory:", ["W008", "W007"]),
    ],
)
def test_what_is_only_good_enough_at_home_is_told_by_check_deploy(
    url: str, expected: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_handlers", {})
    assert ids(settings, url) == []
    assert ids(settings, url, deploy=True) == expected


def test_no_check_tells_a_password(settings: Any) -> None:
    told = texts(settings, "amqp://guest:t0p-s3cret@broker.example/?insecure_x=1")
    assert "guest:***@broker.example" in told
    assert "s3cret" not in told


def test_settings_that_cannot_be_read_are_told_once(settings: Any) -> None:
    assert ids(settings, {"URL": "amqp://u:s3cret@h:port/"}, deploy=True) == ["E001"]


def test_a_broker_that_is_switched_off_has_nothing_to_check(settings: Any) -> None:
    assert ids(settings, None, deploy=True) == []
