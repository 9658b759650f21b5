"""The one place where tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks at the condition.
INTERVAL = 0.02


class TimedOut(AssertionError):
    """What a test waited for didn't become true in time."""


def wait_until(
    condition: Callable[[], T],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "",
    interval: float = INTERVAL,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    Raises ``TimedOut`` after ``timeout`` seconds. ``message`` says what was waited for; give a function
    when it should tell the state at the end.
    """
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() >= deadline:
            break
        time.sleep(interval)
    told = message() if callable(message) else message
    raise TimedOut(f"not true within {timeout:g} s: {told or condition!r}")
