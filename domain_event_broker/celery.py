"""The Celery side: tasks carry the story that their event belongs to.

Importing this in a process (a worker, a web server) is enough. In Django workers do by themselves:
Celery finds ``domain_event_broker.django.tasks``, which imports it.

A task that is started while an event is handled, or within ``correlated()``, knows the identities of
the story and of the event; events that it publishes carry them, and so do tasks that it starts. With
``TRACING`` on they go on with its trace, too.
"""

from __future__ import annotations

from typing import Any

from celery import signals

from domain_event_broker import correlation
from domain_event_broker.handoff import CAUSATION, CORRELATION, HEADERS, headers_for
from domain_event_broker.telemetry.tracing import tracing_now

#: Attribute of a task's request that holds what was around before it.
_TOKEN = "_domain_event_broker_token"  # noqa: S105 - no secret


def event_headers(task: Any) -> dict[str, Any]:
    """Return the headers of the event that a task was started for; empty where there is none.

    :param task: the task as it runs: ``self`` of one with ``bind=True``.
    """
    headers = getattr(task.request, "headers", None) or {}
    found = headers.get(HEADERS)
    return (
        {name: value for name, value in found.items() if name not in (CORRELATION, CAUSATION)}
        if found
        else {}
    )


def _on_publish(headers: dict[str, Any] | None = None, **_: Any) -> None:
    """Let a task that is started now belong to the story of what starts it."""
    if headers is not None and HEADERS not in headers and correlation.current() is not correlation.NOTHING:
        headers.update(headers_for({}))
        tracing = tracing_now()
        for name, value in (tracing.headers_now() if tracing is not None else {}).items():
            # What a tracing library has written by now knows more: it names the span of this very task.
            headers.setdefault(name, value)


def _on_begin(task: Any, **_: Any) -> None:
    """Enter the story of a task that begins, and its trace."""
    headers = getattr(task.request, "headers", None) or {}
    found = headers.get(HEADERS)
    if not isinstance(found, dict):
        return
    around = [found.get(name) for name in (CORRELATION, CAUSATION)]
    story, cause = (each if correlation.is_usable(each) else None for each in around)
    token = correlation.enter(story, cause)
    tracing = tracing_now()
    trace = tracing.carry(headers) if tracing is not None else None
    setattr(task.request, _TOKEN, (token, tracing, trace))


def _on_end(task: Any, **_: Any) -> None:
    """Leave it again: the next task of this worker has another one."""
    entered = getattr(task.request, _TOKEN, None)
    if entered is not None:
        delattr(task.request, _TOKEN)
        token, tracing, trace = entered
        correlation.leave(token)
        if tracing is not None:
            tracing.drop(trace)


signals.before_task_publish.connect(_on_publish, dispatch_uid="domain_event_broker.publish")
signals.task_prerun.connect(_on_begin, dispatch_uid="domain_event_broker.begin")
signals.task_postrun.connect(_on_end, dispatch_uid="domain_event_broker.end")
