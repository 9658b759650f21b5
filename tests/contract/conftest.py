"""Assertions of the contract suite explain themselves, though it is no test module."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "domain_event_broker.testing.letters",
    "domain_event_broker.testing.publishing",
    "domain_event_broker.testing.receiving",
    "domain_event_broker.testing.settling",
    "domain_event_broker.testing.workbench",
)
