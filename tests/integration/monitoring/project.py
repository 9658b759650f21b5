"""A project in a directory, whose commands run as processes of their own and are watched over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
#: Seconds in which what a test waits for happens, also on a machine that has much else to do.
PATIENCE = 60.0

SETTINGS = """
SECRET_KEY = "for tests only"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["domain_event_broker", "parcels"]
DATABASES = {database!r}
DOMAIN_EVENT_BROKER = {broker!r}
"""

SUBSCRIBERS = """
import os, threading
from pathlib import Path
from domain_event_broker import Reject, subscribe

@subscribe("parcel.*", name="parcels-sort", max_retries=0)
def sort(event):
    if event.data.get("refuse"):
        raise Reject("no such address")
    pause = threading.Event()
    while event.data.get("hold") and not Path("go-on").exists():
        pause.wait(0.02)
    with Path("sorted.txt").open("a") as file:
        file.write(f"{os.getpid()} {event.data['number']}\\n")
"""


class Watched:
    """A command that runs, and the pages that it serves."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def url(self) -> str:
        """Where its pages are, as it tells."""
        found = wait_until(
            lambda: re.search(r"Listening at (http://[^/]+)/", self.printed()), PATIENCE, self.printed
        )
        return found[1]

    def printed(self) -> str:
        """Return all that was printed."""
        assert self.process.poll() is None, self._output.read_text()
        return self._output.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page."""
        try:
            with urlopen(self.url + path, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def probe(self, path: str) -> tuple[int, list[str]]:
        """Return status and reasons of a probe."""
        status, body = self.get(path)
        return status, json.loads(body)["reasons"]

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Return what Prometheus reads: by name and label values, in the order of the labels' names."""
        status, text = self.get("/metrics")
        assert status == 200, text
        return {
            (
                sample.name.removeprefix("domain_event_broker_"),
                *(sample.labels[n] for n in sorted(sample.labels)),
            ): (sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_for(self, value: float, *metric: str) -> None:
        """Wait until a metric has a value."""
        wait_until(
            lambda: self.metrics().get(metric) == value,
            PATIENCE,
            lambda: f"{metric} is {self.metrics().get(metric)}, not {value}",
        )

    def stop(self) -> int:
        """Stop it as an init system does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


class Project:
    """The project.

    :param directory: an empty one.
    :param database: the entry of its database in ``DATABASES``.
    :param broker: its setting ``DOMAIN_EVENT_BROKER``.
    """

    def __init__(self, directory: Path, database: dict[str, Any], broker: dict[str, Any]) -> None:
        self.directory = directory
        (directory / "parcels").mkdir()
        (directory / "parcels/__init__.py").touch()
        (directory / "parcels/subscribers.py").write_text(SUBSCRIBERS)
        (directory / "parcelsettings.py").write_text(
            SETTINGS.format(database={"default": database}, broker=broker)
        )
        self.run("migrate", "-v0")

    def run(self, *arguments: str) -> None:
        """Run a command to its end."""
        subprocess.run(self._command(arguments), **self._around(), check=True, timeout=PATIENCE)

    def publish(self, *parcels: dict[str, Any]) -> None:
        """Put events into the outbox."""
        code = (
            "from domain_event_broker import DomainEvent, publish_domain_events as publish; "
            f"publish([DomainEvent('parcel.came', each) for each in {list(parcels)!r}])"
        )
        self.run("shell", "-v0", "-c", code)

    def sorted(self) -> list[tuple[int, int]]:
        """Return what the handler wrote down: process ids and numbers."""
        file = self.directory / "sorted.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(pid), int(number)) for pid, number in map(str.split, lines)]

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Watched]:
        """Run a command for as long as the block lasts."""
        output = self.directory / f"{arguments[0]}.log"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                self._command(arguments), **self._around(), stdout=stream, stderr=subprocess.STDOUT
            )
        try:
            yield Watched(process, output)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE)
                finally:
                    process.kill()
            process.wait()

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "django", *arguments]

    def _around(self) -> dict[str, Any]:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "parcelsettings",
            "PYTHONPATH": f"{self.directory}:{ROOT}",
        }
        return {"cwd": self.directory, "env": environment, "stdin": subprocess.DEVNULL}
