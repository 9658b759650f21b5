"""domain-event-broker 3.0.2: sent after the commit; its subscriber is a script of the user's."""

import os

from django.db import Error, close_old_connections, transaction
from ledger.handling import handle

from domain_event_broker import Retry, Subscriber
from domain_event_broker.django import publish_on_commit


def publish(event_id: str) -> None:
    """Publish when the transaction at hand has committed."""
    publish_on_commit("ledger.written", {}, uuid_string=event_id)


def consume() -> None:
    """Consume until killed, as its README shows, with dead letters and retries asked for."""
    subscriber = Subscriber(os.environ["FAULTS_BROKER"])
    subscriber.register(_steady, "steady", ["ledger.#"], dead_letter=True, max_retries=1000)
    subscriber.start_consuming()


def _steady(event) -> None:  # type: ignore[no-untyped-def]
    close_old_connections()
    try:
        with transaction.atomic():
            handle(event.uuid_string)
    except Error as error:
        raise Retry(1.0) from error
    finally:
        close_old_connections()
