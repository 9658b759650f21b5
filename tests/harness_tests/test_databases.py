"""What the harness can do with a PostgreSQL: follow it, pool its sessions, set its clock."""

from __future__ import annotations

import psycopg
import pytest

from tests.harness.pgbouncer import PrivatePgBouncer
from tests.harness.postgres import ClockedPostgreSQL, PrivatePostgreSQL, PrivateStandby
from tests.harness.waiting import wait_until


def test_a_standby_has_what_was_committed_when_its_primary_was_killed() -> None:
    settings = {"synchronous_standby_names": "standby"}
    with PrivatePostgreSQL(settings) as primary, PrivateStandby(primary) as standby:
        with psycopg.connect(primary.dsn()) as connection:
            connection.execute("CREATE TABLE notes AS SELECT 'kept' AS text")
        primary.kill()
        with (
            pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
            psycopg.connect(standby.dsn()) as connection,
        ):
            connection.execute("CREATE TABLE other (text text)")
        standby.promote()
        with psycopg.connect(standby.dsn()) as connection:
            assert connection.execute("SELECT text FROM notes").fetchall() == [("kept",)]
            connection.execute("INSERT INTO notes VALUES ('more')")


def test_a_pooler_lends_sessions_for_a_transaction_each(postgres_server: PrivatePostgreSQL) -> None:
    postgres_server.create_database("pooled")
    with PrivatePgBouncer(postgres_server) as pooler:
        clients = [psycopg.connect(pooler.url("pooled"), autocommit=True) for _ in range(3)]
        try:
            asked = [each.execute("SELECT pg_backend_pid()").fetchone() for each in clients]
        finally:
            for each in clients:
                each.close()
    assert len(set(asked)) == 1


def test_a_clock_can_be_set() -> None:
    with ClockedPostgreSQL() as server, psycopg.connect(server.dsn(), autocommit=True) as connection:
        before = _unix_time(connection)
        server.set_clock(-3600)
        wait_until(lambda: _unix_time(connection) < before - 3500)


def _unix_time(connection: psycopg.Connection) -> float:
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])
