"""Brokers, users of the admin and registries of handlers, as other tests have them."""

from __future__ import annotations

from tests.integration.admin.conftest import admin, client_with, registry, superuser
from tests.integration.subscriber.conftest import bench

__all__ = ["admin", "bench", "client_with", "registry", "superuser"]
