"""What is old goes by one clock, that of the database, and not by that of whichever host looks."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from domain_event_broker.django.models import ArchivedEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.retention import count_old, purge
from tests.djangoapp.databases import database
from tests.harness.postgres import ClockedPostgreSQL
from tests.integration.outbox.content import archived, publish, send_all

DAY = 24 * 3600.0


def test_a_host_whose_date_is_wrong_makes_nobody_forget(unblocked: None) -> None:
    """To a database of last month, this host is one whose clock is a month ahead."""
    with ClockedPostgreSQL() as server:
        server.set_clock(-30 * DAY)
        with database("clocked", server.url()) as alias:
            relay = DjangoRelayOutbox(alias)
            publish(alias, 1)
            assert send_all(relay) == [1]
            relay.leave()
            sent_at = ArchivedEvent.objects.using(alias).get().published_at
            assert sent_at < datetime.now(timezone.utc) - timedelta(days=29)
            assert sum(each.rows for each in count_old(alias, 7.0, 7.0)) == 0
            assert list(purge(alias, 7.0, 7.0)) == []
            assert archived(alias) == [1]
            server.set_clock(-20 * DAY)
            assert [each.rows for each in purge(alias, 7.0, None)] == [1]
            assert archived(alias) == []
