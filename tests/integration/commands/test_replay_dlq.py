"""``manage.py replay_dlq``, on the memory transport."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from domain_event_broker import DomainEvent, config
from domain_event_broker.events import Message, encode
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, DeadLetter, Settlement, Subscription
from domain_event_broker.replay import LetterFilter, browse
from domain_event_broker.transports import open_transport


class Stage:
    """A handler's dead letters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.transport = open_transport(config.current())  # type: ignore[arg-type]
        self.transport.subscribe(Subscription(name, (f"{name}.#",)))

    def bury(self, *messages: Message) -> None:
        self.transport.publish(messages)
        for delivery in self.transport.receive(100, 5):
            failure = Failure("error", "ServiceDown", "no answer")
            self.transport.settle([Settlement(delivery, Action.DEAD, failure=failure)])

    def letters(self) -> list[DeadLetter]:
        return browse(self.transport.dead_letters(self.name), LetterFilter())

    def waiting(self) -> list[bytes]:
        return [delivery.body for delivery in self.transport.receive(100, 0)]

    def message(self, **data: Any) -> Message:
        return encode(DomainEvent(f"{self.name}.placed", data))


@pytest.fixture
def stage(settings: Any, fresh_name: Callable[[str], str]) -> Iterator[Stage]:
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('broker')}"
    made = Stage(fresh_name("handler"))
    yield made
    made.transport.close()


def run(*arguments: str, answers: str = "", monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    output = io.StringIO()
    if monkeypatch is not None:
        monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    call_command("replay_dlq", *arguments, stdout=output)
    return output.getvalue()


def test_all_dead_letters_go_back_to_work(stage: Stage) -> None:
    sent = [stage.message(n=n) for n in range(3)]
    stage.bury(*sent)
    assert f"{stage.name}: 3 replayed, 0 left" in run(stage.name)
    assert stage.waiting() == [message.body for message in sent]
    assert not stage.letters()


def test_ctrl_c_ends_between_two_letters_and_says_what_was_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [stage.message(n=n) for n in range(5)]
    stage.bury(*sent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(
        "domain_event_broker.django.terminal.Progress.update",
        lambda progress, done: signal.raise_signal(signal.SIGINT) if done == 2 else None,
    )
    try:
        with pytest.raises(SystemExit) as exit_code:
            call_command("replay_dlq", stage.name)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_code.value.code == 1
    assert capsys.readouterr().out == (
        f"{stage.name}: 2 replayed, 3 left\nStopped. What was not replayed or discarded is where it was.\n"
    )
    assert stage.waiting() == [message.body for message in sent[:2]]
    assert [letter.body for letter in stage.letters()] == [message.body for message in sent[2:]]


def test_letters_are_chosen_by_their_exception(stage: Stage) -> None:
    stage.bury(stage.message(n=1))
    assert "0 replayed, 1 left" in run(stage.name, "--error", "ValueError")
    assert "would replay 1 of 1" in run(stage.name, "--error", "ServiceDown", "--dry-run")
    assert "1 replayed, 0 left" in run(stage.name, "--error", "ServiceDown")


def test_ctrl_c_at_a_question_changes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.bury(stage.message(n=1), stage.message(n=2))
    answers = iter(["r"])

    def answer(prompt: str) -> str:
        for each in answers:
            return each
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(CommandError, match="nothing of this handler was changed"):
        run(stage.name, "--interactive")
    assert len(stage.letters()) == 2


def test_a_limit_leaves_the_rest(stage: Stage) -> None:
    sent = [stage.message(n=n) for n in range(3)]
    stage.bury(*sent)
    run(stage.name, "--limit", "1")
    assert [letter.body for letter in stage.letters()] == [message.body for message in sent[1:]]


def test_a_limit_counts_what_matches(stage: Stage) -> None:
    first, second, third = (stage.message(n=n) for n in range(3))
    stage.bury(first, second, third)
    run(stage.name, "--limit", "1", "--event", second.event_id, "--event", third.event_id)
    assert [letter.body for letter in stage.letters()] == [first.body, third.body]


def test_a_dry_run_shows_and_changes_nothing(stage: Stage) -> None:
    message = stage.message(n=1)
    stage.bury(message)
    output = run(stage.name, "--dry-run")
    assert message.event_id in output
    assert "error: ServiceDown no answer" in output
    assert "would replay 1 of 1" in output
    assert len(stage.letters()) == 1


def test_discarding_deletes(stage: Stage) -> None:
    stage.bury(stage.message(n=1))
    run(stage.name, "--discard")
    assert not stage.letters()
    assert not stage.waiting()


def test_each_of_two_copies_of_an_event_gets_its_own_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = stage.message(n=1)
    stage.bury(message, message)
    output = run(stage.name, "--interactive", answers="r\nd\n", monkeypatch=monkeypatch)
    assert "1 replayed, 1 discarded, 0 left" in output
    assert stage.waiting() == [message.body]


def test_letters_that_nobody_was_asked_about_stay(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = [Message(f"{stage.name}.placed", body, "") for body in (b"{one", b"{two", b"{three")]
    stage.bury(*nameless)
    output = run(stage.name, "--interactive", answers="d\nq\n", monkeypatch=monkeypatch)
    assert "0 replayed, 1 discarded, 2 left" in output
    assert [letter.body for letter in stage.letters()] == [b"{two", b"{three"]


def replay_and_fail(stage: Stage, times: int) -> None:
    """Let one event fail, be replayed, fail again, and so on."""
    stage.bury(stage.message(n=1))
    for _ in range(times):
        run(stage.name, "--force")
        (delivery,) = stage.transport.receive(1, 0)
        failure = Failure("error", "ServiceDown", "still no answer", attempts=2, failed_at=2_000_000_000)
        stage.transport.settle([Settlement(delivery, Action.DEAD, failure=failure)])


def test_an_event_that_came_back_three_times_is_left_unless_forced(stage: Stage) -> None:
    replay_and_fail(stage, 3)
    stage.bury(stage.message(n=2))
    with pytest.raises(SystemExit) as exit_code:
        run(stage.name)
    assert exit_code.value.code == 1
    (left,) = stage.letters()
    assert left.replays == 3
    assert "1 replayed, 0 left" in run(stage.name, "--force")
    assert not stage.letters()
    assert len(stage.waiting()) == 2


def test_an_event_that_is_left_does_not_count_for_the_limit(stage: Stage) -> None:
    replay_and_fail(stage, 3)
    stage.bury(stage.message(n=2), stage.message(n=3))
    with pytest.raises(SystemExit):
        run(stage.name, "--limit", "1")
    assert len(stage.waiting()) == 1
    assert [letter.replays for letter in stage.letters()] == [3, 0]


def test_a_letter_keeps_its_first_failure_and_all_its_attempts(stage: Stage) -> None:
    replay_and_fail(stage, 2)
    output = run(stage.name, "--dry-run")
    assert "error: ServiceDown still no answer (attempt 2)" in output
    assert re.search(
        r"replayed 2 times, 3 attempts before, first failed .* UTC with error: ServiceDown no", output
    )


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 2, "name one or more handlers, or use --all"),
        (("some", "--all"), 2, "name one or more handlers, or use --all"),
        (("nobody",), 1, "there is no queue 'nobody'"),
        (("some", "--routing-key", "order*"), 2, "a wildcard must stand alone"),
    ],
)
@pytest.mark.usefixtures("stage")
def test_wrong_arguments_are_told_with_an_exit_code(
    arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    with pytest.raises(CommandError, match=complaint.replace("*", r"\*")) as caught:
        run(*arguments)
    assert caught.value.returncode == code
