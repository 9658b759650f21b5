"""Subscribers that are killed at the worst line, and handlers that do their worst."""

from __future__ import annotations

from tests.faults.apparatus import Stage
from tests.faults.project.fates import event_id_for
from tests.harness.waiting import wait_until

KILLED = -9
#: Seconds for what takes a moment on a machine that has nothing else to do.
PATIENCE = 60.0


def test_killed_before_and_after_the_handler_and_after_the_answer_it_works_once(stage: Stage) -> None:
    events = [event_id_for("fine", number) for number in range(30)]
    stage.publish(30, event_ids=events)
    stage.relay()
    effects = {}
    for point in ("received", "handled", "acknowledged"):
        victim = stage.subscriber("moody", FAULTS_CRASH=point)
        assert victim.wait() == KILLED, point
        effects[point] = stage.effects("moody")
    assert effects["received"] == 0, "it died before the handler was called"
    assert effects["handled"] >= 1, "its transaction had committed"
    stage.subscriber("moody")
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events)
    assert account.handlers["moody"].dead == {}


def test_killed_within_the_handler_its_transaction_is_undone_and_the_event_comes_again(stage: Stage) -> None:
    events = [event_id_for(fate, number) for fate in ("deadly", "fine") for number in range(4)]
    stage.publish(8, event_ids=events)
    stage.relay()
    subscribers = stage.subscriber("moody", "--processes", "2")
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events)
    assert account.handlers["moody"].dead == {}
    assert len(list(stage.directory.glob("died-*"))) == 4, "each deadly one killed a process"
    assert subscribers.stop() == 0


def test_killed_between_the_stored_retry_and_the_acknowledgement_it_works_once(stage: Stage) -> None:
    events = [event_id_for("retry", number) for number in range(6)]
    stage.publish(6, event_ids=events)
    stage.relay()
    victim = stage.subscriber("moody", FAULTS_CRASH="retry stored")
    assert victim.wait() == KILLED
    # The copies are there, and the originals, too.
    wait_until(lambda: len(stage.broker.queued("moody")) > len(events), PATIENCE)
    stage.subscriber("moody")
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(events)
    assert account.handlers["moody"].dead == {}


def test_killed_between_the_dead_letter_and_the_acknowledgement_it_is_there_at_most_twice(
    stage: Stage,
) -> None:
    events = [event_id_for("error", number) for number in range(6)]
    stage.publish(6, event_ids=events)
    stage.relay()
    victim = stage.subscriber("moody", FAULTS_CRASH="letter stored")
    assert victim.wait() == KILLED
    stage.subscriber("moody")
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert set(account.handlers["moody"].dead) == set(events)
    assert len(events) < account.handlers["moody"].copies <= 2 * len(events)
    assert stage.effects("moody") == 0


def test_a_handler_that_kills_its_process_ends_in_the_dead_letters_and_others_go_on(stage: Stage) -> None:
    stage.publish(10, "plain.done")
    stage.publish(1, "poison.done", ["poisonous"])
    stage.publish(10, "plain.done")
    stage.relay()
    subscribers = stage.subscriber("lethal", "--processes", "2")
    wait_until(lambda: stage.broker.letters("lethal"), PATIENCE)
    stage.wait_until_quiet(["lethal"])
    account = stage.account(["lethal"])
    assert account.violations() == []
    assert set(account.handlers["lethal"].dead) == {"poisonous"}, "it took nothing along"
    assert stage.effects("lethal") == 20
    assert subscribers.stop() == 0


def test_handlers_that_exit_leak_a_transaction_or_close_the_connection_hurt_nobody_else(stage: Stage) -> None:
    fates = ("exit", "interrupt", "leak", "close", "error")
    bad = [event_id_for(fate, number) for number in range(3) for fate in fates]
    good = [event_id_for("fine", number) for number in range(15)]
    mixed = [event_id for pair in zip(bad, good, strict=True) for event_id in pair]
    stage.publish(30, event_ids=mixed)
    stage.relay()
    subscriber = stage.subscriber("moody")
    stage.wait_until_quiet(["moody"])
    account = stage.account(["moody"])
    assert account.violations() == []
    assert account.handlers["moody"].handled == set(good)
    assert set(account.handlers["moody"].dead) == set(bad)
    assert subscriber.stop() == 0


def test_what_runs_at_sigterm_is_finished_and_what_waits_is_given_back(stage: Stage) -> None:
    stage.publish(16, "slow.done", seconds=0.5)
    stage.relay()
    stopped = stage.subscriber("slow")
    wait_until(lambda: stage.effects("slow"), PATIENCE)
    assert stopped.stop() == 0
    done = stage.effects("slow")
    assert 4 <= done < 16
    wait_until(lambda: stage.broker.depths(["slow"])["slow"] == 16 - done, PATIENCE)
    stage.subscriber("slow")
    stage.wait_until_quiet(["slow"])
    assert stage.account(["slow"]).violations() == []
    assert stage.effects("slow") == 16


def test_a_handler_that_hangs_does_not_keep_its_process_from_stopping(stage: Stage) -> None:
    stage.publish(2, "slow.done", seconds=3600)
    stage.relay()
    hanging = stage.subscriber("slow", "--grace", "1")
    wait_until(lambda: hanging.is_ready and not stage.waiting(), PATIENCE)
    wait_until(lambda: stage.broker.depths(["slow"])["slow"] == 0, PATIENCE)
    assert hanging.stop() == 0
    wait_until(lambda: len(stage.broker.queued("slow")) == 2, PATIENCE)
    assert stage.account(["slow"]).violations() == []
    assert stage.effects("slow") == 0


def test_a_handler_that_hangs_is_interrupted_and_its_event_dead_lettered(stage: Stage) -> None:
    stage.publish(6, "slow.done", seconds=3600)
    stage.publish(6, "slow.done", seconds=0)
    stage.relay()
    subscriber = stage.subscriber("slow", FAULTS_TIMEOUT="2")
    wait_until(lambda: len(stage.broker.letters("slow")) == 6, PATIENCE)
    stage.wait_until_quiet(["slow"])
    account = stage.account(["slow"])
    assert account.violations() == []
    assert all(reason.startswith("timeout") for reason in account.handlers["slow"].dead.values())
    assert stage.effects("slow") == 6, "what the others began was rolled back"
    assert subscriber.stop() == 0


def test_a_handler_that_nothing_interrupts_ends_its_process_and_the_next_one_goes_on(stage: Stage) -> None:
    stage.publish(1, "slow.stuck", seconds=3600)
    stage.publish(6, "slow.done", seconds=0)
    stage.relay()
    subscriber = stage.subscriber("slow", "--processes", "2", FAULTS_TIMEOUT="2")
    wait_until(lambda: len(stage.broker.letters("slow")) == 1, PATIENCE)
    stage.wait_until_quiet(["slow"])
    stage.publish(6, "slow.done", seconds=0)
    stage.wait_until_quiet(["slow"])
    account = stage.account(["slow"])
    assert account.violations() == []
    assert all(reason.startswith("timeout") for reason in account.handlers["slow"].dead.values())
    assert stage.effects("slow") == 12, "what the stuck one began was rolled back"
    wait_until(lambda: "starting another" in subscriber.output(), PATIENCE)
    assert subscriber.stop() == 0
