"""Subscribes as documented for domain-event-broker 3.0.2; runs on that release and on ours.

Arguments: URL, name of the handler, binding key, how often the handler asks for a retry, and
how many it is allowed. Prints each call of the handler as JSON, until it is killed.
"""

import json
import sys
from typing import Any

from domain_event_broker import Retry, Subscriber

FIELDS = ("routing_key", "data", "domain_object_id", "uuid_string", "timestamp", "retries")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(url: str, name: str, binding_key: str, failures: str = "0", max_retries: str = "0") -> None:
    """Consume until killed."""

    def handle(event: Any) -> None:
        say(json.dumps({field: getattr(event, field) for field in FIELDS}))
        if event.retries < int(failures):
            raise Retry(0.2)

    subscriber = Subscriber(url)
    subscriber.register(handle, name, [binding_key], max_retries=int(max_retries))
    say("ready")
    subscriber.start_consuming()


main(*sys.argv[1:])
