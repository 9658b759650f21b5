"""What the commands say about an outbox, and with which exit code they end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from domain_event_broker.django.management.commands import run_relay
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from tests.djangoapp.databases import add_alias, database, remove_alias, sqlite_file
from tests.integration.outbox.content import publish_all, refuse

MakeRelay = Callable[..., DjangoRelayOutbox]


def test_the_status_of_a_database_without_tables_is_one_line(tmp_path: Any, unblocked: None) -> None:
    with (
        database("bare", sqlite_file(tmp_path, "bare"), migrate=False),
        pytest.raises(CommandError, match="migrate --database bare") as raised,
    ):
        call_command("broker_status", database="bare")
    assert raised.value.returncode == 3


def test_the_status_of_a_database_that_is_away_is_one_line(unblocked: None) -> None:
    add_alias("away", "postgresql://nobody@127.0.0.1:1/none")
    try:
        with pytest.raises(CommandError, match="'away' cannot be used now") as raised:
            call_command("broker_status", database="away")
    finally:
        remove_alias("away")
    assert raised.value.returncode == 3


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give the test run its signal handlers back."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def drain(alias: str) -> tuple[str, int]:
    """Run ``run_relay --drain`` and return its last line and its exit code."""
    out = StringIO()
    try:
        call_command("run_relay", drain=True, database=alias, stdout=out)
    except SystemExit as end:
        return out.getvalue().splitlines()[-1], int(end.code or 0)
    return out.getvalue().splitlines()[-1], 0


@pytest.fixture
def parked(alias: str, make_relay: MakeRelay, settings: Any) -> str:
    """Return the alias of an outbox in which four events wait behind a parked one."""
    settings.DOMAIN_EVENT_BROKER = "memory:"
    publish_all(alias, range(5), key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None)
    relay.leave()
    return alias


def test_a_drain_tells_what_stays_behind_parked_events(parked: str) -> None:
    assert drain(parked) == ("0 sent; 4 wait behind parked events of their key.", 1)


def test_what_stays_behind_is_counted_to_a_limit(parked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_relay, "BEHIND_LIMIT", 3)
    assert drain(parked) == ("0 sent; 3 or more wait behind parked events of their key.", 1)


def test_a_drain_that_leaves_nothing_ends_well(alias: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "memory:"
    publish_all(alias, range(3), key="k")
    assert drain(alias) == ("0 sent, 3 that nobody subscribes to.", 0)
