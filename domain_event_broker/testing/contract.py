"""What every transport promises, as a suite of tests that any transport can inherit.

A transport's own test file is a few lines long::

    from domain_event_broker.config import parse
    from domain_event_broker.testing import TransportContract

    class TestCarrierPigeon(TransportContract):
        def open(self):
            return CarrierPigeonTransport(parse("pigeon://loft"))

Run it with pytest; ``pytest.register_assert_rewrite("domain_event_broker.testing")`` in a
``conftest.py``, before the import, makes failures explain themselves. The hooks that can be
filled in are those of :class:`~domain_event_broker.testing.TransportWorkbench`; only ``open``
must be. A promise that a transport does not make (see
:class:`~domain_event_broker.ports.Capabilities`) is skipped, and says why. The promises
themselves are written in :mod:`domain_event_broker.ports`.
"""

from __future__ import annotations

from domain_event_broker.testing.addressing import AddressingPromises
from domain_event_broker.testing.envelopes import EnvelopePromises
from domain_event_broker.testing.letters import DeadLetterPromises
from domain_event_broker.testing.publishing import PublishingPromises
from domain_event_broker.testing.receiving import ReceivingPromises
from domain_event_broker.testing.settling import SettlingPromises


class TransportContract(
    PublishingPromises,
    ReceivingPromises,
    SettlingPromises,
    DeadLetterPromises,
    AddressingPromises,
    EnvelopePromises,
):
    """The promises of a transport, one test for each.

    Inherit it, fill in :meth:`~TransportWorkbench.open`, and run pytest.
    """
