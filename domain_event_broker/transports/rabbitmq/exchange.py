"""The exchange of the events, and what is done when somebody deletes it or a binding.

With an exchange its bindings go. Were it made again at once, events would find no queue bound to
it, or only those of the subscribers that noticed first. So whoever misses it lets it be missing for
a while: publishers fail and relays wait, with the events where they are safe, and every subscriber
comes to notice. Then it is made again, the queues are bound, and only then the events go on.

A binding that was taken away is nothing that AMQP tells of, so subscribers bind their queues again
from time to time: a command that changes nothing where all is well.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable

import pika.exceptions

from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.ports import Subscription
from domain_event_broker.transports.rabbitmq.topology import Topology

logger = logging.getLogger(__name__)

#: Seconds between two looks of a subscriber whether the exchange is there, and while it is not.
LOOK_SECONDS, MISSING_LOOK_SECONDS = 4.0, 0.5
#: Seconds for which an exchange that was there before is left missing: in that time every subscriber
#: looks at least once.
ABSENCE_SECONDS = 8.0
#: Seconds that subscribers get to bind their queues to an exchange that is back.
RETURN_SECONDS = 2.0
#: Seconds after which a subscriber binds its queues again, in case somebody took a binding away.
BIND_SECONDS = 30.0


#: Exchanges that this process has published to, and since when it misses which: over all its
#: connections, of which each loss ends one.
_used: set[object] = set()
_missing_since: dict[object, float] = {}


def make_ready(topology: Topology, settings: BrokerSettings, wait: Callable[[float], object]) -> None:
    """Make sure that the exchange exists, before something is published to it.

    One that this process has never seen is made at once: a new installation begins so.

    :param wait: waits for so many seconds, with the connections alive.
    :raises BrokerUnavailable: it was deleted a moment ago, and subscribers shall notice that first.
    """
    key = _key(settings)
    exists = not settings.exchange or topology.exchange_exists(settings.exchange)
    if not exists and key in _used:
        since = _missing_since.setdefault(key, time.monotonic())
        if time.monotonic() - since < ABSENCE_SECONDS:
            raise missed(settings)
    if not exists:
        topology.declare_exchange()
    if _missing_since.pop(key, None) is not None:
        logger.warning("the exchange %s is back; subscribers bind their queues to it", settings.exchange)
        wait(RETURN_SECONDS)
    _used.add(key)


def missed(settings: BrokerSettings) -> BrokerUnavailable:
    """Take note that the exchange is missing, and return the error that says so."""
    _missing_since.setdefault(_key(settings), time.monotonic())
    return BrokerUnavailable(
        f"the exchange {settings.exchange!r} was deleted, and with it the bindings of all queues; it is made "
        f"again after {ABSENCE_SECONDS:g} s, in which subscribers notice. 'manage.py declare_queues' binds "
        "the queues of those that do not run"
    )


def say_gone(name: str) -> None:
    """Say in the log that an exchange was deleted, and what comes next."""
    logger.error(
        "the exchange %s is gone, and the bindings of all queues with it; it is made again in %g s",
        name,
        ABSENCE_SECONDS,
    )


def _key(settings: BrokerSettings) -> object:
    return settings.url, settings.exchange


class Bindings:
    """Keeps the queues of a subscriber bound."""

    def __init__(self, topology: Topology, settings: BrokerSettings) -> None:
        self._topology = topology
        self._settings = settings
        self._missing_since: float | None = None
        now = time.monotonic()
        self._look_at, self._bind_at = now + LOOK_SECONDS, now + _spread(BIND_SECONDS)

    def keep(self, subscriptions: Iterable[Subscription]) -> None:
        """Look after them if it is time to; to be called often."""
        now = time.monotonic()
        if now < self._look_at or not self._settings.exchange:
            return
        self._look_at = now + LOOK_SECONDS
        if not self._exchange_is_there(now):
            self._look_at = now + MISSING_LOOK_SECONDS
        elif now >= self._bind_at or self._missing_since is not None:
            self._bind_at = now + _spread(BIND_SECONDS)
            self._bind(subscriptions)

    def _exchange_is_there(self, now: float) -> bool:
        if self._topology.exchange_exists(self._settings.exchange):
            return True
        if self._missing_since is None:
            self._missing_since = now
            say_gone(self._settings.exchange)
        if now - self._missing_since < ABSENCE_SECONDS:
            return False
        try:
            self._topology.declare_exchange()
        except pika.exceptions.ChannelClosedByBroker as error:
            # This user may not make it: somebody else who misses it may.
            logger.debug("the exchange could not be made: %s", error.reply_text)
            return False
        return True

    def _bind(self, subscriptions: Iterable[Subscription]) -> None:
        was_missing, self._missing_since = self._missing_since, None
        try:
            for each in subscriptions:
                self._topology.bind(each.name, each.binding_keys)
        except pika.exceptions.ChannelClosedByBroker as error:
            # Nothing that ends a connection over which events come: it is tried again later.
            logger.warning("a queue could not be bound again: %s", error.reply_text)
            return
        if was_missing is not None:
            logger.warning("queues are bound to the exchange %s again", self._settings.exchange)


def _spread(seconds: float) -> float:
    """Keep processes that started together from asking together."""
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
