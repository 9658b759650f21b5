"""A program that receives from a ``database:`` queue and tells what it got; tests start and kill it."""

# ruff: noqa: T201 - a program that prints

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import django
from django.conf import settings


def main(task: dict[str, Any]) -> None:
    """Receive until terminated; without ``acknowledge``, hold ``count`` deliveries until then."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    use_mysql_driver()
    settings.configure(
        DATABASES={"default": task["database"], task["alias"]: task["database"]},
        INSTALLED_APPS=["domain_event_broker"],
        USE_TZ=True,
    )
    django.setup()
    transport = connect(task["alias"])
    transport.lock_seconds = task.get("lock_seconds", transport.lock_seconds)
    receive(transport, task["queue"], task.get("acknowledge", False), task.get("count", 100))


def use_mysql_driver() -> None:
    """Let PyMySQL stand in for mysqlclient, if it is there."""
    try:
        import pymysql
    except ImportError:
        return
    pymysql.install_as_MySQLdb()


def connect(alias: str) -> Any:
    """Open the transport, which cannot be imported before Django is set up."""
    from domain_event_broker.config import parse
    from domain_event_broker.transports import open_transport

    return open_transport(parse(f"database:{alias}"))


def receive(transport: Any, queue: str, acknowledge: bool, limit: int) -> None:
    """Write ``ready``, then ``got <event id>`` for each delivery."""
    from domain_event_broker.ports import Action, Settlement, Subscription

    transport.subscribe(Subscription(queue, (f"{queue}.*",)))
    print("ready", flush=True)
    while True:
        for delivery in transport.receive(limit, 1.0):
            print(f"got {delivery.event_id}", flush=True)
            if acknowledge:
                transport.settle([Settlement(delivery, Action.ACK)])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
