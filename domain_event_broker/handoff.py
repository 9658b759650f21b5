"""Handlers that hand their events to a task queue: Celery, known by what it does, never imported.

The delivery is acknowledged when the broker of the task queue has the task. Killed between the two,
the task is there twice, under one id: that of the event.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from domain_event_broker import correlation
from domain_event_broker.errors import TaskQueueUnavailable
from domain_event_broker.events import DomainEvent
from domain_event_broker.masking import mask

Function = TypeVar("Function", bound=Callable[..., Any])

#: Name of the one header of a task in which those of its event travel. In one, for Celery puts
#: headers beside its own: an event's header named ``id`` or ``task`` would take their place.
HEADERS = "domain_event"
#: Keys in it: the story that events published by the task belong to, and what they are caused by.
CORRELATION, CAUSATION = "correlation_id", "causation_id"
#: Headers that tracing libraries look for by themselves, so they stand beside Celery's, too.
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")

#: Seconds to wait for a connection, and for the broker's word that it has a task.
CONNECT_SECONDS, CONFIRM_SECONDS = 4.0, 30.0
#: Connections that are kept open; more are opened while more threads send at once.
KEPT_CONNECTIONS = 10


def is_task(value: object) -> bool:
    """Tell whether ``value`` is a Celery task, also one that waits for its app to be made.

    Goes by its type alone: looking into a ``shared_task`` would make the app, perhaps too early.
    """
    kinds = type(value).__mro__
    return any((kind.__module__, kind.__name__) in _TASK_TYPES for kind in kinds) or hasattr(
        type(value), "apply_async"
    )


_TASK_TYPES = {("celery.local", "Proxy"), ("celery.app.task", "Task")}


def headers_for(event_headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a task that is started now, in the course of the event being handled.

    :param event_headers: those of the event.
    """
    around = correlation.current()
    own = {name: value for name, value in event_headers.items() if isinstance(value, (str, int))}
    inner = {**own, CORRELATION: around.correlation_id, CAUSATION: around.causation_id}
    outer = {name: own[name] for name in TRACE_HEADERS if name in own}
    return {**outer, HEADERS: {name: value for name, value in inner.items() if value is not None}}


class TaskHandler:
    """A handler that starts a task for each event.

    The task gets one argument: the body of the event, a dict that ``DomainEvent(**body)`` makes the
    event of again, or what :attr:`prepare` makes of the event.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        # The name of a task has its module in it.
        self.__module__ = ""
        #: Makes the argument of the task of an event; must return what JSON can hold.
        self.prepare: Callable[[DomainEvent], Any] = body_of

    def __call__(self, event: DomainEvent) -> None:
        """Start the task.

        :raises TaskQueueUnavailable: its broker does not have it; calling again is safe.
        """
        argument = self.prepare(event)
        task_id = event.uuid_string or None
        sender.send(self.task, (argument,), task_id=task_id, headers=headers_for(event.headers))

    def __getattr__(self, name: str) -> Any:
        # Asked for when somebody wants to read them: looking into the task any earlier may be too early.
        if name in ("__name__", "__qualname__"):
            return str(self.task.name)
        raise AttributeError(name)

    def prepared_by(self, function: Function) -> Function:
        """Let ``function`` make the argument of the task; return it as it is: a decorator."""
        self.prepare = function
        return function


def body_of(event: DomainEvent) -> dict[str, Any]:
    """Return the body of an event as a dict."""
    return {**event.extra, **event.event_data}


class TaskSender:
    """Starts tasks over connections of its own, on which their broker confirms what it has.

    Those of Celery's pool are not confirmed unless the project says so, and try for ever to reach a
    broker that is away. May be used by many threads at once.

    :param connect_seconds: longest wait for a connection, in seconds.
    :param confirm_seconds: longest wait for the broker's word that it has a task, in seconds.
    """

    def __init__(
        self, connect_seconds: float = CONNECT_SECONDS, confirm_seconds: float = CONFIRM_SECONDS
    ) -> None:
        self._connect_seconds = connect_seconds
        self._confirm_seconds = confirm_seconds
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, Any]] = []
        self._pid = 0

    def send(self, task: Any, args: tuple[Any, ...] = (), **options: Any) -> None:
        """Start a task; return when its broker has it.

        :param options: of ``apply_async``.
        :raises TaskQueueUnavailable: the broker could not be reached or did not take it.
        """
        if task.app.conf.task_always_eager:
            task.apply_async(args, **options)
            return
        kept = self._take(task.app)
        if kept is not None:
            try:
                self._publish(task, args, options, kept)
                return
            except TaskQueueUnavailable as error:
                if _is_timeout(error):
                    raise  # it has been waited for, and would be for as long again
        # A kept connection may have died while it was idle: once more, on a new one. The task
        # may be there already, and then twice, under one id.
        self._publish(task, args, options)

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, producer in idle:
            _close(producer)

    def _publish(self, task: Any, args: tuple[Any, ...], options: dict[str, Any], kept: Any = None) -> None:
        with self._producer(task.app, kept) as producer:
            confirmed = producer.connection.transport.driver_type == "amqp"
            # An unroutable task would be confirmed, too: there is a queue, or it comes back.
            assured = {"mandatory": True, "confirm_timeout": self._confirm_seconds} if confirmed else {}
            task.apply_async(
                args, producer=producer, retry=False, serializer="json", **{**assured, **options}
            )

    @contextmanager
    def _producer(self, app: Any, producer: Any) -> Iterator[Any]:
        """Lend the producer that was kept, or a new one; one over which something failed is closed."""
        connection = _connection_of(app, self._connect_seconds)
        failures = (*connection.connection_errors, *connection.channel_errors, TimeoutError)
        try:
            if producer is None:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
                producer = connection.Producer(auto_declare=False)
            yield producer
        except BaseException as error:
            connection.release()
            _close(producer)
            if isinstance(error, failures) or type(error).__name__ in _NOT_TAKEN:
                raise TaskQueueUnavailable(
                    f"the broker of Celery at {mask(connection.as_uri())} did not take the task: "
                    f"{type(error).__name__} {mask(' '.join(str(error).split()))}"
                ) from error
            raise
        self._give_back(app, producer)

    def _take(self, app: Any) -> Any | None:
        with self._lock:
            if self._pid != os.getpid():
                # A forked child shares its parent's sockets: closing them here would end the
                # parent's connections, so they are left alone.
                self._idle, self._pid = [], os.getpid()
            for index, (owner, producer) in enumerate(self._idle):
                if owner is app:
                    del self._idle[index]
                    return producer
        return None

    def _give_back(self, app: Any, producer: Any) -> None:
        with self._lock:
            keep = len(self._idle) < KEPT_CONNECTIONS and self._pid == os.getpid()
            if keep:
                self._idle.append((app, producer))
        if not keep:
            _close(producer)


#: Kombu's own words for a broker that is away, and for one that answered "no".
_NOT_TAKEN = frozenset({"OperationalError", "MessageNacked"})

#: Used by handlers.
sender = TaskSender()


def _connection_of(app: Any, connect_seconds: float) -> Any:
    """Return a connection that is not open yet."""
    connection = app.connection_for_write(connect_timeout=connect_seconds)
    if connection.transport.driver_type == "amqp":
        # https://docs.celeryq.dev/en/stable/userguide/configuration.html#broker-transport-options
        connection.transport_options["confirm_publish"] = True
    return connection


def _is_timeout(error: BaseException | None) -> bool:
    """Tell whether an error has come of waiting in vain, in whatever libraries wrapped it."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def _close(producer: Any) -> None:
    try:
        producer.connection.release()
    except Exception:  # noqa: S110 - it is of no further use, whatever state it is in
        pass
