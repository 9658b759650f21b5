"""Free TCP ports that stay free, although other test processes look for some at the same moment."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

FIRST = 20000
#: Above lie the ports that systems hand out to outgoing connections. A server that is down for a moment can
#: lose such a port to one of its own clients, and then doesn't come up again.
LAST = 32767
LOCAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortLease:
    """A port that is ours until ``release()`` or the end of this process, also while nobody listens on it."""

    def __init__(self, port: int, lock: int) -> None:
        self.port = port
        self._lock: int | None = lock

    def release(self) -> None:
        """Let others have the port."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def lease_port() -> PortLease:
    """Return a free port on 127.0.0.1, locked against every other process that asks here."""
    for port in random.sample(_candidates(), k=len(_candidates())):
        if (lock := _lock(port)) is None:
            continue
        if _is_free(port):
            return PortLease(port, lock)
        os.close(lock)
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def _candidates() -> list[int]:
    below, above = _outgoing_range()
    outside = [port for port in range(FIRST, LAST + 1) if not below <= port <= above]
    return outside or list(range(FIRST, LAST + 1))


def _outgoing_range() -> tuple[int, int]:
    if not LOCAL_RANGE.exists():
        return LAST + 1, 65535
    first, last = LOCAL_RANGE.read_text().split()
    return int(first), int(last)


def _lock(port: int) -> int | None:
    """Return the descriptor whose lock keeps the port ours, or None when it is another's.

    The system drops the lock with the process, however that ends.
    """
    folder = Path(tempfile.gettempdir(), f"private-server-ports-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections linger in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
