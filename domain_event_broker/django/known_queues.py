"""Which queues handlers of this project have, or had, and what they were bound with.

AMQP can list neither queues nor bindings. So the names and keys that were declared are remembered in
the table in which the ``database:`` transport keeps its queues: what a handler was once bound with
stays bound, also after it asks for less or has left the code, until somebody decides otherwise.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from django.db import Error, connections, transaction

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.conf import outbox_alias
from domain_event_broker.django.transport_models import TransportQueue
from domain_event_broker.ports import Subscription

logger = logging.getLogger("domain_event_broker.queues")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is bound and no handler asks for.

    :param handlers: for each handler that has left the code, the keys that its queue is bound with.
    :param keys: for each handler that is there, the keys that it no longer asks for.
    """

    handlers: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, tuple[str, ...]]


class KnownQueues:
    """The memory of one project for one exchange.

    Brokers that outlive no process (``memory:``) are not remembered.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._scheme = config.scheme(settings.url[0])
        self._exchange = settings.exchange
        self._alias = _alias(settings)

    def remember(self, subscriptions: Iterable[Subscription]) -> None:
        """Note what is about to be bound. Never raises: a handler must start without this.

        Before it is bound: killed in between, a key is known that is not bound, never the reverse.
        """
        if self._scheme not in ("amqp", "amqps"):
            return  # ``database:`` keeps them itself
        try:
            self._on_own_connection(lambda: self._remember(list(subscriptions)))
        except Error as error:
            logger.warning(
                "the queues of the handlers could not be noted in database %r, so broker_status will not "
                "know of them once they have left the code: %s",
                self._alias,
                " ".join(str(error).split()),
            )

    def leftovers(self, subscriptions: Iterable[Subscription]) -> Leftovers:
        """Return what is bound beyond ``subscriptions``, which are all that there are.

        :raises django.db.Error: the database cannot be asked.
        """
        wanted = {each.name: each.binding_keys for each in subscriptions}
        known = {} if self._scheme == "memory" else self._all()
        return Leftovers(
            handlers={name: keys for name, keys in known.items() if name not in wanted},
            keys={
                name: surplus
                for name, keys in known.items()
                if (surplus := tuple(key for key in keys if key not in wanted.get(name, keys)))
            },
        )

    def forget(self, name: str, keys: Iterable[str]) -> None:
        """Note that a queue is no longer bound with ``keys``; for ``database:`` this unbinds it.

        :raises django.db.Error: the database cannot be written.
        """
        gone = set(keys)
        self._change(name, lambda bound: [key for key in bound if key not in gone])

    def _remember(self, subscriptions: list[Subscription]) -> None:
        known = self._all()
        for wanted in subscriptions:
            keys = wanted.binding_keys
            if not set(keys) <= set(known.get(wanted.name, ())) or wanted.name not in known:
                self._change(wanted.name, lambda bound, keys=keys: dict.fromkeys([*bound, *keys]))  # type: ignore[misc]

    def _all(self) -> dict[str, tuple[str, ...]]:
        rows = TransportQueue.objects.using(self._alias).order_by("name").values_list("name", "bindings")
        return {name: tuple(json.loads(text).get(self._exchange, ())) for name, text in rows}

    def _change(self, name: str, change: Callable[[list[str]], Iterable[str]]) -> None:
        queues = TransportQueue.objects.using(self._alias)
        with transaction.atomic(using=self._alias):
            queues.get_or_create(name=name)
            queue = queues.select_for_update().get(name=name)
            bindings = json.loads(queue.bindings)
            bindings[self._exchange] = list(change(bindings.get(self._exchange, [])))
            queue.bindings = json.dumps(bindings)
            queue.save(update_fields=["bindings"])

    def _on_own_connection(self, call: Callable[[], Result]) -> Result:
        """Leave no connection behind that was not there: a subscriber would keep it for ever."""
        connection = connections[self._alias]
        was_open = connection.connection is not None
        try:
            return call()
        finally:
            if not was_open and not connection.in_atomic_block:
                connection.close()


def _alias(settings: BrokerSettings) -> str:
    """Return the database of the memory: that of the broker, if it is one, else that of the outbox."""
    if config.scheme(settings.url[0]) == "database":
        return settings.url[0].partition(":")[2].strip("/") or "default"
    return settings.outbox.database or outbox_alias()
