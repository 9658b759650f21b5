"""Starts the Celery task that relays, for teams that run no relay process: setting ``RELAY_TASK``.

Nothing depends on it: what is not started here, Celery beat starts a little later. So the request
that has just committed never fails for it, and waits once for a broker that is away, not each time.
"""

from __future__ import annotations

import logging
import threading
import time
from importlib import import_module

from domain_event_broker.handoff import TaskSender

logger = logging.getLogger("domain_event_broker.outbox")

#: Longest wait for a connection to Celery's broker, and for its word that it has the task, in
#: seconds: a request waits for it.
CONNECT_SECONDS = 1.0
#: Seconds for which nothing is tried after a failure.
PAUSE_SECONDS = 30.0
#: Seconds after which a task that nobody took is of no use: beat has started others meanwhile.
EXPIRE_SECONDS = 60.0


class Kicker:
    """Starts the task, and leaves it for a while after a failure.

    :param pause_seconds: how long it leaves it.
    """

    def __init__(self, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._sender = TaskSender(CONNECT_SECONDS, confirm_seconds=CONNECT_SECONDS)
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._is_away = False

    def kick(self, alias: str) -> None:
        """Let a worker relay what waits in the database ``alias``. Never raises."""
        if not self._may_try():
            return
        try:
            self._start(alias)
        except Exception as error:
            self._failed(error)
        else:
            if self._is_away:
                self._is_away, self._not_before = False, 0.0
                logger.info("Celery's broker is back: commits start the relay task again")

    def _may_try(self) -> bool:
        """Whether it is not left alone; after a failure one request tries, and no other waits with it.

        While it works all of them try: what another has just started may have looked too early.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                return False
            if self._is_away:
                self._not_before = now + self._pause_seconds
            return True

    def _start(self, alias: str) -> None:
        # Celery is optional, and imported by those who switched this on.
        task = import_module("domain_event_broker.django.tasks").relay_outbox
        self._sender.send(
            task, kwargs={"database": alias}, expires=EXPIRE_SECONDS, ignore_result=True, mandatory=False
        )

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._not_before = time.monotonic() + self._pause_seconds
            first, self._is_away = not self._is_away, True
        if first:
            logger.error(
                "a commit could not start the relay task, so events wait for Celery beat or a relay "
                "(said once until it works again): %s",
                error,
            )


#: Used by the outbox.
kicker = Kicker()
