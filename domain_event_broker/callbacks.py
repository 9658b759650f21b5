"""Calling what users gave to be called, whether it is a function or a coroutine function."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("domain_event_broker.publisher")


def call(callback: Callable[..., Any] | None, *arguments: Any) -> None:
    """Call it, if there is one, and wait for it. What it raises is logged: nobody else could tell."""
    if callback is None:
        return
    try:
        result = callback(*arguments)
        if inspect.iscoroutine(result):
            # In a thread of its own, since a loop may be running in this one.
            thread = threading.Thread(
                target=_run, args=(callback, result), name="domain-event-broker-callback"
            )
            thread.start()
            thread.join()
    except Exception:
        logger.exception("the callback %r failed", callback)


def _run(callback: Callable[..., Any], coroutine: Any) -> None:
    from asyncio import run

    try:
        run(coroutine)
    except Exception:
        logger.exception("the callback %r failed", callback)
