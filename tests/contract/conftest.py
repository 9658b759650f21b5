"""Assertions of the contract suite explain themselves, though it is no test module."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("domain_event_broker.testing")
