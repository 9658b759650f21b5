"""Publishers that are killed at each point of their transaction, or never hear what became of it."""

from __future__ import annotations

import signal

import pytest

from tests.faults.apparatus import Stage
from tests.harness.waiting import wait_until

KILLED = -9
EVENT = "the-event"


@pytest.mark.parametrize(
    ("point", "published"),
    [
        ("storing", False),
        ("stored", False),
        ("committing", False),
        ("commit sent", True),
        ("committed", True),
    ],
)
def test_killed_at_a_point_of_its_transaction_it_has_published_with_its_row_or_not_at_all(
    stage: Stage, point: str, published: bool
) -> None:
    relay = stage.relay()
    victim = stage.run("publish-some", "1", "faults.done", EVENT, direct=True, FAULTS_CRASH=point)
    assert victim.wait() == KILLED
    stage.publish(10)
    expected = 10 + published
    wait_until(lambda: stage.archived() == expected, 30)
    wait_until(lambda: _sessions(stage, "idle in transaction%") == 0, 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert (EVENT in account.published) is published
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again == 0
    assert relay.stop() == 0


def test_killed_while_the_database_works_on_its_commit_it_has_published(stage: Stage) -> None:
    """A deferred trigger keeps COMMIT busy until after the death of who asked for it."""
    stage.sql(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_lock(4711); PERFORM pg_advisory_unlock(4711); RETURN NULL; END $$"
    )
    stage.sql(
        "CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON faults_deed DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION linger()"
    )
    with stage.session() as holder:
        try:
            holder.execute("SELECT pg_advisory_lock(4711)")
            victim = stage.run("publish-some", "1", "faults.done", EVENT)
            wait_until(lambda: _sessions(stage, "active", "COMMIT"), 30)
            victim.kill()
            assert stage.account(["spy"]).published == set()
            holder.execute("SELECT pg_advisory_unlock(4711)")
            wait_until(lambda: stage.waiting() == 1, 30)
        finally:
            holder.execute("SELECT pg_advisory_unlock_all()")
            holder.execute("DROP TRIGGER linger ON faults_deed")
            holder.execute("DROP FUNCTION linger()")
    stage.relay()
    wait_until(lambda: stage.archived() == 1, 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == {EVENT}


def test_a_commit_that_never_reached_the_database_has_published_nothing(stage: Stage) -> None:
    stage.database_proxy.lose_request_with(b"COMMIT")
    before = stage.database_proxy.requests_lost
    publisher = stage.run("publish-some", "1", "faults.done", EVENT)
    assert publisher.wait() == 1, "it cannot know, and is told so"
    assert stage.database_proxy.requests_lost == before + 1
    stage.publish(1)
    stage.relay()
    wait_until(lambda: stage.archived() == 1, 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert EVENT not in account.published | account.handlers["spy"].queued


def test_a_commit_whose_answer_was_lost_has_published_once(stage: Stage) -> None:
    relay = stage.run("run_relay", direct=True)
    stage.database_proxy.lose_answer_to(b"COMMIT")
    before = stage.database_proxy.answers_lost
    publisher = stage.run("publish-some", "1", "faults.done", EVENT)
    assert publisher.wait() == 1, "it cannot know, and is told so"
    assert stage.database_proxy.answers_lost == before + 1
    wait_until(lambda: stage.archived() == 1, 30)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == {EVENT}
    assert relay.stop() == 0


def test_many_killed_at_random_leave_rows_and_events_in_step(stage: Stage) -> None:
    """The death of each is wherever it happens to be; the file tells what the database had said."""
    relay = stage.relay()
    for _ in range(6):
        publishers = [stage.publisher(pause=0.001) for _ in range(2)]
        before = _committed(stage)
        wait_until(lambda: _committed(stage) > before + 10, 30)  # noqa: B023 - called in this turn
        for publisher in publishers:
            publisher.send(signal.SIGKILL)
        assert [publisher.wait() for publisher in publishers] == [KILLED, KILLED]
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    said = dict(reversed(line.split()) for line in stage.published_log.read_text().splitlines())
    assert {event_id for event_id, word in said.items() if word == "done"} <= account.published
    assert not {event_id for event_id, word in said.items() if word == "undone"} & account.published
    assert relay.stop() == 0


def _committed(stage: Stage) -> int:
    return int(stage.sql("SELECT count(*) FROM faults_deed")[0][0])


def _sessions(stage: Stage, state: str, query: str = "%") -> int:
    """How many sessions of programs are in a state."""
    return int(
        stage.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
            f"current_database() AND state LIKE '{state}' AND query LIKE '{query}'"
        )[0][0]
    )
