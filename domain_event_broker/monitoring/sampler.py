"""Asks a database or a broker for figures, seldom, and never keeps anybody waiting for long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from domain_event_broker.masking import mask_text

logger = logging.getLogger("domain_event_broker.monitoring")

#: Seconds for which an answer is good enough.
FRESH_SECONDS = 5.0
#: Longest time that somebody waits for an answer, in seconds.
PATIENCE_SECONDS = 2.0

Figures = TypeVar("Figures")


class Sampler(Generic[Figures]):
    """The last answer to a question that may take long, fail, or never be answered.

    :param what: what is asked, for the log.
    :param ask: asks, in a thread of its own; one at a time.
    :param fresh: seconds after which it is asked again, when somebody wants to know.
    :param patience: seconds that somebody waits for the answer.
    """

    def __init__(
        self,
        what: str,
        ask: Callable[[], Figures],
        fresh: float = FRESH_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._what = what
        self._ask = ask
        self._fresh = fresh
        self._patience = patience
        self._changed = threading.Condition()
        self._is_asking = False
        self._asked_at: float | None = None
        self._figures: Figures | None = None
        self._is_up = False
        self._is_told = False

    def refresh(self) -> None:
        """Begin to ask, unless the last answer is fresh or still to come."""
        with self._changed:
            now = time.monotonic()
            if self._is_asking or (self._asked_at is not None and now - self._asked_at < self._fresh):
                return
            self._is_asking, self._asked_at = True, now
        try:
            threading.Thread(target=self._run, name="domain-event-broker-figures", daemon=True).start()
        except RuntimeError as error:
            # No thread can be had just now: asked again when the answer would have been old.
            self._answered(None, error)

    def latest(self) -> tuple[Figures | None, bool]:
        """Return the last answer, and whether it is that to the last question.

        The answer is ``None`` before there was one. Waits a moment for the one that is to come.
        """
        self.refresh()
        with self._changed:
            answered = self._changed.wait_for(lambda: not self._is_asking, self._patience)
            return self._figures, answered and self._is_up

    def _run(self) -> None:
        try:
            figures = self._ask()
        except BaseException as error:
            # Whatever it is: without an answer nobody would ever ask again.
            self._answered(None, error)
        else:
            self._answered(figures, None)

    def _answered(self, figures: Figures | None, error: BaseException | None) -> None:
        with self._changed:
            self._is_asking, self._is_up = False, error is None
            if error is None:
                self._figures = figures
            is_news, self._is_told = error is not None and not self._is_told, error is not None
            self._changed.notify_all()
        if is_news:
            # Once: whoever does the work tells of the outage, too.
            text = " ".join(mask_text(str(error)).split())
            logger.warning("the figures of %s cannot be asked, the last ones are shown: %s", self._what, text)
