"""Publishing straight to RabbitMQ: batches with an account, from the background, and what is late."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from domain_event_broker import BackgroundPublisher, DomainEvent, Publisher, RabbitMQOptions, correlated
from domain_event_broker.errors import BatchPublishError, ConfirmTimeout, InvalidEvent, PublishFailed
from domain_event_broker.events import decode
from domain_event_broker.transports.rabbitmq import publishing
from tests.faults.proxy import Proxy
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import collect

#: Nobody listens on this port.
NOWHERE = "amqp://guest:secret@127.0.0.1:1/%2F"


@pytest.fixture
def queue(connect, handler) -> Any:
    """A handler that exists, and a connection that receives for it."""
    transport, wanted = connect(), handler(prefetch=2000)
    transport.subscribe(wanted)
    return transport, wanted.name


@pytest.fixture
def proxy(rabbitmq_server: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A way to the broker that can stall; confirms are not waited for long."""
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 0.3)
    found = Proxy(rabbitmq_server.port)
    yield found
    found.close()


def _url(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/%2F"


def _event(name: str, number: int, key: str | None = None, **options: Any) -> DomainEvent:
    event: DomainEvent = DomainEvent(f"{name}.x", {"n": number}, key)
    if options:
        event.options = (RabbitMQOptions(**options),)
    return event


def _refused(name: str, number: int, key: str | None = None) -> DomainEvent:
    """An event that the broker refuses: it is said to come from another user."""
    return _event(name, number, key, user_id="nobody-we-know")


def _numbers(transport: Any, count: int) -> list[int]:
    return [json.loads(each.body)["data"]["n"] for each in collect(transport, count, 60)]


# --- batches ----------------------------------------------------------------------------------


def test_a_batch_is_sent_in_order_and_accounted_for(queue, rabbitmq_server) -> None:
    transport, name = queue
    events = [_event(name, number) for number in range(25)] + [_event("nobody.listens", 25)]
    with Publisher(rabbitmq_server.url()) as publisher:
        account = publisher.publish_batch(events, chunk_size=10)
        stats = publisher.stats
    assert (account.total, account.published, account.failed, account.unroutable) == (26, 26, 0, 1)
    assert account.chunks == 3
    account.check()
    assert _numbers(transport, 25) == list(range(25))
    assert (stats.batch_publishes, stats.batch_events_published, stats.publish_returns) == (1, 26, 1)


def test_one_that_is_refused_is_told_with_the_reason_and_stops_no_other(queue, rabbitmq_server) -> None:
    transport, name = queue
    bad = _refused(name, 1)
    with Publisher(rabbitmq_server.url()) as publisher:
        account = publisher.publish_batch([_event(name, 0), bad, _event(name, 2)])
    assert (account.total, account.published, account.failed) == (3, 2, 1)
    (failure,) = account.failures
    assert (failure.event, failure.event_id, failure.maybe_stored) == (bad, bad.uuid_string, False)
    assert "user_id" in failure.reason
    with pytest.raises(BatchPublishError, match="1 of 3 events were not published") as caught:
        account.check()
    assert caught.value.account is account
    assert sorted(set(_numbers(transport, 2))) == [0, 2]


def test_with_order_preserved_nothing_of_a_key_passes_what_was_refused(queue, rabbitmq_server) -> None:
    transport, name = queue
    events = [
        _event(name, 1, "a"),
        _refused(name, 2, "a"),
        _event(name, 3, "a"),
        _event(name, 4, "b"),
        _event(name, 5),
        _event(name, 6, "a"),
    ]
    with Publisher(rabbitmq_server.url()) as publisher:
        account = publisher.publish_batch(events, preserve_order=True)
    assert (account.total, account.published, account.failed) == (6, 3, 3)
    reasons = {failure.event.data["n"]: failure.reason for failure in account.failures}
    assert set(reasons) == {2, 3, 6}
    assert reasons[3] == reasons[6] == "not sent: an earlier event of the same domain_object_id failed"
    assert sorted(set(_numbers(transport, 3))) == [1, 4, 5]


def test_nothing_is_sent_if_one_event_is_invalid(queue, rabbitmq_server) -> None:
    transport, name = queue
    with Publisher(rabbitmq_server.url()) as publisher:
        with pytest.raises(InvalidEvent):
            publisher.publish_batch([_event(name, 0), DomainEvent(f"{name}.x", {"n": object()})])
        publisher.publish(_event(name, 1))
    assert _numbers(transport, 1) == [1]


def test_a_broker_that_is_away_is_in_the_account_without_its_password() -> None:
    account = Publisher(NOWHERE).publish_batch([_event("a", 0), _event("a", 1)], chunk_size=1)
    assert (account.total, account.published, account.failed) == (2, 0, 2)
    first, second = account.failures
    assert (first.maybe_stored, second.maybe_stored) == (True, False)
    assert second.reason == f"not sent: {first.reason}"
    assert "secret" not in first.reason


def test_a_broker_that_is_switched_off_gets_nothing() -> None:
    assert Publisher(None).publish_batch([_event("a", 0)]).total == 0


# --- late -------------------------------------------------------------------------------------


def test_an_event_that_is_not_confirmed_in_time_is_told_and_raises(queue, proxy: Proxy) -> None:
    _, name = queue
    late: list[Any] = []
    publisher = Publisher(_url(proxy.port), on_timeout=late.append)
    publisher.publish(_event(name, 0))
    proxy.stall()
    event = _event(name, 1)
    with pytest.raises(ConfirmTimeout, match=r"did not confirm 1 messages within 0\.3 s"):
        publisher.publish(event)
    proxy.flow()
    publisher.disconnect()
    assert late == [event]


def test_a_coroutine_function_is_told_too_and_its_failure_is_logged(
    queue, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    _, name = queue
    late: list[Any] = []

    async def tell(event: Any) -> None:
        late.append(event)
        raise ZeroDivisionError

    publisher = Publisher(_url(proxy.port), on_timeout=tell)
    publisher.publish(_event(name, 1))
    proxy.stall()
    event = _event(name, 0)
    account = publisher.publish_batch([event])
    proxy.flow()
    publisher.disconnect()
    assert (late, account.failed, account.failures[0].maybe_stored) == ([event], 1, True)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


# --- from the background ----------------------------------------------------------------------


def test_events_left_to_the_background_arrive_in_order(queue, rabbitmq_server) -> None:
    transport, name = queue
    with BackgroundPublisher(rabbitmq_server.url()) as publisher:
        for number in range(1200):
            publisher.publish(_event(name, number))
        assert publisher.flush(60)
        account = publisher.close()
    assert (account.total, account.published, account.failed) == (1200, 1200, 0)
    assert _numbers(transport, 1200) == list(range(1200))
    assert publisher.stats.background_tasks_created == publisher.stats.background_tasks_completed == 1200


def test_closing_sends_what_is_pending(queue, rabbitmq_server) -> None:
    transport, name = queue
    publisher = BackgroundPublisher(rabbitmq_server.url())
    for number in range(300):
        publisher.publish(_event(name, number))
    assert publisher.close(60).published == 300
    assert _numbers(transport, 300) == list(range(300))
    with pytest.raises(PublishFailed, match="this publisher is closed"):
        publisher.publish(_event(name, 1))


def test_events_belong_to_the_story_of_the_caller_not_of_the_thread(queue, rabbitmq_server) -> None:
    transport, name = queue
    with BackgroundPublisher(rabbitmq_server.url()) as publisher, correlated("story"):
        publisher.publish(_event(name, 1))
    (got,) = collect(transport, 1, 60)
    assert decode(got.body, headers=got.headers).correlation_id == "story"


def test_what_is_refused_is_told_logged_and_counted(
    queue, rabbitmq_server, caplog: pytest.LogCaptureFixture
) -> None:
    transport, name = queue
    told: list[tuple[Any, str]] = []
    bad = _refused(name, 1)
    with BackgroundPublisher(
        rabbitmq_server.url(), on_failure=lambda event, reason: told.append((event, reason))
    ) as publisher:
        publisher.publish(_event(name, 0))
        publisher.publish(bad)
        publisher.publish(_event(name, 2))
        account = publisher.close(60)
    assert (account.published, account.failed) == (2, 1)
    ((event, reason),) = told
    assert (event, reason) == (bad, account.failures[0].reason)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert json.loads(record.event_body)["data"] == {"n": 1}  # type: ignore[attr-defined]
    assert sorted(set(_numbers(transport, 2))) == [0, 2]


def test_an_invalid_event_is_the_callers_at_once() -> None:
    publisher = BackgroundPublisher(NOWHERE)
    with pytest.raises(InvalidEvent):
        publisher.publish(DomainEvent("a.b", {"n": object()}))
    assert publisher.close(0).total == 0


@pytest.mark.usefixtures("_quiet")
def test_no_more_than_allowed_is_pending_and_then_the_caller_waits() -> None:
    publisher = BackgroundPublisher(NOWHERE, max_pending=10, timeout=300)
    for number in range(10):
        publisher.publish(_event("a", number))
    with pytest.raises(PublishFailed, match="10 events wait for the broker already"):
        publisher.publish(_event("a", 10), wait=0.05)
    assert publisher.pending == 10
    account = publisher.close(0)
    assert (account.total, account.published, account.failed) == (10, 0, 10)
    assert "not confirmed within 0 s of closing" in account.failures[0].reason
    _has_ended(publisher)


@pytest.mark.usefixtures("_quiet")
def test_what_is_not_confirmed_in_time_is_given_up_and_told() -> None:
    late: list[Any] = []
    publisher = BackgroundPublisher(NOWHERE, timeout=0.2, on_timeout=late.append)
    events = [_event("a", number) for number in range(3)]
    for event in events:
        publisher.publish(event)
    wait_until(lambda: len(late) == 3, 60)
    assert late == events
    assert publisher.close(60).failed == 3


def test_a_broker_that_comes_back_gets_what_waited(queue, proxy: Proxy) -> None:
    transport, name = queue
    publisher = BackgroundPublisher(_url(proxy.port), timeout=120)
    publisher.publish(_event(name, 0))
    assert publisher.flush(60)
    proxy.cut()
    for number in range(1, 50):
        publisher.publish(_event(name, number))
    account = publisher.close(60)
    assert (account.published, account.failed) == (50, 0)
    assert set(_numbers(transport, 50)) == set(range(50))


def test_threads_may_share_a_background_publisher(queue, rabbitmq_server) -> None:
    transport, name = queue
    publisher = BackgroundPublisher(rabbitmq_server.url(), max_pending=20)

    def send(start: int) -> None:
        for number in range(start, start + 100):
            publisher.publish(_event(name, number))

    threads = [threading.Thread(target=send, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.close(60).published == 300
    got = _numbers(transport, 300)
    assert sorted(got) == list(range(300))
    assert [number for number in got if number < 100] == list(range(100))


def test_a_program_that_ends_sends_what_is_pending_first(queue, rabbitmq_server) -> None:
    transport, name = queue
    program = f"""
from domain_event_broker import BackgroundPublisher, DomainEvent
publisher = BackgroundPublisher({rabbitmq_server.url()!r})
for number in range(200):
    publisher.publish(DomainEvent({f"{name}.x"!r}, {{"n": number}}))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=_environment())
    assert _numbers(transport, 200) == list(range(200))


def test_a_forked_child_has_a_thread_of_its_own(queue, rabbitmq_server) -> None:
    transport, name = queue
    program = f"""
import os
from domain_event_broker import BackgroundPublisher, DomainEvent
publisher = BackgroundPublisher({rabbitmq_server.url()!r})
publisher.publish(DomainEvent({f"{name}.x"!r}, {{"n": 1}}))
child = os.fork()
if child == 0:
    publisher.publish(DomainEvent({f"{name}.x"!r}, {{"n": 2}}))
    os._exit(publisher.close().published)
assert publisher.close().published == 1
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=_environment())
    assert sorted(set(_numbers(transport, 2))) == [1, 2]


@pytest.mark.parametrize("wrong", [{"max_pending": 0}, {"timeout": 0.0}])
def test_bounds_that_let_nothing_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be greater than nought"):
        BackgroundPublisher(NOWHERE, **wrong)


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is an error in the log, which is meant here."""
    caplog.set_level(logging.CRITICAL, "domain_event_broker.publisher")


def _has_ended(publisher: BackgroundPublisher) -> None:
    """Wait for the thread of a publisher that was closed in a hurry."""
    ended: Callable[[], bool] = lambda: publisher._thread is None or not publisher._thread.is_alive()  # noqa: E731
    wait_until(ended, 60)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd()}
