"""What all private servers share: a child process, a directory, ports, and an end that leaves nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from tests.harness.ports import PortLease, lease_port
from tests.harness.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds a server gets to become usable; a busy machine with two cores needs a few of them.
START_TIMEOUT = 60.0
#: Seconds a server gets to end by itself.
STOP_TIMEOUT = 30.0
#: Reads until its standard input ends. A line says "all is well"; an end without one says that the tests'
#: process died, and then the server ($1) and its directory ($2) go as well.
GUARD = 'read -r line || { kill -KILL "$1"; rm -rf "$2"; }'
LOG_LINES_SHOWN = 30


class ServerError(RuntimeError):
    """A private server didn't do what it should; the message ends with the last lines of its log."""


class PrivateServer(ABC):
    """A server of our own: ``start``, ``stop``, ``kill``, ``start`` again with the same data, then ``close``.

    As a context manager it starts on entry and closes on exit. ``pid`` is the server itself, no wrapper: it
    is the process that tests kill, freeze and thaw.
    """

    kind: ClassVar[str]
    #: The signal that asks for an orderly end which doesn't wait for clients.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    #: Users to run as when tests run as root and the server refuses that; the first that exists is taken.
    demote_to: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"private-{self.kind}-"))
        self.log_path = self.directory / "log.txt"
        self._leases: list[PortLease] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self.user = self._choose_user()
        if self.user:
            shutil.chown(self.directory, self.user)
        self.port = self.lease_port()

    # What a kind of server says about itself.

    @abstractmethod
    def prepare(self) -> None:
        """Write the configuration and make the data directory; called once, before the first start."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the command whose process *is* the server (it may exec, it may not fork)."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether the server serves clients."""

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the server and its tools."""
        return os.environ

    # What tests do with it.

    @property
    def pid(self) -> int:
        """The id of the running server process."""
        return self._require_process().pid

    @property
    def is_running(self) -> bool:
        """Whether the server process is there (a frozen one is)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, or start again with the same data; return when clients are served."""
        if self.is_running:
            raise ServerError(f"{self.kind} runs already, with pid {self.pid}")
        if not self._prepared:
            self.prepare()
            self._prepared = True
        self._process = self._spawn(self.command(), self.log_path)
        self._guard = self._watch(self._process.pid)
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Return when clients are served; raise ``ServerError`` when the process ends instead."""
        wait_until(self._is_ready_or_dead, START_TIMEOUT, lambda: f"{self.kind} is ready{self._log_tail()}")

    def stop(self) -> None:
        """Ask the server to end in its orderly way, wait until it has. Does nothing when it isn't running."""
        if not self.is_running:
            return
        self.thaw()
        self._require_process().send_signal(self.stop_signal)
        try:
            self._require_process().wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                f"{self.kind} did not stop within {STOP_TIMEOUT:g} s{self._log_tail()}"
            ) from None
        self._dismiss_guard()

    def kill(self) -> None:
        """End the server as a crash would: SIGKILL for it and what it started, with no chance to tidy up."""
        process = self._require_process()
        children = descendants(process.pid)
        process.kill()
        process.wait()
        send_signal(signal.SIGKILL, children)
        wait_until(
            lambda: not any(map(is_alive, children)), STOP_TIMEOUT, f"the children of {self.kind} are gone"
        )
        self._dismiss_guard()

    def restart(self) -> None:
        """Stop in the orderly way and start again with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Halt the server (SIGSTOP) with its connections open: clients see a network that went silent."""
        send_signal(signal.SIGSTOP, [self.pid])
        send_signal(signal.SIGSTOP, descendants(self.pid))

    def thaw(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        send_signal(signal.SIGCONT, [*descendants(self.pid), self.pid])

    def close(self) -> None:
        """End the server if it runs, remove its directory, give its ports back."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            while self._leases:
                self._leases.pop().release()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # For the kinds of server.

    def lease_port(self) -> int:
        """Return one more free port; it stays ours until ``close``."""
        lease = lease_port()
        self._leases.append(lease)
        return lease.port

    def run_tool(self, *command: str | Path) -> str:
        """Run one of the server's tools and return what it printed; raise ``ServerError`` if it fails."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment(),
            user=self.user,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = " ".join(map(str, command))
            raise ServerError(f"{words} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _spawn(self, command: Sequence[str | Path], log_path: Path) -> subprocess.Popen[bytes]:
        """Start a child in a session of its own, so that Ctrl-C in the terminal reaches the tests alone."""
        with log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment(),
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _watch(self, pid: int) -> subprocess.Popen[bytes]:
        """Start the guard that ends the server should this process be killed before it could do so."""
        return subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"ended\n")
            self._guard = None

    def _choose_user(self) -> str | None:
        if os.geteuid() != 0 or not self.demote_to:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next(name for name in self.demote_to if name in known)

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{self.kind} was not started yet")
        return self._process

    def _is_ready_or_dead(self) -> bool:
        if not self.is_running:
            code = self._require_process().returncode
            self._dismiss_guard()
            raise ServerError(f"{self.kind} ended with code {code} while it started{self._log_tail()}")
        return self.is_ready()

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "".join(f"\n    {line}" for line in ["; the end of its log:", *lines[-LOG_LINES_SHOWN:]])


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that ``pid`` started, and of those that these started."""
    parents = {int(path.name): _status(int(path.name))[1] for path in Path("/proc").glob("[0-9]*")}
    found: list[int] = []
    generation = [pid]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found += generation
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is more than an entry that its parent hasn't collected yet."""
    return _status(pid)[0] not in ("", "Z", "X")


def send_signal(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to processes of ours; those that are gone already don't matter."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _status(pid: int) -> tuple[str, int]:
    """Return a process's state letter and its parent's id; ("", 0) when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)
