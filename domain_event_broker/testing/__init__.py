"""What tests of programs, and of transports, can build on."""

from domain_event_broker.testing.contract import TransportContract
from domain_event_broker.testing.workbench import TransportWorkbench

__all__ = ["TransportContract", "TransportWorkbench"]
