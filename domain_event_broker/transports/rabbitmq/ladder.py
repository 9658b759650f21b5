"""Which delay queues a handler has, and which of them an event waits in: pure decisions.

Declaring a queue for each delay that comes along would be simple, but a quorum queue younger
than a second can vanish with confirmed messages when the broker is killed. So every handler has
the same ladder of delay queues from the start. A delay between two steps is served by several
hops: the event waits in the largest step that fits, comes back early, and waits for the rest.

The ladder does not depend on the delays a handler declares. So a changed backoff leaves no queue
behind, old and new releases serve each other's retries, and any process can count what waits.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Milliseconds of each step, 0.1 s to 6 h. The usual delays take one hop, any other a few; each
#: queue costs the broker about 100 KB and a few milliseconds at start.
LADDER_MS = (
    100,
    300,
    1_000,
    2_000,
    5_000,
    10_000,
    30_000,
    60_000,
    300_000,
    900_000,
    3_600_000,
    21_600_000,
)

#: Share of a wait by which a step may be longer than it, so that a hop which came back a few
#: milliseconds early is not cut into ever smaller ones.
TOLERANCE = 0.03


def step_for(wait_ms: float, steps: Iterable[int] = LADDER_MS) -> int | None:
    """Return the step to wait in next; ``None``: the rest is too short for any of them.

    :param wait_ms: milliseconds that the event still has to wait.
    :param steps: steps that can be used.
    """
    return max((step for step in steps if step <= wait_ms * (1 + TOLERANCE)), default=None)
