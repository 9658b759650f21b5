"""The setting DOMAIN_EVENT_BROKER: what it may be, and what is said when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from domain_event_broker import config
from domain_event_broker import settings as defaults
from domain_event_broker.django.conf import mirror_setting
from domain_event_broker.errors import ConfigurationError, MissingDependency
from domain_event_broker.transports import transport_class


def parsed(value: object) -> config.BrokerSettings:
    result = config.parse(value)
    assert result is not None
    return result


def test_a_url_is_enough() -> None:
    assert parsed("amqp://u:p@host/vhost").url == ("amqp://u:p@host/vhost",)


def test_none_switches_the_broker_off() -> None:
    assert config.parse(None) is None
    assert config.parse({"URL": None}) is None


def test_several_hosts_are_several_urls_with_the_same_credentials() -> None:
    assert parsed("amqp://u:p@a,b:5673/v").url == ("amqp://u:p@a/v", "amqp://u:p@b:5673/v")
    assert parsed(["amqp://a", "amqp://b"]).url == ("amqp://a", "amqp://b")


def test_a_dict_without_url_uses_the_default_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "BROKER", "memory://other")
    assert parsed({"EXCHANGE": "mine"}).url == ("memory://other",)


def test_nested_settings_are_read() -> None:
    broker = parsed({"URL": "memory:", "OUTBOX": {"ARCHIVE_DAYS": 0}, "SUBSCRIBER": {"INBOX": False}})
    assert broker.outbox.archive_days == 0
    assert broker.subscriber.inbox is False
    assert broker.outbox.batch_size == 500


def test_numbers_may_reach_their_limits() -> None:
    outbox = {"MAX_ATTEMPTS": 30_000, "POLL_SECONDS": 0.01, "LEASE_SECONDS": 1, "ARCHIVE_DAYS": 0}
    subscriber = {"MAX_RETRIES": 0, "INBOX_DAYS": 0, "GRACE_SECONDS": 0}
    broker = parsed({"URL": "memory:", "OUTBOX": outbox, "SUBSCRIBER": subscriber})
    assert {name: getattr(broker.outbox, name.lower()) for name in outbox} == outbox
    assert {name: getattr(broker.subscriber, name.lower()) for name in subscriber} == subscriber


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (5, "DOMAIN_EVENT_BROKER is 5"),
        ([], "DOMAIN_EVENT_BROKER is"),
        ("localhost", "has no scheme"),
        ("amqp://host:port/", "DOMAIN_EVENT_BROKER is 'amqp://host:port/'"),
        ({"URI": "amqp://"}, r"\['URI'\] is not a setting; known are"),
        ({"OUTBOX": []}, r"\['OUTBOX'\] is \[\], not a dict"),
        ({"OUTBOX": {"BATCH": 1}}, r"\['OUTBOX'\]\['BATCH'\] is not a setting"),
        ({"OUTBOX": {"BATCH_SIZE": "5"}}, r"its type must be int"),
        ({"OUTBOX": {"BATCH_SIZE": True}}, r"its type must be int"),
        ({"OUTBOX": {"BATCH_SIZE": 0}}, r"it must be 1 or more"),
        ({"OUTBOX": {"ARCHIVE_DAYS": -1}}, r"it must be 0 or more"),
        ({"OUTBOX": {"LEASE_SECONDS": 0.5}}, r"it must be 1 or more"),
        ({"OUTBOX": {"LEASE_SECONDS": float("nan")}}, r"it must be 1 or more"),
        ({"OUTBOX": {"LEASE_SECONDS": float("inf")}}, r"is inf; it must be 86400 or less"),
        ({"OUTBOX": {"POLL_SECONDS": 0}}, r"it must be 0.01 or more"),
        ({"OUTBOX": {"POLL_SECONDS": float("inf")}}, r"it must be 86400 or less"),
        ({"OUTBOX": {"MAX_ATTEMPTS": 30_001}}, r"it must be 30000 or less"),
        ({"SUBSCRIBER": {"MAX_RETRIES": -1}}, r"it must be 0 or more"),
        ({"SUBSCRIBER": {"GRACE_SECONDS": float("inf")}}, r"it must be 86400 or less"),
        ({"OUTBOX": {"DATABASE": 3}}, r"its type must be str or None"),
        ({"OUTBOX": {"UNROUTABLE": "drop"}}, "choose one of archive, park, ignore"),
        ({"SUBSCRIBER": {"QUEUE_TYPE": "stream"}}, "choose one of quorum, classic"),
        ({"EXCHANGE_TYPE": "topics"}, "choose one of topic, direct, fanout, headers"),
    ],
)
def test_a_wrong_value_is_named_in_the_error(value: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        config.parse(value)


@pytest.mark.parametrize(
    "url",
    ["amqp://u:secret@h/v", "amqps://u:sec%40ret@h:1/%2F?x=secret", "amqp://:secret@h", "amqp://u:se@cret@h"],
)
def test_a_password_never_shows(url: str) -> None:
    for shown in (config.mask(url), parsed(url).masked_url):
        assert "secret@" not in shown
        assert "ret@" not in shown


@pytest.mark.parametrize(
    "value",
    [
        "amqp://user:pa/topsecret@host:1/v",
        "amqp://user:pa#topsecret@host",
        "amqp://user:pa?topsecret@host:x",
        "amqp://user:12/34topsecret@host/v",
        ("amqp://user:topsecret@host", None),
        b"amqp://user:topsecret@host",
        {"URL": 7, "EXCHANGE": "amqp://user:topsecret@host"},
        {"OUTBOX": "amqp://user:topsecret@host"},
        {"OUTBOX": {"UNROUTABLE": "amqp://user:topsecret@host"}},
    ],
)
def test_a_password_shows_in_no_error_and_no_masked_url(value: object) -> None:
    try:
        shown = parsed(value).masked_url
    except ConfigurationError as error:
        shown = f"{error} {error.__cause__}"
    assert "topsecret" not in shown


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="must be one of amqp, amqps, database, memory"):
        transport_class(["carrier-pigeon://roof"])


def test_urls_of_several_schemes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must share one scheme"):
        transport_class(["amqp://a", "memory:"])


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pika", None)
    for name in [
        n for n in __import__("sys").modules if n.startswith("domain_event_broker.transports.rabbitmq")
    ]:
        monkeypatch.delitem(__import__("sys").modules, name)
    with pytest.raises(MissingDependency, match="pip install 'pika'"):
        transport_class(["amqp://localhost"])


def test_in_django_the_older_name_of_the_default_broker_says_what_the_project_does(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "BROKER", "amqp://elsewhere")
    for value, expected in (
        ("memory://a", "memory://a"),
        ({"URL": "memory://b"}, "memory://b"),
        (None, None),
    ):
        settings.DOMAIN_EVENT_BROKER = value
        mirror_setting()
        assert expected == defaults.BROKER
