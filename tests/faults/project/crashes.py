"""Lines at which a process dies, or stands still: armed in that process, and not in the package."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.outbox import DjangoOutbox
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.transports.rabbitmq.migrating import Migration
from domain_event_broker.transports.rabbitmq.moving import Mover
from domain_event_broker.transports.rabbitmq.paging import Pager
from domain_event_broker.transports.rabbitmq.publishing import Sender, _Batch
from domain_event_broker.transports.rabbitmq.topology import Topology
from domain_event_broker.transports.rabbitmq.transport import RabbitMQTransport


def arm(point: str) -> None:
    """Let this process die at ``point``, unless one has died there before."""
    owner, name, is_due = (POINTS | BEFORE)[point]
    original = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if point in BEFORE and is_due(args, None):
            _die_once(point)
        result = original(*args, **kwargs)
        if point in POINTS and is_due(args, result):
            _die_once(point)
        return result

    setattr(owner, name, dying)


def _die_once(point: str) -> None:
    try:
        Path(os.environ["FAULTS_DIRECTORY"], f"crash-{point}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.Signals[os.environ.get("FAULTS_CRASH_SIGNAL", "SIGKILL")])


def _is_letter(args: Any, result: Any) -> bool:
    return any(copy.routing_key.endswith("-dl") for copy in args[1])


def _is_retry(args: Any, result: Any) -> bool:
    return not _is_letter(args, result)


def _has_rows(args: Any, result: Any) -> bool:
    return bool(result)


def _always(args: Any, result: Any) -> bool:
    return True


def _takes_rows(args: Any, result: Any) -> bool:
    return bool(args[2])


def _commit_sent(args: Any, result: Any) -> bool:
    """Send COMMIT, without waiting for the answer."""
    libpq = args[0].connection.pgconn
    libpq.send_query(b"COMMIT")
    libpq.flush()
    return True


#: Name, and the call just before which the process dies.
BEFORE: dict[str, tuple[type, str, Callable[[Any, Any], bool]]] = {
    "storing": (DjangoOutbox, "store", _always),
    "committing": (BaseDatabaseWrapper, "_commit", _always),
    "commit sent": (BaseDatabaseWrapper, "_commit", _commit_sent),
}


#: Name, and the call after whose return the process dies.
POINTS: dict[str, tuple[type, str, Callable[[Any, Any], bool]]] = {
    "received": (RabbitMQTransport, "receive", _has_rows),
    "handled": (DjangoInbox, "run", _has_rows),
    "acknowledged": (RabbitMQTransport, "settle", _always),
    "retry stored": (Mover, "_store", _is_retry),
    "letter stored": (Mover, "_store", _is_letter),
    "fetched": (DjangoRelayOutbox, "fetch", _has_rows),
    "sending": (RabbitMQTransport, "_sender_to_exchange", _always),
    "written": (_Batch, "_write", _always),
    "confirmed": (RabbitMQTransport, "publish", _has_rows),
    "taken out": (DjangoRelayOutbox, "_take_out", _takes_rows),
    "settled": (DjangoRelayOutbox, "settle", _always),
    "leased": (DjangoRelayOutbox, "renew", _always),
    "letters fetched": (Pager, "next", _has_rows),
    "letters sent": (Sender, "send", _has_rows),
    "letters acknowledged": (Pager, "ack", _always),
    "helper bound": (Topology, "bind", _always),
    "queue unbound": (Topology, "unbind", _always),
    "events moved": (Migration, "_store", _always),
    "queue deleted": (Topology, "delete", _always),
    "stored": (DjangoOutbox, "store", _always),
    "committed": (BaseDatabaseWrapper, "_commit", _always),
}
