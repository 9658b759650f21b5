"""Events that no handler can handle: known to the oracle, too."""

import zlib


def is_hopeless(event_id: str) -> bool:
    """Tell whether the handler fails for an event whenever it comes: one of fifty."""
    return zlib.crc32(event_id.encode()) % 50 == 0
