"""Packages from Debian and Ubuntu, without their services being started. Standard library only."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: Asked by the packages' scripts before they start a service; 101 means "not now".
POLICY = Path("/usr/sbin/policy-rc.d")
CREATE_CLUSTER = Path("/etc/postgresql-common/createcluster.conf")
APT_OPTIONS = (
    "--yes",
    "--no-install-recommends",
    "--option=Dpkg::Options::=--force-confold",
    "--option=DPkg::Lock::Timeout=300",
    "--option=Dpkg::Use-Pty=0",
)


class CannotInstall(RuntimeError):
    """The packages can't be installed from here; the message says which they are and why."""


def install(packages: Sequence[str], services: Sequence[str] = ()) -> None:
    """Install ``packages``, through sudo where this isn't root.

    Nothing is started, no database cluster is made on this machine, and ``services`` (systemd units that the
    packages bring) won't start at the next boot either.
    """
    if not packages:
        return
    _check_possible(packages)
    if os.geteuid() == 0:
        _install_as_root(packages, services)
        return
    # Without a terminal nobody could type a password: fail at once rather than wait for ever.
    no_questions = [] if sys.stdin is not None and sys.stdin.isatty() else ["-n"]
    again = [sys.executable, "-B", "-m", "tests.harness.apt", *packages, "--disable", *services]
    if subprocess.run(["sudo", *no_questions, *again], check=False).returncode != 0:
        raise CannotInstall(f"sudo failed. Please run as root: apt-get install {' '.join(packages)}")


def _check_possible(packages: Sequence[str]) -> None:
    wanted = " ".join(packages)
    if not shutil.which("apt-get"):
        raise CannotInstall(f"this machine has no apt-get. With its own package manager, install: {wanted}")
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise CannotInstall(f"neither root nor sudo. Please run as root: apt-get install {wanted}")


def _install_as_root(packages: Sequence[str], services: Sequence[str]) -> None:
    with _services_held_back():
        if "postgresql" in packages:
            # Brings the file that says whether the server's package makes a cluster.
            _apt_install(["postgresql-common"])
        with _no_main_cluster():
            _apt_install(packages)
    if services and shutil.which("systemctl"):
        subprocess.run(["systemctl", "disable", *services], capture_output=True, check=False)


def _apt_install(packages: Sequence[str]) -> None:
    """Install; if that fails, the package lists may be missing or too old: refresh them and try again."""
    if _apt("install", *packages) == 0:
        return
    _apt("update")
    if _apt("install", *packages) != 0:
        raise CannotInstall(f"apt-get could not install {' '.join(packages)}: see its messages above")


def _apt(*arguments: str) -> int:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", *APT_OPTIONS, *arguments]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


@contextmanager
def _services_held_back() -> Iterator[None]:
    with _temporarily(POLICY, "#!/bin/sh\nexit 101\n", mode=0o755):
        yield


@contextmanager
def _no_main_cluster() -> Iterator[None]:
    with ExitStack() as stack:
        if CREATE_CLUSTER.exists():
            text = CREATE_CLUSTER.read_text() + "\ncreate_main_cluster = false\n"
            stack.enter_context(_temporarily(CREATE_CLUSTER, text, mode=0o644))
        yield


@contextmanager
def _temporarily(path: Path, text: str, mode: int) -> Iterator[None]:
    """Give ``path`` another content for the time of the block, then bring the old one back."""
    aside = path.with_name(f"{path.name}.set-aside")
    if path.exists() and not aside.exists():  # a copy that is there already was left by a run that was killed
        path.rename(aside)
    path.write_text(text)
    path.chmod(mode)
    try:
        yield
    finally:
        path.unlink()
        if aside.exists():
            aside.rename(path)


def main(arguments: Sequence[str]) -> int:
    """Install what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.harness.apt", description=__doc__)
    parser.add_argument("packages", nargs="+", help="packages to install")
    parser.add_argument("--disable", nargs="*", default=[], metavar="SERVICE", help="services to keep off")
    options = parser.parse_args(arguments)
    try:
        install(options.packages, options.disable)
    except CannotInstall as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
