"""When a failed event is tried again: tables of decisions."""

from __future__ import annotations

import math

import pytest

from domain_event_broker import Backoff, Reject, Retry
from domain_event_broker.errors import HandlerError
from domain_event_broker.retry import MAX_DELAY, RetryPolicy


def test_a_fixed_backoff_is_the_same_each_time() -> None:
    assert [Backoff.fixed(2.5).delay(n) for n in (1, 2, 9)] == [2.5, 2.5, 2.5]


def test_an_exponential_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff.exponential(1, max=10, jitter=0)
    assert [backoff.delay(n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_a_backoff_grows_no_further_than_a_broker_can_count() -> None:
    assert Backoff.exponential(1, factor=10, max=math.inf, jitter=0).delay(500) == MAX_DELAY


@pytest.mark.parametrize(("random", "expected"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_jitter_moves_a_delay_to_both_sides(random: float, expected: float) -> None:
    assert Backoff.fixed(10, jitter=0.2).delay(1, lambda: random) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"base": -1}, {"factor": 0.5}, {"jitter": 2}, {"base": math.nan}])
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(HandlerError, match="cannot be served"):
        Backoff(**{"base": 1.0, **wrong})


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "5", None, True])
def test_a_retry_delay_that_makes_no_sense_is_refused(delay: object) -> None:
    with pytest.raises(ValueError, match="delay"):
        Retry(delay)  # type: ignore[arg-type]


def test_retry_without_a_delay_waits_ten_seconds() -> None:
    assert Retry().delay == 10.0


BACKOFF = Backoff.fixed(5)


@pytest.mark.parametrize(
    ("policy", "error", "retries", "expected"),
    [
        (RetryPolicy(), Retry(1), 0, None),
        (RetryPolicy(3), Retry(1.5), 0, 1.5),
        (RetryPolicy(3), Retry(1.5), 2, 1.5),
        (RetryPolicy(3), Retry(1.5), 3, None),
        (RetryPolicy(3), ValueError(), 0, None),
        (RetryPolicy(3, backoff=BACKOFF), ValueError(), 0, 5),
        (RetryPolicy(3, backoff=BACKOFF), ValueError(), 3, None),
        (RetryPolicy(3, backoff=BACKOFF), SystemExit(), 0, None),
        (RetryPolicy(3, backoff=BACKOFF), Reject(), 3, None),
        (RetryPolicy(3, (OSError,), BACKOFF), ConnectionError(), 0, 5),
        (RetryPolicy(3, (OSError,), BACKOFF), ValueError(), 0, None),
        (RetryPolicy(3, (OSError,), BACKOFF), Retry(9), 0, 9),
    ],
)
def test_the_next_delay_follows_from_policy_error_and_retries(
    policy: RetryPolicy, error: BaseException, retries: int, expected: float | None
) -> None:
    assert policy.next_delay(error, retries) == expected


def test_retry_on_without_a_backoff_has_a_default_one() -> None:
    delay = RetryPolicy(3, (OSError,)).next_delay(OSError(), 0)
    assert delay is not None
    assert 0.9 <= delay <= 1.1


def test_known_delays_are_those_of_the_backoff() -> None:
    policy = RetryPolicy(4, backoff=Backoff.exponential(1, max=5))
    assert policy.known_delays() == (1, 2, 4, 5)
    assert RetryPolicy(4).known_delays() == ()
    assert RetryPolicy(0, backoff=BACKOFF).known_delays() == ()
