"""The example shop, as a program that acceptance tests run and look at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

#: Not part of what a newcomer has after cloning.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".tox", ".venv*", "state", "__pycache__", "*.egg-info", "build", "dist", ".*_cache", "*.sqlite3"
)
#: Seconds after which a run is taken for hanging.
PATIENCE = 300
#: The sums of the account: published, handled, waiting, parked, dead-lettered.
SUMS = re.compile(r"(\d+) = (\d+) \+ (\d+) \+ (\d+) \+ (\d+): it balances, and no effect happened twice\.")


def fresh_copy(destination: Path) -> Path:
    """Copy the checkout, without anything that was made in it, and return the copy."""
    copy = destination / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=LEFT_OUT)
    return copy


def newcomers_environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody with an empty home who never heard of the project."""
    home.mkdir(exist_ok=True)
    dropped = (
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "DATABASE_URL",
        "DOMAIN_EVENT_BROKER",
        "DJANGO_SETTINGS_MODULE",
    )
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HOME": str(home)}


def developers_environment(**settings: str) -> dict[str, str]:
    """Return an environment in which the Python of the tests finds the library."""
    return {**newcomers_environment(Path.home()), "PYTHONPATH": str(CHECKOUT), **settings}


def run(
    command: list[str | Path], environment: Mapping[str, str], cwd: Path = CHECKOUT
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, what it printed in ``stdout``."""
    return subprocess.run(
        command,
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_the_show(state: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``example_project/run`` with the Python of the tests, which saves the installation."""
    command: list[str | Path] = [
        sys.executable,
        "example_project/run",
        "--python",
        sys.executable,
        "--state",
        state,
        *options,
    ]
    return run(command, developers_environment(**settings))


def account_of(output: str) -> tuple[int, ...]:
    """Return the sums of the account that a run ended with: published, handled, waiting, parked, dead."""
    found = SUMS.findall(output)
    assert found, f"there is no account that balances in:\n{output}"
    return tuple(map(int, found[-1]))
