"""The client in C that figures are compared with: compiled on the spot, where a compiler is."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness import apt

#: What compiling it takes, on Debian and Ubuntu.
PACKAGES = ("gcc", "libc6-dev", "librabbitmq-dev")
#: Messages without a confirm, deliveries fetched ahead, and deliveries for each acknowledgement.
WINDOW, PREFETCH, ACK_EVERY = 1000, 200, 100
#: Longest time of one run, in seconds.
TIMEOUT = 300.0

_SOURCE = Path(__file__).with_name("client.c")


def install() -> None:
    """Install what compiling it takes.

    :raises tests.harness.apt.CannotInstall: it cannot be installed from here.
    """
    apt.install(PACKAGES)


class CClient:
    """A compiled client.

    :param url: URL of the broker.
    :raises RuntimeError: it cannot be compiled; the message says what to do.
    """

    def __init__(self, url: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        self._program = Path(self._directory.name) / "client"
        parts = urlsplit(url)
        self._broker = [str(parts.hostname), str(parts.port)]
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise RuntimeError("there is no C compiler; install it with: benchmarks/run --install")
        command = [compiler, "-O2", "-o", str(self._program), str(_SOURCE), "-lrabbitmq"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise RuntimeError("librabbitmq is missing; install it with: benchmarks/run --install")

    def publish(self, exchange: str, routing_key: str, count: int, body_bytes: int) -> float:
        """Publish messages, each confirmed; return how many a second."""
        return self._run("publish", exchange, routing_key, count, body_bytes, WINDOW)

    def consume(self, queue: str, count: int) -> float:
        """Receive and acknowledge messages that wait; return how many a second."""
        return self._run("consume", queue, count, PREFETCH, ACK_EVERY)

    def _run(self, what: str, *arguments: object) -> float:
        command = [str(self._program), what, *self._broker, *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        return float(done.stdout)


def compiled(url: str) -> CClient | None:
    """Return the client; say why there is none, and return ``None``, where it cannot be compiled."""
    try:
        return CClient(url)
    except RuntimeError as error:
        print(f"  (no figures of a client in C: {error})")
        return None
