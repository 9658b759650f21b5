"""The pytest plugin: the fixture ``captured_events``.

pytest loads it in every project of an environment in which the package is installed, so it does
nothing and imports next to nothing until a test asks for the fixture. It is no part of
``domain_event_broker.testing``: pytest can make the assertions of the contract suite explain
themselves only as long as nobody has imported it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from domain_event_broker.testing import CapturedEvents


@pytest.fixture
def captured_events() -> Iterator[CapturedEvents]:
    """The events that the test publishes: ``captured_events.assert_published("order.placed")``."""
    from domain_event_broker.testing import capture_events

    with capture_events() as captured:
        yield captured
