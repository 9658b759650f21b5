"""The app of the project, and the crash point of a process that is to die at a certain line."""

from __future__ import annotations

import os

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    """Deeds are published, effects are what handlers do."""

    name = "tests.faults.project"
    label = "faults"

    def ready(self) -> None:
        """Arm the crash point that the environment names, and spare tests the longest waits."""
        from domain_event_broker.django import processes
        from domain_event_broker.transports.rabbitmq import exchange
        from tests.faults.project import crashes

        processes.RESTART_SECONDS = 0.05
        exchange.BIND_SECONDS = float(os.environ.get("FAULTS_BIND_SECONDS", exchange.BIND_SECONDS))

        if point := os.environ.get("FAULTS_CRASH"):
            crashes.arm(point)
