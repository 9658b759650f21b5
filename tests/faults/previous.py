"""The release before this one: its code, to run beside ours as it does while a deploy is under way."""

from __future__ import annotations

import tarfile
from pathlib import Path

#: The last state of the code before the tables and the messages got what this release added.
#: ``releases/README.rst`` says what is in it.
ARCHIVE = Path(__file__).parent / "releases" / "3530c5b.tar.xz"


def unpack_previous_release(directory: Path) -> None:
    """Put the code of that release into ``directory``, for :meth:`Stage.run`."""
    # Asked for where Python knows of it: newer ones warn without, older ones have it not.
    filtered = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, **filtered)  # noqa: S202 - made by us, and part of this repository
