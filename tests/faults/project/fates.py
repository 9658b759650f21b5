"""What a handler will do with an event: told by the event itself, so that the oracle knows it too."""

from __future__ import annotations

import zlib

#: Per mille of events, in this order, that the handler ``moody`` treats so; the rest it just handles.
#: ``deadly`` ones kill the process the first time they come.
SHARES = {
    "retry": 100,
    "error": 20,
    "exit": 10,
    "leak": 10,
    "close": 10,
    "exhaust": 5,
    "deadly": 2,
    "interrupt": 5,
}
#: Fates that end in the dead letters.
ENDS_DEAD = {"error", "exit", "leak", "close", "exhaust", "interrupt"}


def fate_of(event_id: str) -> str:
    """Return the name of a fate; ``"fine"`` for most."""
    left = zlib.crc32(event_id.encode()) % 1000
    for fate, share in SHARES.items():
        if left < share:
            return fate
        left -= share
    return "fine"


def event_id_for(fate: str, number: int = 0) -> str:
    """Return an identity that has a fate: for tests that want just this one."""
    candidates = (f"{fate}-{number}-{salt}" for salt in range(1_000_000))
    return next(each for each in candidates if fate_of(each) == fate)


def failures_before_success(event_id: str) -> int:
    """Return how often an event of fate ``retry`` fails: once to three times."""
    return 1 + zlib.crc32(event_id.encode()) // 1000 % 3


def delay_of(event_id: str) -> float:
    """Return the seconds between its tries: some below the shortest delay queue, some of several hops."""
    return (0.05, 0.4, 1.0, 2.3)[zlib.crc32(event_id.encode()) // 3000 % 4]
