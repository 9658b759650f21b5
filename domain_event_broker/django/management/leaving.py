"""Ending a process although threads that nobody can end would keep it.

``asyncio.to_thread()`` and ``sync_to_async()`` call functions in threads that the interpreter waits for at
its end, without limit (https://docs.python.org/3/library/concurrent.futures.html, ``ThreadPoolExecutor``); so
does any thread that is no daemon. A call that hangs, of a handler that has long been given up, would keep a
stopped worker alive for ever. What hangs and what only takes its time look the same: both get the grace.
"""

from __future__ import annotations

import concurrent.futures.thread
import logging
import os
import sys
import threading
import traceback

logger = logging.getLogger("domain_event_broker.subscriber")

#: Least time, in seconds, that such threads have to end by themselves after the worker has.
LEAVE_SECONDS = 5.0
#: Seconds between two looks at whether they are what the process waits for.
LOOK_SECONDS = 0.5
#: Seconds that telling of them may take: one of them may hold the lock of a log handler.
TELL_SECONDS = 2.0


def leave_within(seconds: float, code: int) -> None:
    """Let this process, which is about to end, not be kept by threads for longer than that.

    What handlers did themselves is committed or rolled back by then, and deliveries that were not settled
    come back. Work that they left to threads is finished if that time is enough for it, and else cut off.

    :param seconds: time that the threads have.
    :param code: exit code of the process if they need more.
    """
    for wait, is_talkative in ((seconds, True), (seconds + TELL_SECONDS, False)):
        threading.Thread(
            target=_leave, args=(wait, code, is_talkative), name="last-exit", daemon=True
        ).start()


def _leave(seconds: float, code: int, is_talkative: bool) -> None:
    pause = threading.Event()
    pause.wait(seconds)
    while not _is_kept():
        # What else the program does at its exit, such as sending what is buffered, may take its time.
        pause.wait(LOOK_SECONDS)
    if is_talkative:
        _tell(_keeping())
    os._exit(code)


def _is_kept() -> bool:
    """Tell whether the interpreter is at its end, and waits for threads."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code is threading._shutdown.__code__:  # type: ignore[attr-defined]
            return True
        frame = frame.f_back
    return False


def _keeping() -> list[threading.Thread]:
    """Return the threads that it waits for: also those of executors, whatever they are."""
    executors = getattr(concurrent.futures.thread, "_threads_queues", ())
    return [
        each
        for each in threading.enumerate()
        if each is not threading.main_thread() and (each in executors or not each.daemon)
    ]


def _tell(threads: list[threading.Thread]) -> None:
    for thread in threads:
        logger.critical(
            "thread %s did not end after the stop, and the process ends without it; it is in:\n%s",
            thread.name,
            _place(thread),
        )
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()


def _place(thread: threading.Thread) -> str:
    """Return the last lines of the stack of a thread."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame, limit=None)[-3:]) if frame is not None else "its end"
