"""How a relay waits: for a wake-up from this process, a notification from PostgreSQL, or the time."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from domain_event_broker.django import wakeups
from domain_event_broker.django.wakeups import CHANNEL

logger = logging.getLogger("domain_event_broker.relay")

#: Seconds between two looks at the outbox while there is something to do; they grow, doubling,
#: up to the setting ``POLL_SECONDS`` while there is not.
SHORTEST_POLL = 0.005

#: Seconds between two questions to the server whether the listening connection is alive. A
#: question still open when the next one is due means that it is not.
PING_SECONDS = 10.0

#: Seconds between two tries to listen again after the connection was lost: first and longest.
RECONNECT_SECONDS = (1.0, 30.0)

#: Seconds in which a notification of our own must be heard where a pooler is in between.
PROOF_SECONDS = 5.0

#: How libpq finds out by itself that the other side is gone
#: (https://www.postgresql.org/docs/current/libpq-connect.html).
_KEEPALIVES = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


class Alarm:
    """Ends a wait from another thread or a signal handler.

    A byte in a socket rather than a lock: a signal handler runs in the middle of whatever its
    thread was doing, and would wait for ever for a lock that this thread holds.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def ring(self) -> None:
        """End the wait under way, or the next one. Never blocks or raises."""
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
            self._sender.send(b"!")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when it rings."""
        return self._receiver.fileno()

    def silence(self) -> bool:
        """Forget the rings so far; tell whether there were any."""
        rung = False
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(1024):
                rung = True
        return rung

    def close(self) -> None:
        """Give the descriptors back."""
        self._sender.close()
        self._receiver.close()


class Listener:
    """A connection of its own on which PostgreSQL says that something was published.

    After the ``LISTEN`` the connection is driven through libpq alone, and never waited for:
    a server that stands still must not hold up the relay.

    :raises django.db.Error: it cannot be had now.
    """

    def __init__(self, alias: str) -> None:
        self._wrapper: Any = _copy(connections[alias])
        try:
            self.is_pooled = is_pooled(self._wrapper)
            with self._wrapper.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
        except Error:
            self._wrapper.close()
            raise
        self._libpq: Any = self._wrapper.connection.pgconn
        self._libpq.nonblocking = 1
        self._asked = False
        self._ping_at = time.monotonic() + PING_SECONDS

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the server says something."""
        return int(self._libpq.socket)

    def read(self) -> bool:
        """Take in what the server said; tell whether something was published.

        :raises OSError: the connection is lost.
        """
        try:
            self._libpq.consume_input()
            while self._asked and not self._libpq.is_busy():
                self._asked = self._libpq.get_result() is not None
            published = False
            while self._libpq.notifies() is not None:
                published = True
        except self._wrapper.Database.Error as error:
            raise ConnectionError(str(error).strip()) from error
        return published

    def ping(self) -> None:
        """Ask the server for a sign of life if it is time to.

        :raises OSError: it did not answer the last time.
        """
        if time.monotonic() < self._ping_at:
            return
        if self._asked:
            raise ConnectionError(f"the server did not answer for {PING_SECONDS:g} s")
        self._ping_at = time.monotonic() + PING_SECONDS
        try:
            self._libpq.send_query(b"SELECT 1")
            self._libpq.flush()
        except self._wrapper.Database.Error as error:
            raise ConnectionError(str(error).strip()) from error
        self._asked = True

    def close(self) -> None:
        """Disconnect. Never raises."""
        with contextlib.suppress(Exception):
            self._libpq.finish()
        with contextlib.suppress(Exception):
            self._wrapper.close()


class Waiter:
    """Waits for something to send, and looks for itself at growing intervals meanwhile.

    :param alias: database of the outbox.
    :param listen: whether to use ``LISTEN`` where the database has it.
    """

    def __init__(self, alias: str, listen: bool) -> None:
        self._alias = alias
        self._listen = listen and _can_listen(connections[alias])
        self._alarm: Alarm | None = Alarm()
        self._listener: Listener | None = None
        # Until when something must be heard, if it is not known whether anything can be.
        self._proof_until: float | None = None
        self._connect_at = 0.0
        self._connect_pause = RECONNECT_SECONDS[0]
        self._interval = SHORTEST_POLL

    @property
    def is_listening(self) -> bool:
        """Whether a notification would reach us now."""
        return self._listener is not None

    def ring(self) -> None:
        """End the wait under way, or the next one; from any thread or signal handler."""
        alarm = self._alarm
        if alarm is not None:
            alarm.ring()

    def stay_awake(self) -> None:
        """Look again soon: where something was published, more is likely to follow."""
        self._interval = SHORTEST_POLL

    def wait(self, timeout: float) -> None:
        """Return when something may have been published, or after ``timeout`` seconds at most."""
        if self._alarm is None:
            self._alarm = Alarm()
        seconds = min(self._interval, timeout)
        self._interval = min(self._interval * 2, max(timeout, SHORTEST_POLL))
        if self._has_news(self._alarm, seconds):
            self.stay_awake()

    def close(self) -> None:
        """Disconnect and give the descriptors back; a later wait takes new ones."""
        self._drop_listener()
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.close()

    def _has_news(self, alarm: Alarm, seconds: float) -> bool:
        if self._listen and self._connect():
            return True  # what was published while nobody listened made no sound
        with selectors.DefaultSelector() as selector:
            selector.register(alarm, selectors.EVENT_READ)
            if self._listener is not None:
                selector.register(self._listener, selectors.EVENT_READ)
            selector.select(seconds)
        return alarm.silence() | self._hear()

    def _hear(self) -> bool:
        if self._listener is None:
            return False
        try:
            self._listener.ping()
            heard = self._listener.read()
        except OSError as error:
            # A database that is away is told of by whoever needs it.
            logger.debug("no longer listening for wake-ups in database %r: %s", self._alias, error)
            self._drop_listener()
            return True
        if heard:
            self._proof_until = None
        elif self._proof_until is not None and time.monotonic() >= self._proof_until:
            self._give_up()
        return heard

    def _connect(self) -> bool:
        """Listen if we do not; tell whether we do only since now."""
        if self._listener is not None or time.monotonic() < self._connect_at:
            return False
        self._connect_at = time.monotonic() + self._connect_pause
        try:
            self._listener = Listener(self._alias)
            self._proof_until = self._ask_for_proof() if self._listener.is_pooled else None
        except Error as error:
            first = self._connect_pause == RECONNECT_SECONDS[0]
            self._connect_pause = min(self._connect_pause * 2, RECONNECT_SECONDS[1])
            logger.log(
                logging.WARNING if first else logging.DEBUG,
                "cannot listen for wake-ups in database %r, polling: %s",
                self._alias,
                " ".join(str(error).split()),
            )
            self._drop_listener()
            return False
        self._connect_pause = RECONNECT_SECONDS[0]
        return True

    def _ask_for_proof(self) -> float | None:
        """Notify over the other connection; return until when the listener must have heard it.

        A pooler that shares sessions accepts ``LISTEN``, for whichever session it lends at the
        moment, and what that hears later reaches nobody
        (https://www.pgbouncer.org/features.html, "SQL feature map for pooling modes").
        """
        if connections[self._alias].in_atomic_block:
            return None  # nobody hears of it before the end of that transaction
        wakeups.notify(self._alias)
        return time.monotonic() + PROOF_SECONDS

    def _give_up(self) -> None:
        logger.warning(
            "notifications of database %r do not arrive, so this relay polls from now on: a pooler that "
            "shares sessions, such as PgBouncer in transaction mode, is in between. Set "
            "DOMAIN_EVENT_BROKER['OUTBOX']['LISTEN'] = False, or give relays a database alias that goes "
            "around it",
            self._alias,
        )
        self._listen = False
        self._drop_listener()

    def _drop_listener(self) -> None:
        self._proof_until = None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


def is_pooled(connection: Any) -> bool:
    """Tell whether somebody answers for the server on a connection, such as PgBouncer.

    The number of the session that it told at the start is one of its own, then; several clients may
    share a session. ``False`` where there is no ``LISTEN`` that could suffer from it.
    """
    if not _can_listen(connection):
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        server_process = cursor.fetchone()[0]
    return bool(connection.connection.pgconn.backend_pid != server_process)


def _can_listen(connection: Any) -> bool:
    """Tell whether this is PostgreSQL by way of psycopg 3; with psycopg2 a relay polls."""
    return bool(connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg")


def _copy(connection: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    """Return a second connection to the same database, outside of any pool, that notices its end."""
    copied = connection.copy()
    options = {name: value for name, value in copied.settings_dict["OPTIONS"].items() if name != "pool"}
    copied.settings_dict["OPTIONS"] = {**_KEEPALIVES, **options}
    return copied
