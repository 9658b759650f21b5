"""A PostgreSQL that takes no writes, no connections, or whose answer to COMMIT is lost."""

from __future__ import annotations

import psycopg

from tests.faults.apparatus import DATABASE, Stage, healing
from tests.faults.random_faults import set_read_only
from tests.harness.waiting import wait_until


def test_read_only_for_a_while_it_costs_no_event(stage: Stage) -> None:
    relay, subscriber = stage.relay(), stage.subscriber("steady")
    publisher = stage.publisher()
    wait_until(lambda: stage.effects("steady") > 10, 20)
    with healing(lambda: set_read_only(stage, False)):
        set_read_only(stage, True)
        wait_until(lambda: "trying again" in relay.output(), 20)
        wait_until(lambda: "unknown" in (stage.directory / "published").read_text(), 20)
        before = len(stage.sql("SELECT id FROM faults_deed"))
    wait_until(lambda: len(stage.sql("SELECT id FROM faults_deed")) > before, 20)
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
        wait_until(lambda: "trying again" in relay.output(), 30)
        assert (relay.exit_code, subscriber.exit_code) == (None, None)
    stage.wait_until_quiet(["steady"])
    account = stage.account(["steady"])
    assert account.violations() == []
    assert len(account.handlers["steady"].handled) == 50
    assert (relay.stop(), subscriber.stop()) == (0, 0)


def test_a_publisher_whose_commit_got_no_answer_has_published(stage: Stage) -> None:
    stage.database_proxy.lose_answer_to(b"COMMIT")
    before = stage.database_proxy.answers_lost
    publisher = stage.run("publish-some", "1", "faults.done", "unknown")
    assert publisher.wait() == 1, "it cannot know, and is told so"
    assert stage.database_proxy.answers_lost == before + 1
    stage.relay()
    wait_until(lambda: stage.archived() >= 1, 20)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert "unknown" in account.handlers["spy"].queued or not account.published


def test_a_handler_whose_commit_got_no_answer_takes_effect_once(stage: Stage) -> None:
    stage.run("run_relay", direct=True)
    stage.subscriber("steady")
    stage.publish(1)
    wait_until(lambda: stage.effects("steady") == 1, 20)
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
    wait_until(lambda: stage.archived() == 10, 20)
    before = stage.database_proxy.answers_lost
    stage.database_proxy.lose_answer_to(b"COMMIT")
    wait_until(lambda: stage.database_proxy.answers_lost == before + 1, 20)
    stage.publish(200)
    wait_until(lambda: stage.archived() == 210, 20)
    account = stage.account(["spy"])
    assert account.violations() == []
    assert len(account.handlers["spy"].queued) == 210
    assert relay.stop() == 0
