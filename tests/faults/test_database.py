"""A PostgreSQL that is restarted or killed, takes no writes or no connections, is full, or says no."""

from __future__ import annotations

import signal
import threading

import psycopg
import pytest

from tests.faults.apparatus import DATABASE, Program, Stage, healing
from tests.faults.random_faults import set_read_only
from tests.harness.waiting import wait_until

EVENT = "the-event"
#: Bytes of the files of the write-ahead log, which must be written on when no file may grow.
WAL_SEGMENT = 16 * 1024 * 1024


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restarted_under_load_it_is_found_again_within_seconds_and_told_of_once(
    stage: Stage, end: str
) -> None:
    relay, subscriber = stage.relay(), stage.subscriber("steady")
    publisher = stage.publisher()
    for outages in (1, 2):
        wait_until(lambda: stage.effects("steady") > 10 * outages, 60)  # noqa: B023 - called in this turn
        getattr(stage.postgres, end)()
        wait_until(lambda: relay.output().count("trying again until it is back") == outages, 60)  # noqa: B023
        stage.postgres.start()
        before = (stage.published_log.stat().st_size, stage.archived(), stage.effects("steady"))
        # Five seconds at most between two tries, and some for a machine that has much else to do.
        wait_until(lambda: stage.published_log.stat().st_size > before[0], 30)  # noqa: B023
        wait_until(lambda: stage.archived() > before[1], 30)  # noqa: B023
        wait_until(lambda: stage.effects("steady") > before[2], 30)  # noqa: B023
    publisher.kill()
    stage.wait_until_quiet(["steady"])
    account = stage.account(["steady"])
    assert account.violations() == []
    assert account.handlers["steady"].handled == account.published
    assert _said(stage, "done") <= account.published
    assert not _said(stage, "undone") & account.published
    assert relay.output().count("trying again until it is back") == 2, relay.output()
    assert relay.output().count("relaying again") == 2, relay.output()
    assert (relay.stop(), subscriber.stop()) == (0, 0)


@pytest.mark.parametrize("point", ["fetched", "confirmed", "taken out"])
def test_killed_in_the_middle_of_a_batch_it_is_told_later_and_nothing_is_sent_again(
    stage: Stage, point: str
) -> None:
    """What the broker has confirmed need not be sent again, only be written down when that is possible."""
    stage.publish(250)
    relay = stage.relay(FAULTS_CRASH=point, FAULTS_CRASH_SIGNAL="SIGSTOP")
    wait_until(lambda: _is_stopped(relay), 60)
    stage.postgres.kill()
    stage.postgres.start()
    assert stage.waiting() == 250
    relay.send(signal.SIGCONT)
    wait_until(lambda: stage.archived() == 250, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again == 0
    assert relay.stop() == 0


def test_a_deadlock_is_an_error_of_the_caller_and_leaves_nothing_half_done(stage: Stage) -> None:
    relay = stage.relay()
    stage.publish(1)
    # It holds the row of the same object, and stands still before it publishes.
    publisher = stage.run(
        "publish-some", "1", "faults.done", EVENT, FAULTS_CRASH="storing", FAULTS_CRASH_SIGNAL="SIGSTOP"
    )
    wait_until(lambda: _is_stopped(publisher), 60)
    with stage.session() as other:
        # The other holds the outbox, and wants that row. Of the two, the publisher looks for deadlocks.
        other.execute("SET deadlock_timeout = '10min'")
        other.execute("BEGIN")
        other.execute("LOCK TABLE domain_event_broker_outbox IN EXCLUSIVE MODE")
        locking = threading.Thread(target=other.execute, args=["SELECT * FROM faults_counter FOR UPDATE"])
        locking.start()
        wait_until(lambda: _waits_for_lock(stage), 60)
        publisher.send(signal.SIGCONT)
        assert publisher.wait() == 1
        locking.join(30)
        other.execute("ROLLBACK")
    assert "deadlock detected" in publisher.output()
    stage.publish(4)
    wait_until(lambda: stage.archived() == 5, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert EVENT not in account.published
    assert relay.stop() == 0


def test_under_serializable_isolation_conflicts_are_errors_of_callers_or_tried_again(stage: Stage) -> None:
    stage.environment["FAULTS_ISOLATION"] = "SERIALIZABLE"
    relays = [stage.relay(), stage.relay()]
    subscribers = [stage.subscriber("steady"), stage.subscriber("steady")]
    publishers = [stage.publisher(pause=0.002), stage.publisher(pause=0.002)]
    wait_until(lambda: stage.effects("steady") > 100, 60)
    wait_until(lambda: _said(stage, "unknown"), 60, "a publisher lost against another")
    for publisher in publishers:
        publisher.kill()
    stage.wait_until_quiet(["steady"])
    account = stage.account(["steady"])
    assert account.violations() == []
    assert account.handlers["steady"].handled == account.published
    assert not _said(stage, "unknown") & account.published, "each of them was rolled back"
    assert [each.stop() for each in (*relays, *subscribers)] == [0, 0, 0, 0]


def test_a_publisher_that_idles_in_its_transaction_too_long_has_published_nothing(stage: Stage) -> None:
    with healing(lambda: _let_new_sessions(stage, "RESET idle_in_transaction_session_timeout")):
        _let_new_sessions(stage, "SET idle_in_transaction_session_timeout = '500ms'")
        publisher = stage.run(
            "publish-some", "1", "faults.done", EVENT, FAULTS_CRASH="stored", FAULTS_CRASH_SIGNAL="SIGSTOP"
        )
        wait_until(lambda: _is_stopped(publisher), 60)
        wait_until(lambda: not _idle_in_transaction(stage), 60)
        publisher.send(signal.SIGCONT)
        assert publisher.wait() == 1, "it is told"
    stage.publish(5)
    relay = stage.relay()
    wait_until(lambda: stage.archived() == 5, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert EVENT not in account.published
    assert relay.stop() == 0


def test_a_relay_that_idles_in_its_transaction_too_long_does_it_once_more(stage: Stage) -> None:
    stage.publish(150)
    with healing(lambda: _let_new_sessions(stage, "RESET idle_in_transaction_session_timeout")):
        _let_new_sessions(stage, "SET idle_in_transaction_session_timeout = '500ms'")
        relay = stage.relay(FAULTS_CRASH="taken out", FAULTS_CRASH_SIGNAL="SIGSTOP")
        wait_until(lambda: _is_stopped(relay), 60)
        wait_until(lambda: not _idle_in_transaction(stage), 60)
        relay.send(signal.SIGCONT)
        wait_until(lambda: stage.archived() == 150, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again == 0
    assert relay.stop() == 0


def test_without_room_for_the_outbox_publishing_is_an_error_of_the_caller_until_there_is_room_again(
    stage: Stage,
) -> None:
    """No file of the server may grow any more; the one of the hot table has to."""
    relay, publisher = stage.relay(), stage.publisher()
    wait_until(lambda: _said(stage, "done"), 60)
    with healing(lambda: stage.postgres.limit_files(None)):
        stage.postgres.limit_files(_swell(stage, "domain_event_broker_outbox"))
        wait_until(lambda: _said(stage, "unknown"), 60)
        full = stage.run("publish-some", "10000", "faults.done")
        assert full.wait() == 1
        assert "could not extend file" in full.output()
    before = len(_said(stage, "done"))
    wait_until(lambda: len(_said(stage, "done")) > before, 60)
    publisher.kill()
    wait_until(lambda: not stage.waiting(), 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert _said(stage, "done") <= account.published
    assert not _said(stage, "unknown") & account.published, "nothing is half done"
    assert relay.stop() == 0


def test_without_room_for_the_archive_a_relay_sends_no_event_a_second_time(stage: Stage) -> None:
    relay = stage.relay()
    stage.publish(10)
    wait_until(lambda: stage.archived() == 10, 60)
    with healing(lambda: stage.postgres.limit_files(None)):
        stage.postgres.limit_files(_swell(stage, "domain_event_broker_archive"))
        stage.publish(500)
        wait_until(lambda: "trying again until it is back" in relay.output(), 60)
        sent, refused = _depth_of_spy(stage), _refusals(stage)
        wait_until(lambda: _refusals(stage) >= refused + 3, 60, "it has tried again and again")
        assert _depth_of_spy(stage) == sent
        assert relay.exit_code is None
    wait_until(lambda: stage.archived() == 510, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert account.handlers["spy"].queued == account.published
    assert account.sent_again == 0
    assert "relaying again" in relay.output()
    assert relay.stop() == 0


def test_read_only_for_a_while_it_costs_no_event(stage: Stage) -> None:
    relay, subscriber = stage.relay(), stage.subscriber("steady")
    publisher = stage.publisher()
    wait_until(lambda: stage.effects("steady") > 10, 60)
    with healing(lambda: set_read_only(stage, False)):
        set_read_only(stage, True)
        wait_until(lambda: "trying again" in relay.output(), 60)
        wait_until(lambda: "unknown" in (stage.directory / "published").read_text(), 60)
        before = len(stage.sql("SELECT id FROM faults_deed"))
    wait_until(lambda: len(stage.sql("SELECT id FROM faults_deed")) > before, 60)
    publisher.kill()
    stage.wait_until_quiet(["steady"])
    assert stage.account(["steady"]).violations() == []
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_without_a_connection_left_all_wait_for_one(stage: Stage) -> None:
    stage.publish(50)
    taken: list[psycopg.Connection] = []

    def give_back() -> None:
        while taken:
            taken.pop().close()

    with healing(give_back):
        while len(taken) < 100:
            try:
                taken.append(psycopg.connect(stage.postgres.dsn(DATABASE)))
            except psycopg.OperationalError:
                break
        relay, subscriber = stage.relay(), stage.subscriber("steady")
        publisher = stage.run("publish-some", "1", "faults.done", EVENT)
        wait_until(lambda: "trying again" in relay.output(), 60)
        assert publisher.wait() == 1
        assert "too many clients" in publisher.output()
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.wait_until_quiet(["steady"])
    account = stage.account(["steady"])
    assert account.violations() == []
    assert len(account.handlers["steady"].handled) == 50
    assert EVENT not in account.published
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_publisher_whose_commit_got_no_answer_has_published(stage: Stage) -> None:
    stage.database_proxy.lose_answer_to(b"COMMIT")
    before = stage.database_proxy.answers_lost
    publisher = stage.run("publish-some", "1", "faults.done", "unknown")
    assert publisher.wait() == 1, "it cannot know, and is told so"
    assert stage.database_proxy.answers_lost == before + 1
    stage.relay()
    wait_until(lambda: stage.archived() >= 1, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert "unknown" in account.handlers["spy"].queued or not account.published


def test_a_handler_whose_commit_got_no_answer_takes_effect_once(stage: Stage) -> None:
    stage.run("run_relay", direct=True)
    stage.subscriber("steady")
    stage.publish(1)
    wait_until(lambda: stage.effects("steady") == 1, 60)
    before = stage.database_proxy.answers_lost
    stage.database_proxy.lose_answer_to(b"COMMIT")
    stage.publish(5)
    stage.wait_until_quiet(["steady"])
    assert stage.database_proxy.answers_lost == before + 1
    account = stage.account(["steady"])
    assert account.violations() == []
    assert stage.effects("steady") == 6
    assert account.handlers["steady"].dead == {}


def test_a_relay_whose_commit_got_no_answer_goes_on(stage: Stage) -> None:
    relay = stage.relay()
    stage.publish(10)
    wait_until(lambda: stage.archived() == 10, 60)
    before = stage.database_proxy.answers_lost
    stage.database_proxy.lose_answer_to(b"COMMIT")
    wait_until(lambda: stage.database_proxy.answers_lost == before + 1, 60)
    stage.publish(200)
    wait_until(lambda: stage.archived() == 210, 60)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert len(account.handlers["spy"].queued) == 210
    assert relay.stop() == 0


def _said(stage: Stage, word: str) -> set[str]:
    """The events of which the database said so to their publisher."""
    lines = stage.published_log.read_text().splitlines() if stage.published_log.exists() else []
    return {event_id for each, event_id in map(str.split, lines) if each == word}


def _is_stopped(program: Program) -> bool:
    with open(f"/proc/{program.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def _waits_for_lock(stage: Stage) -> bool:
    return bool(stage.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def _idle_in_transaction(stage: Stage) -> bool:
    return bool(stage.sql("SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"))


def _let_new_sessions(stage: Stage, change: str) -> None:
    stage.sql(f"ALTER DATABASE {DATABASE} {change}")


def _swell(stage: Stage, table: str) -> int:
    """Let a table take as much room as no file of the server does; return the bytes."""
    columns = "event_id, bucket, ordering_key, routing_key, body, headers, timestamp, created_at"
    more = {"domain_event_broker_outbox": ("attempts", "0")}
    names, values = more.get(table, ("outbox_id, published_at, unroutable", "0, now(), false"))
    with stage.session() as session:
        session.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        while (size := _bytes(stage, table)) < WAL_SEGMENT:
            session.execute("BEGIN")
            session.execute(
                f"INSERT INTO {table} ({columns}, {names}) SELECT 'swell', 0, NULL, 'swell', "
                f"repeat('x', 1900), '', 0, now(), {values} FROM generate_series(1, 5000)"
            )
            session.execute("ROLLBACK")
    return size


def _bytes(stage: Stage, table: str) -> int:
    return int(stage.sql(f"SELECT pg_relation_size('{table}')")[0][0])


def _refusals(stage: Stage) -> int:
    """How often the server could not let a file grow."""
    return stage.postgres.log_path.read_text(errors="replace").count("could not extend file")


def _depth_of_spy(stage: Stage) -> int:
    return stage.broker.depths(["spy"])["spy"]
