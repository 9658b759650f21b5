"""The socket for whoever wants to know how the work goes: metrics, health, a program of your own.

A relay and a subscriber tell their observer, once for each batch; unless one is given to them,
:data:`NOBODY` is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain_event_broker.ports import Delivery, Settlement


class Observer:
    """Is told by the thread that does the work, which waits meanwhile; this one does not listen.

    What a subclass overrides returns at once and never raises.
    """

    def alive(self, seconds: float = 0.0) -> None:
        """The worker goes on, and may be silent for ``seconds`` because it waits for work."""

    def connected(self) -> None:
        """A connection to the broker was made; deliveries of an earlier one are not ours any more."""

    def away(self, error: BaseException) -> None:
        """Broker or database cannot be reached; told again with each try that fails."""

    def back(self) -> None:
        """What was away has answered again."""

    # --- a relay

    def leased(self, buckets: int) -> None:
        """So many of the buckets are this relay's now."""

    def relayed(self, seconds: float, sent: int, unroutable: int, refused: int, parked: int) -> None:
        """A batch was read, sent and written down, in ``seconds``; the others count from the start."""

    # --- a subscriber

    def received(self, deliveries: Sequence[Delivery]) -> None:
        """Deliveries came in."""

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """The broker was told how deliveries ended."""


#: Told of everything where nobody else is.
NOBODY = Observer()
