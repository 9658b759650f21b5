"""The processes of the shop: started here, watched here, ended here."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from demo.options import PROJECT, indented, shown
from demo.trouble import Trouble

#: Seconds that processes get to end by themselves.
STOP_SECONDS = 5.0
#: Lines of a log that are shown when something goes wrong.
LOG_LINES = 15
#: Ends the process $1 should this program be killed: then its standard input ends without a line.
GUARD = 'read -r line || kill -KILL "$1"'


class Child:
    """A running process of the shop, with its log file."""

    def __init__(self, role: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.role = role
        self.log = log
        # In a session of its own: Ctrl-C reaches this program alone, which then ends its children.
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        if self.exit_code is None:
            self._process.kill()
        self._process.wait()
        self._dismiss_guard()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; tell whether it came."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        self._dismiss_guard()
        return True

    def tail(self) -> str:
        """Return the last lines of its log, with where to find the rest."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return f"the end of {shown(self.log)}:\n{indented(chr(10).join(lines) or '(nothing)')}"

    def _dismiss_guard(self) -> None:
        # A guard that outlived its process could end another one that was given the same id.
        if self._guard.poll() is None:
            self._guard.communicate(b"ended\n")


class Family:
    """All processes of the shop. Leaving its ``with`` block ends them."""

    def __init__(self, python: str, environment: Mapping[str, str], logs: Path) -> None:
        self._python = python
        self._environment = environment
        self._logs = logs
        self._children: list[Child] = []
        self._started: dict[str, int] = {}

    def start(self, role: str, *arguments: str, **environment: str) -> Child:
        """Start ``manage.py`` with these arguments, as ``role``."""
        number = self._started[role] = self._started.get(role, 0) + 1
        log = self._logs / (f"{role}.log" if number == 1 else f"{role}-{number}.log")
        command = [self._python, "manage.py", *arguments]
        child = Child(role, command, {**self._environment, **environment}, log)
        self._children.append(child)
        return child

    def forget(self, child: Child) -> None:
        """Watch a process no more that was meant to end."""
        self._children.remove(child)

    def logs(self, role: str) -> list[Path]:
        """Return the log files of all that played a role."""
        return sorted(self._logs.glob(f"{role}*.log"))

    def manage(self, *arguments: str) -> str:
        """Run ``manage.py`` to its end and return what it printed.

        :raises Trouble: it failed.
        """
        done = subprocess.run(
            [self._python, "manage.py", *arguments],
            cwd=PROJECT,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise Trouble(self._failure(" ".join(arguments), done.returncode, done.stdout))
        return done.stdout

    def _failure(self, words: str, code: int, output: str) -> str:
        """Return what is said of a command that failed; the whole of its output goes to a log."""
        log = self._logs / "failed-command.log"
        log.write_text(output)
        reason = output.strip().splitlines()[-1:] if "Traceback (" in output else [output]
        return (
            f"'manage.py {words}' failed with exit code {code}:\n{indented(''.join(reason))}\n"
            f"All it printed is in {shown(log)}."
        )

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run ``manage.py`` beside the rest; on the way out it has ended, or is made to."""
        process = subprocess.Popen(
            [self._python, "manage.py", *arguments],
            cwd=PROJECT,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def check(self) -> None:
        """Make sure that all are still there.

        :raises Trouble: one has ended; the message has the end of its log.
        """
        for child in self._children:
            if child.exit_code is not None:
                raise Trouble(f"the {child.role} ended with exit code {child.exit_code}; {child.tail()}")

    def close(self) -> None:
        """End all processes: first asked, then made."""
        children, self._children = self._children, []
        for child in children:
            child.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            if not child.wait(deadline - time.monotonic()):
                child.kill()

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def environment_for(database_file: Path) -> dict[str, str]:
    """Return the environment of the shop's processes: ours, and what the shop has to know."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "SHOP_DATABASE": str(database_file),
    }
