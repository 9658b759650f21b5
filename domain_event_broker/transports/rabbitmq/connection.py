"""One connection, and the loop that serves all connections of a transport.

pika's ``SelectConnection`` is driven step by step from the caller's thread: nothing happens on
it but while :meth:`Loop.run_until` runs. Consuming and publishing share one loop, so that
whichever of them is waited for, the heartbeats of both are kept.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pika
import pika.channel
import pika.exceptions
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils import connection_workflow

from domain_event_broker.config import mask
from domain_event_broker.errors import AccessRefused, BrokerUnavailable
from domain_event_broker.transports.rabbitmq.addresses import BLOCKED_TIMEOUT, parameters
from domain_event_broker.transports.rabbitmq.decoding import tolerate_any_value
from domain_event_broker.transports.rabbitmq.tls import certificate_problem

#: Seconds for the broker's reply to a command. Those of a queue whose members elect a leader
#: come late, none comes while a majority of a cluster is away.
REPLY_TIMEOUT = 60.0

#: Seconds for an orderly end; after that the socket is simply closed.
CLOSE_TIMEOUT = 3.0

_ACCESS_REFUSED = 403

#: What the broker says when it ends a channel because a delivery had no answer for half an hour
#: (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
_TIMED_OUT = "delivery acknowledgement on channel"
_TIMED_OUT_HINT = (
    " (a handler works on one event for longer than consumer_timeout of the broker allows; what it began is "
    "delivered again. Raise consumer_timeout there, or let the handler do less at once)"
)

#: What pika raises when a connection fails.
PIKA_ERRORS = (pika.exceptions.AMQPError, connection_workflow.AMQPConnectorException)


class Loop:
    """Waits for input on the connections of one transport, in the thread that calls it."""

    def __init__(self) -> None:
        self._ioloop = IOLoop()
        self._ioloop.activate_poller()
        self._closing = threading.Lock()
        self._closed = False

    @property
    def ioloop(self) -> IOLoop:
        """The loop that pika's connections are made with."""
        return self._ioloop

    def run_until(self, done: Callable[[], object], timeout: float) -> bool:
        """Serve the connections until ``done()`` or for ``timeout`` seconds; tell which it was."""
        expired: list[bool] = []
        timer = self._ioloop.call_later(timeout, lambda: expired.append(True))
        try:
            while not done():
                if expired:
                    return False
                self._ioloop.poll()
                self._ioloop.process_timeouts()
            return True
        finally:
            self._ioloop.remove_timeout(timer)

    def turn(self) -> None:
        """Serve what is there, without waiting."""
        self.run_until(lambda: False, 0)

    def wake(self) -> None:
        """Make :meth:`run_until` in another thread look at its condition. Never raises."""
        with self._closing:
            if not self._closed:
                self._ioloop.add_callback_threadsafe(_nothing)

    def close(self) -> None:
        """Give the loop's descriptors back."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._ioloop.deactivate_poller()
                self._ioloop.close()


class Connection:
    """A connection to the first broker of ``urls`` that takes us.

    Errors of pika pass through its members; see :func:`broker_errors`.

    :raises BrokerUnavailable: none of them answered.
    :raises AccessRefused: the last one that answered refused us.
    """

    def __init__(self, loop: Loop, urls: Sequence[str]) -> None:
        self._loop = loop
        self._url = ""
        self._error: BaseException | None = None
        #: Why the broker takes nothing in just now; empty: it does.
        self.blocked = ""
        #: Seconds to wait for a broker that takes nothing in.
        self.blocked_timeout = BLOCKED_TIMEOUT
        self._pika = self._connect_any(urls)
        self._pika.add_on_close_callback(self._on_close)
        self._pika.add_on_connection_blocked_callback(self._on_blocked)
        self._pika.add_on_connection_unblocked_callback(self._on_unblocked)

    @property
    def is_open(self) -> bool:
        """Whether it is there, as far as we were told."""
        return bool(self._pika.is_open)

    @property
    def frame_max(self) -> int:
        """Largest frame in bytes, as agreed with the broker."""
        return int(self._pika.params.frame_max)

    def ensure_open(self) -> None:
        """Raise the reason if the connection is lost."""
        if not self.is_open:
            reason = _text(self._error) if self._error is not None else "it was closed"
            raise BrokerUnavailable(
                f"the connection to {mask(self._url)} was lost: {reason}"
            ) from self._error

    def write(self, frames: bytes) -> None:
        """Send frames that are encoded already, in one piece."""
        self.ensure_open()
        self._pika._output_marshaled_frames([frames])

    def open_channel(self) -> Channel:
        """Return a new channel."""
        self.ensure_open()
        opened: list[object] = []
        channel = Channel(self, self._pika.channel(on_open_callback=opened.append))
        channel.wait(lambda: opened)
        return channel

    @contextmanager
    def channel(self) -> Iterator[Channel]:
        """Open a channel for one purpose: the broker closes it when a command is refused."""
        channel = self.open_channel()
        try:
            yield channel
        finally:
            channel.close()

    def run_until(self, done: Callable[[], object], timeout: float) -> bool:
        """Serve the connections until ``done()``, the loss of this one, or for ``timeout`` seconds."""
        in_time = self._loop.run_until(lambda: done() or not self.is_open, timeout)
        self.ensure_open()
        return in_time

    def close(self) -> None:
        """End the connection in an orderly way if the broker lets us. Never raises."""
        with suppress(Exception):
            if self.is_open:
                self._pika.close()
            if not self._loop.run_until(lambda: self._pika.is_closed, CLOSE_TIMEOUT):
                # A silent broker would keep the socket open until the garbage is collected.
                self._pika._terminate_stream(pika.exceptions.StreamLostError("closed by us"))
                self._loop.run_until(lambda: self._pika.is_closed, CLOSE_TIMEOUT)

    def _on_close(self, _connection: object, error: BaseException) -> None:
        self._error = error

    def _on_blocked(self, _connection: object, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "no reason given"

    def _on_unblocked(self, _connection: object, _frame: object) -> None:
        self.blocked = ""

    def _connect_any(self, urls: Sequence[str]) -> pika.SelectConnection:
        _quieten_pika()
        tolerate_any_value()
        targets = [(url, parameters(url)) for url in urls]  # a wrong URL is told before any is tried
        failures: list[BrokerUnavailable] = []
        for url, target in targets:
            result = self._connect(target)
            if isinstance(result, pika.SelectConnection):
                self._url = url
                return result
            failures.append(_connect_failure(url, result))
        raise _summary(failures)

    def _connect(self, target: pika.URLParameters) -> Any:
        done: list[Any] = []
        # How long to wait is decided where something waits; pika would end the connection.
        self.blocked_timeout = target.blocked_connection_timeout or BLOCKED_TIMEOUT
        target.blocked_connection_timeout = None
        pika.SelectConnection.create_connection([target], done.append, custom_ioloop=self._loop.ioloop)
        while not done:  # bounded by pika: stack_timeout times connection_attempts
            self._loop.run_until(lambda: done, REPLY_TIMEOUT)
        return done[0]


class Channel:
    """A channel of a connection: commands are sent, and waited for, one at a time."""

    def __init__(self, connection: Connection, channel: pika.channel.Channel) -> None:
        self.pika = channel
        self.reason: BaseException | None = None
        self._connection = connection
        self._empty: list[Any] = []
        channel.add_on_close_callback(self._on_close)
        channel.add_callback(self._on_get_empty, [pika.spec.Basic.GetEmpty], one_shot=False)

    @property
    def number(self) -> int:
        """Its number, written into each frame."""
        return int(self.pika.channel_number)

    def ensure_open(self) -> None:
        """Raise the reason if it is closed."""
        if self.reason is not None:
            self._connection.ensure_open()
            raise self.reason

    def ask(self, command: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of pika's channel that takes a callback, and return the broker's reply.

        :raises pika.exceptions.ChannelClosedByBroker: it was refused; the channel is closed.
        """
        replies: list[Any] = []
        self.ensure_open()
        command(callback=replies.append, **arguments)
        self.wait(lambda: replies)
        return replies[0].method

    def get(self, queue: str) -> Fetched | None:
        """Fetch one message, to be acknowledged; ``None``: the queue is empty."""
        self.ensure_open()
        self._empty.clear()
        found: list[Fetched] = []
        self.pika.basic_get(queue, lambda _channel, *message: found.append(Fetched(*message)))
        self.wait(lambda: found or self._empty)
        return found[0] if found else None

    def wait(self, done: Callable[[], object]) -> None:
        """Wait for a reply, or raise why there will be none."""
        in_time = self._connection.run_until(lambda: done() or self.reason is not None, REPLY_TIMEOUT)
        self.ensure_open()
        if not in_time:
            raise BrokerUnavailable(f"the broker did not reply within {REPLY_TIMEOUT:g} s")

    def close(self) -> None:
        """Close it; what it holds unacknowledged goes back to its queue. Never raises."""
        with suppress(*PIKA_ERRORS, BrokerUnavailable):
            if self.pika.is_open and self._connection.is_open:
                self.pika.close()
                self._connection.run_until(lambda: self.pika.is_closed, REPLY_TIMEOUT)

    def _on_close(self, _channel: object, reason: BaseException) -> None:
        self.reason = reason

    def _on_get_empty(self, frame: object) -> None:
        self._empty.append(frame)


class Fetched(NamedTuple):
    """A message got from a queue, not yet acknowledged."""

    method: Any
    properties: pika.BasicProperties
    body: bytes


@contextmanager
def broker_errors() -> Iterator[None]:
    """Let errors of pika out as ours: :exc:`BrokerUnavailable` or :exc:`AccessRefused`."""
    try:
        yield
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code == _ACCESS_REFUSED:
            raise AccessRefused(
                f"{error.reply_text}; grant it with 'rabbitmqctl set_permissions', or use another user"
            ) from error
        hint = _TIMED_OUT_HINT if _TIMED_OUT in str(error.reply_text) else ""
        raise BrokerUnavailable(f"the broker refused a command: {error.reply_text}{hint}") from error
    except PIKA_ERRORS as error:
        raise BrokerUnavailable(f"the connection to the broker was lost: {_text(error)}") from error


def _connect_failure(url: str, error: BaseException) -> BrokerUnavailable:
    cause = _root(error)
    if isinstance(cause, (pika.exceptions.ProbableAuthenticationError, pika.exceptions.AuthenticationError)):
        return AccessRefused(
            f"{mask(url)} refused the user or the password (the user 'guest' may only come from the same "
            "machine); correct the URL in DOMAIN_EVENT_BROKER"
        )
    if isinstance(cause, pika.exceptions.ProbableAccessDeniedError):
        return AccessRefused(
            f"{mask(url)} refused the virtual host: {_text(cause)}; create it or give the user its "
            "permissions (rabbitmqctl add_vhost, set_permissions), or correct the URL in DOMAIN_EVENT_BROKER"
        )
    return BrokerUnavailable(f"cannot connect to {mask(url)}: {_text(cause)}")


def _summary(failures: Sequence[BrokerUnavailable]) -> BrokerUnavailable:
    """A refusal says more than silence: one of them makes the error a refusal."""
    refused = any(isinstance(failure, AccessRefused) for failure in failures)
    kind = AccessRefused if refused else BrokerUnavailable
    return kind("; ".join(str(failure) for failure in failures))


def _root(error: BaseException) -> BaseException:
    """Return what lies below the wrappers of pika's connection workflow."""
    if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed) and error.exceptions:
        return _root(error.exceptions[-1])
    if isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
        return _root(error.exception)
    return error


def _text(error: BaseException) -> str:
    if isinstance(error, connection_workflow.AMQPConnectorStackTimeout):
        return "no AMQP answer in time (is it a RabbitMQ that listens there, and is TLS on at both ends?)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_problem(error)
    if isinstance(error, pika.exceptions.ConnectionClosed):
        return f"{error.reply_text} ({error.reply_code})"
    return str(error) or type(error).__name__


def _quieten_pika() -> None:
    """Leave it to our errors to tell of lost connections, once: pika logs each with several tracebacks.

    A program that gave the logger ``pika`` a level keeps it.
    """
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def _nothing() -> None:
    """Called in the loop's thread to wake it."""
