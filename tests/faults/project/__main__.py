"""The project's ``manage.py``, and its publishers: ``python -m tests.faults.project COMMAND ...``."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from pathlib import Path

import django
from django.core.management import execute_from_command_line

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run a command of Django, or ``publish FILE SEED PAUSE``, or ``publish-some COUNT KEY [ID ...]``."""
    # Tests that are killed leave nobody behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1)  # tells where each thread is, for a test that failed
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.faults.project.settings"
    if arguments[0] not in ("publish", "publish-some"):
        execute_from_command_line(["manage.py", *arguments])
        return
    django.setup()
    from tests.faults.project import publishing

    if arguments[0] == "publish":
        publishing.publish_for_ever(Path(arguments[1]), int(arguments[2]), float(arguments[3]))
    else:
        publishing.publish_some(int(arguments[1]), arguments[2], tuple(arguments[3:]))


if __name__ == "__main__":
    main(sys.argv[1:])
