"""The app of the project, and the crash point of a process that is to die at a certain line."""

from __future__ import annotations

import os

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    """Deeds are published, effects are what handlers do."""

    name = "tests.faults.project"
    label = "faults"

    def ready(self) -> None:
        """Arm the crash point that the environment names."""
        from tests.faults.project import crashes

        if point := os.environ.get("FAULTS_CRASH"):
            crashes.arm(point)
