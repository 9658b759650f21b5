"""Publishes events as documented for domain-event-broker 3.0.2; runs on that release and on ours.

Each line of standard input is JSON: the keyword arguments of ``publish_domain_event``, or
``body`` and ``routing_key`` for ``Publisher.publish``. Prints the identities of the events.
"""

import json
import sys

from domain_event_broker import Publisher, publish_domain_event


def main(url: str) -> None:
    """Publish all lines."""
    for line in sys.stdin:
        arguments = json.loads(line)
        if "body" in arguments:
            Publisher(url).publish(arguments["body"].encode(), arguments["routing_key"])
        else:
            event = publish_domain_event(**arguments, connection_settings=url)
            sys.stdout.write(f"{event.uuid_string}\n")


main(*sys.argv[1:])
