"""The release before this one: its code, to run beside ours as it does while a deploy is under way."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.apparatus import CHECKOUT

#: The last commit before the tables and the messages got what this release added.
COMMIT = "3530c5b"


@contextmanager
def previous_release() -> Iterator[Path]:
    """Yield a directory with the code of that release, for :meth:`Stage.run`.

    :raises subprocess.CalledProcessError: this is no checkout of the repository with its history.
    """
    archive = ["git", "-C", str(CHECKOUT), "archive", COMMIT, "domain_event_broker", "tests"]
    packed = subprocess.run(archive, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="previous-") as directory:
        subprocess.run(["tar", "-x", "-C", directory], input=packed, check=True)
        yield Path(directory)
