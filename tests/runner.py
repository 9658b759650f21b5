"""Run all tests on a machine that has Python 3 and nothing else; ``tests/run`` is the way in.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests import install_servers
from tests.harness import apt

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-tests"
TOX = "tox>=4.20,<5"
#: tox environments that start no server, so that none has to be installed for them.
WITHOUT_SERVERS = {"lint", "typing", "package"}

DESCRIPTION = """\
Install what the tests need and run them: virtualenv, packages, RabbitMQ, PostgreSQL, MariaDB, Redis and more.

On Debian and Ubuntu the servers come from apt (through sudo, unless you are root); the machine's services are
neither started nor enabled: tests start private servers on free ports, in temporary directories.
"""
EXAMPLES = """\
Everything else goes to tox:

  tests/run                             all default environments
  tests/run -e lint                     one of them; `tests/run list` shows which there are
  tests/run -e full -- -k outbox -x     arguments after -- are pytest's

The exit code is 0 when everything passed.
"""


def main(arguments: Sequence[str]) -> int:
    """Prepare the machine, then run tox; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="tests/run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--no-servers", action="store_true", help="install no server; what needs one will fail"
    )
    before, after = split_off_pytest(arguments)
    ours, for_tox = parser.parse_known_args(before)
    started = time.monotonic()
    os.chdir(ROOT)
    code = prepare(with_servers=not ours.no_servers and needs_servers(for_tox))
    code = code or run_tox([*for_tox, *after])
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"{'passed' if code == 0 else f'FAILED with exit code {code}'} after {minutes} min {seconds} s")
    return code


def split_off_pytest(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the arguments before ``--`` from those that start with it, which are none of our business."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at:])


def needs_servers(tox_arguments: Sequence[str]) -> bool:
    """Tell whether tox will run tests; when in doubt it will."""
    if tox_arguments[:1] in (["list"], ["l"], ["config"], ["c"]):
        return False
    if "-e" in tox_arguments[:-1]:
        names = tox_arguments[tox_arguments.index("-e") + 1].split(",")
        return not set(names) <= WITHOUT_SERVERS
    return True


def prepare(*, with_servers: bool) -> int:
    """Make ready what is missing; return an exit code."""
    if with_servers:
        say("servers for the tests:")
        if code := install_servers.main([]):
            return code
    try:
        prepare_tox()
    except apt.CannotInstall as error:
        say(str(error))
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def prepare_tox() -> None:
    """Make the virtualenv that holds tox, unless it is there."""
    if (ENVIRONMENT / "bin" / "tox").exists():
        return
    if not importlib.util.find_spec("ensurepip"):  # Debian keeps it in a package of its own
        say("installing what Python needs to make virtualenvs ...")
        apt.install([f"python3.{sys.version_info[1]}-venv"])
    say(f"making {ENVIRONMENT.name}/ with tox ...")
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    subprocess.run([ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", TOX], check=True)


def run_tox(arguments: Sequence[str]) -> int:
    """Run tox with the arguments, or its default environments when there are none."""
    say(" ".join(["tox", *arguments]))
    environment = {"TOX_DISCOVER": "\n".join(pyenv_interpreters()), **os.environ}
    command: list[str | Path] = [ENVIRONMENT / "bin" / "python", "-m", "tox", *arguments]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def pyenv_interpreters() -> list[str]:
    """Return the Pythons that pyenv has installed: its shims on PATH answer for the active ones only."""
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
    return sorted(map(str, Path(root, "versions").glob("3.1[0-9]*/bin/python")))


def say(text: str) -> None:
    """Print one of our own lines, apart from those of the tools."""
    print(f"[tests/run] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
