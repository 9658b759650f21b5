"""A reader who does what a page says, in a directory of their own, and looks at what is printed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.docs.pages import ROOT, Block, Page
from tests.harness.waiting import wait_until

#: Seconds until a command must have ended, and what a page promises must have been printed.
PATIENCE = 60.0
#: Commands that run until they are stopped, unless one of these options ends them by themselves.
WORKERS = ("run_relay", "run_subscriber", "runserver", "celery")
ENDING_OPTIONS = {"--once", "--drain", "--list", "--help"}
#: Words of commands that change nothing, and show what workers have done so far.
LOOKS = {"--dry-run", "broker_status"}
#: Preparations that the environment of the tests has behind it already.
PREPARATIONS = ("pip install ", "python3 -m venv ", ". .venv/bin/activate")


class Worker:
    """A command that goes on running beside the reader."""

    def __init__(self, command: str, process: subprocess.Popen[bytes], output: Path) -> None:
        self.command = command
        self._process = process
        self._output = output
        self._read = 0

    def finds(self, lines: list[str]) -> bool:
        """Tell whether the lines were printed since they were last asked for; if so, go on behind them."""
        text = self._output.read_text(encoding="utf-8", errors="replace")
        end = find_lines(lines, text, self._read)
        if end is None:
            if self._process.poll() is not None:
                raise AssertionError(f"{self.command} ended with {self._process.returncode}:\n{text}")
            return False
        self._read = end
        return True

    def stop(self) -> None:
        """Press Ctrl-C, and see the command end well. Celery counts that as an error, and SIGTERM as none."""
        is_celery = " celery " in f" {self.command} "
        self._process.send_signal(signal.SIGTERM if is_celery else signal.SIGINT)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        assert code == 0, f"{self.command} ended with {code}:\n{self.printed()}"

    def printed(self) -> str:
        """Return all that was printed."""
        return self._output.read_text(encoding="utf-8", errors="replace")


class Reader:
    """Follows pages; use it as a context manager, so that the workers end.

    :param directory: an empty one.
    :param replace: texts of the pages that are different on this machine, such as URLs.
    :param prelude: Python that snippets without a file name begin with.
    """

    def __init__(self, directory: Path, replace: Mapping[str, str] | None = None, prelude: str = "") -> None:
        self.directory = directory / "desk"
        self._tools = directory / "bin"
        self._outputs = directory / "output"
        for path in (self.directory, self._tools, self._outputs):
            path.mkdir()
        self._install_tools()
        self._replace = dict(replace or {})
        self._prelude = prelude
        self._workers: dict[str, Worker] = {}
        self._started = 0
        self._last = ""
        self.run_commands: list[str] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with ExitStack() as stack:  # stops each, whatever becomes of the others
            for command in list(self._workers):
                stack.callback(self.stop, command)

    def follow(self, page: Page, meanwhile: Mapping[str, Callable[[], None]] | None = None) -> None:
        """Do what a page says, from its first block to its last.

        :param meanwhile: for a command, what is done right after it.
        """
        for block in page.blocks():
            self.do(block, meanwhile)

    def do(self, block: Block, meanwhile: Mapping[str, Callable[[], None]] | None = None) -> None:
        """Do what one block says."""
        if block.not_run:
            return
        try:
            if block.language == "python":
                self._take_python(block)
            elif block.language == "console":
                self._take_console(block, meanwhile or {})
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}") from error

    def start_project(self, *apps: str) -> None:
        """Make a Django project and apps, for pages that begin in one."""
        self.run("python -m django startproject mysite .")
        for app in apps:
            self.run(f"python manage.py startapp {app}")

    def write(self, path: str, text: str, append: bool = False) -> None:
        """Write a file of the reader's project."""
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        before = target.read_text(encoding="utf-8") + "\n" if append else ""
        target.write_text(before + self._here(text) + "\n", encoding="utf-8")

    def run(self, command: str, expected: list[str] | None = None) -> str:
        """Run a command to its end and return what it printed."""
        self.run_commands.append(command)
        done = subprocess.run(
            ["/bin/sh", "-c", self._here(command)],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            text=True,
            check=False,
        )
        self._last = done.stdout
        assert done.returncode == 0, f"{command!r} ended with {done.returncode}:\n{done.stdout}"
        if find_lines(expected or [], done.stdout) is None:
            raise AssertionError(f"{command!r} printed\n{done.stdout}\nand not\n" + "\n".join(expected or []))
        return done.stdout

    def start(self, command: str, expected: list[str] | None = None) -> None:
        """Start a worker; one that runs the same command already is stopped first."""
        self.run_commands.append(command)
        if command in self._workers:
            self.stop(command)
        self._started += 1
        output = self._outputs / f"{self._started}.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self._here(command)}"],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self._workers[command] = Worker(command, process, output)
        # A reader goes on when the command has said that it works: it has read the settings then.
        self.see(expected or ["... Ctrl-C stops."], command)

    def stop(self, command: str) -> None:
        """Stop a worker, as by Ctrl-C in its terminal."""
        self._workers.pop(command).stop()

    def see(self, lines: list[str], command: str | None = None) -> None:
        """Wait until one of the workers, or the named one, has printed the lines."""
        workers = [self._workers[command]] if command else list(self._workers.values())
        wait_until(
            lambda: any(worker.finds(lines) for worker in workers),
            PATIENCE,
            lambda: "\n".join([*lines, "among", *(worker.printed() for worker in workers)]),
        )

    def shell(self, code: str) -> str:
        """Run Python in the project and return what it printed."""
        return self.run(f"python manage.py shell -c {shlex.quote(code)}")

    def _take_python(self, block: Block) -> None:
        if block.file is None:
            self.shell(f"{self._prelude}\n{block.text}")
        else:
            path, append = block.file
            self.write(path, block.text, append)

    def _take_console(self, block: Block, meanwhile: Mapping[str, Callable[[], None]]) -> None:
        if not block.commands:
            lines = [line.strip() for line in block.text.splitlines() if line.strip()]
            if find_lines(lines, self._last) is None:
                self.see(lines)
        for command, expected in block.commands:
            self._take_command(command, expected)
            meanwhile.get(command, lambda: None)()

    def _take_command(self, command: str, expected: list[str]) -> None:
        words = shlex.split(command)
        if command.startswith(PREPARATIONS):
            return
        if words[0] == "cd":
            self.directory = (self.directory / words[1]).resolve()
        elif set(words) & set(WORKERS) and not set(words) & ENDING_OPTIONS:
            self.start(command, expected)
        elif set(words) & LOOKS:
            self._look(command, expected)
        else:
            self.run(command, expected)

    def _look(self, command: str, expected: list[str]) -> None:
        """Look until there is to be seen what the page shows: the workers may need a moment."""
        wait_until(
            lambda: find_lines(expected, self.run(command)) is not None,
            PATIENCE,
            lambda: f"{command!r} printed\n{self._last}\nand not\n" + "\n".join(expected),
        )

    def _here(self, text: str) -> str:
        for there, here in self._replace.items():
            text = text.replace(there, here)
        return text

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "PYTEST"))
        }
        return {
            **kept,
            "PATH": f"{self._tools}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{self._tools}",
            # Where the package is installed pytest finds it by itself; a checkout need not be.
            "PYTEST_PLUGINS": "domain_event_broker.pytest_plugin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
        }

    def _install_tools(self) -> None:
        """Let ``python`` be the interpreter that runs the tests, with the packages it has."""
        for name in ("python", "python3"):
            tool = self._tools / name
            tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
            tool.chmod(0o755)
        # Output appears line by line, as in a terminal. Without any buffer the words that handlers print side
        # by side would come mixed.
        each = [f"sys.{name}.reconfigure(line_buffering=True)" for name in ("stdout", "stderr")]
        (self._tools / "sitecustomize.py").write_text("\n".join(["import sys", *each]), encoding="utf-8")


def find_lines(expected: list[str], printed: str, start: int = 0) -> int | None:
    """Return the place behind the expected lines, or ``None``: they are not there in this order.

    Other lines may stand between them; ``...`` in an expected line stands for anything.
    """
    end = start
    for line in expected:
        if line == "...":
            continue
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        found = re.compile(rf"^[ \t]*{pattern}[ \t]*$", re.MULTILINE).search(printed, end)
        if found is None:
            return None
        end = found.end()
    return end
