"""What tests of programs, and of transports, can build on."""

from domain_event_broker.testing.capturing import (
    CapturedEvents,
    CaptureEventsMixin,
    capture_events,
    run_handlers,
)
from domain_event_broker.testing.contract import TransportContract
from domain_event_broker.testing.factories import make_delivery, make_event
from domain_event_broker.testing.running import RunReport
from domain_event_broker.testing.workbench import TransportWorkbench

__all__ = [
    "CaptureEventsMixin",
    "CapturedEvents",
    "RunReport",
    "TransportContract",
    "TransportWorkbench",
    "capture_events",
    "make_delivery",
    "make_event",
    "run_handlers",
]
