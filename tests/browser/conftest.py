"""A browser for each test, in front of a running project."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Chromium
from tests.harness.binaries import CHROMIUM, is_snap_only

#: Where screenshots are kept, to be looked at; TEST_ARTEFACTS names another folder.
ARTEFACTS = Path(os.environ.get("TEST_ARTEFACTS", Path(__file__).parent / "artefacts"))


@pytest.fixture
def browser() -> Iterator[Chromium]:
    """Return a fresh browser. Where the system has one to install, a missing one is a failure."""
    if CHROMIUM.find() is None and is_snap_only(CHROMIUM):
        pytest.skip("Chromium is a snap on Ubuntu: snap install chromium, or set TEST_CHROMIUM_BIN")
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def picture(browser: Chromium) -> Callable[[str], None]:
    """Return a function that takes a screenshot in light and in dark."""

    def take(name: str) -> None:
        for scheme in ("dark", "light"):
            browser.colours(scheme)
            browser.screenshot(ARTEFACTS / f"{name}-{scheme}.png")

    return take


@pytest.fixture
def strict_policy(settings: Any) -> None:
    """Send a Content-Security-Policy that allows nothing inline and nothing from elsewhere."""
    settings.MIDDLEWARE = ["tests.browser.policy.strict_policy", *settings.MIDDLEWARE]
