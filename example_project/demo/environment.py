"""A virtualenv with Django and the library in it, made once and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from demo.options import CHECKOUT, PROJECT, Options, indented, shown
from demo.screen import Screen
from demo.trouble import Trouble

VIRTUALENV = PROJECT / ".venv"
#: Holds what is installed, so that it is not installed again each time.
STAMP = VIRTUALENV / "installed-by-run"
#: Lines of the installer's output that are shown when it fails.
LOG_LINES = 12


def python_of_the_shop(options: Options, screen: Screen) -> str:
    """Return a Python that has Django and the library, after having made one if need be.

    :raises Trouble: it cannot be made; the message says what to install.
    """
    if options.python:
        return _given(options.python)
    python = VIRTUALENV / "bin" / "python"
    wanted = _wanted(options)
    if not _works(python):
        _step(screen, "virtualenv", shown(VIRTUALENV), lambda: _make_virtualenv(options))
    if not STAMP.exists() or STAMP.read_text() != wanted:
        _step(
            screen,
            "install",
            _words(options),
            lambda: _install(python, options),
        )
        STAMP.write_text(wanted)
    return str(python)


def _given(python: str) -> str:
    path = shutil.which(python)
    if path is None:
        raise Trouble(f"--python {python}: there is no such program")
    found = subprocess.run(
        [path, "-c", "import django, domain_event_broker"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1:]
        raise Trouble(f"--python {python} has not got what the shop needs: {' '.join(reason)}")
    return path


def _make_virtualenv(options: Options) -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Trouble(
            "this Python cannot make virtualenvs: its modules venv and ensurepip are packaged apart.\n"
            f"On Debian and Ubuntu: sudo apt-get install python{version}-venv"
        )
    shutil.rmtree(VIRTUALENV, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(VIRTUALENV)], options.state / "virtualenv.log")


def _install(python: Path, options: Options) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    _run([*command, "--editable", f"{CHECKOUT}{_extras(options)}"], options.state / "install.log")


def _extras(options: Options) -> str:
    return "[django,postgres]" if options.database_url else "[django]"


def _words(options: Options) -> str:
    servers = ", Django and the PostgreSQL driver" if options.database_url else " and Django"
    return f"the library from this checkout{servers}"


def _wanted(options: Options) -> str:
    """Return what the stamp must say. The code is installed as a link, and so is no part of it."""
    digest = hashlib.sha256()
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((CHECKOUT / name).read_bytes())
    return f"{CHECKOUT}{_extras(options)} {sys.version_info[:2]} {digest.hexdigest()}"


def _works(python: Path) -> bool:
    """Tell whether the virtualenv is whole, and of the Python that runs this."""
    if not python.exists():
        return False
    code = "import pip, sys; print(*sys.version_info[:2])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.split() == [str(part) for part in sys.version_info[:2]]


def _step(screen: Screen, name: str, what: str, work: Callable[[], None]) -> None:
    screen.draw([[(f"  {name:<12}", "name"), (f"{what} …", "dim")]])
    started = time.monotonic()
    work()
    screen.line([(f"  {name:<12}", "name"), (what, ""), (f"  ({time.monotonic() - started:.0f} s)", "dim")])


def _run(command: Sequence[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise Trouble(
            f"'{' '.join(command)}' failed with exit code {done.returncode}; "
            f"the end of {shown(log)}:\n{indented(tail)}\n"
            "It needs the package index once: is this machine online?"
        )
