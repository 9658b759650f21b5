"""``manage.py run_subscriber`` ends when it is told to, whatever its handlers have left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PATIENCE = 120.0

SETTINGS = """
from tests.djangoapp.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "hanging"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "hanging.sqlite3"}}
DOMAIN_EVENT_BROKER = "database:"
"""

SUBSCRIBERS = """
import asyncio, pathlib, threading
from concurrent.futures import ThreadPoolExecutor
from asgiref.sync import sync_to_async
from domain_event_broker import subscribe

def hang():
    pathlib.Path("began").touch()
    threading.Event().wait()

@subscribe("to.thread", name="to-thread", idempotent=False)
async def in_thread(event):
    await asyncio.to_thread(hang)

@subscribe("sync.to_async", name="sync-to-async", idempotent=False)
async def in_executor(event):
    await sync_to_async(hang, thread_sensitive=False)()

@subscribe("time.out", name="time-out", timeout=0.2, max_retries=0, idempotent=False)
async def given_up(event):
    await asyncio.to_thread(hang)

@subscribe("nothing", name="nothing", idempotent=False)
async def harmless(event):
    await asyncio.to_thread(pathlib.Path("began").touch)

executor = ThreadPoolExecutor()

def work():
    pathlib.Path("began").touch()
    threading.Event().wait(8)
    pathlib.Path("finished").touch()

@subscribe("executor", name="executor", idempotent=False)
def left_to_executor(event):
    executor.submit(work)

@subscribe("thread", name="thread", idempotent=False)
def left_to_thread(event):
    threading.Thread(target=work, daemon=False).start()
"""

#: What the handlers of these events leave running ends in time.
GRACE = {"executor": "30", "thread": "30"}

PREPARE = """
import sys, django
django.setup()
from django.core.management import call_command
from domain_event_broker import publish_domain_event
call_command("migrate", verbosity=0)
call_command("declare_queues")
publish_domain_event(sys.argv[1], {})
call_command("run_relay", drain=True)
"""


class Project:
    """A project whose handlers hang."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        app = directory / "hanging"
        app.mkdir()
        (app / "__init__.py").touch()
        (app / "subscribers.py").write_text(SUBSCRIBERS)
        (directory / "hanging_settings.py").write_text(SETTINGS)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Run Python in the project."""
        path = os.pathsep.join([str(self.directory), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "hanging_settings"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def subscriber(project: Project, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A subscriber that has begun with an event whose routing key the test asks for."""
    preparing = project.start("-c", PREPARE, request.param)
    printed, _ = preparing.communicate(timeout=PATIENCE)
    assert preparing.returncode == 0, printed
    process = project.start("-m", "django", "run_subscriber", "--grace", GRACE.get(request.param, "0.2"))
    try:
        wait_until((project.directory / "began").exists, PATIENCE, "the handler has begun")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("subscriber", ["to.thread", "sync.to_async", "time.out"], indirect=True)
def test_a_call_that_hangs_in_another_thread_does_not_keep_the_process(
    subscriber: subprocess.Popen[str],
) -> None:
    subscriber.send_signal(signal.SIGTERM)
    printed, _ = subscriber.communicate(timeout=PATIENCE)
    assert subscriber.returncode == 4, printed
    assert "did not end after the stop" in printed
    assert "in hang" in printed


@pytest.mark.parametrize("subscriber", ["executor", "thread"], indirect=True)
def test_work_that_a_handler_left_to_a_thread_is_finished_within_the_grace(
    project: Project, subscriber: subprocess.Popen[str]
) -> None:
    subscriber.send_signal(signal.SIGTERM)
    printed, _ = subscriber.communicate(timeout=PATIENCE)
    assert subscriber.returncode == 0, printed
    assert (project.directory / "finished").exists(), printed


@pytest.mark.parametrize("subscriber", ["nothing"], indirect=True)
def test_threads_that_are_idle_cost_nothing(subscriber: subprocess.Popen[str]) -> None:
    subscriber.send_signal(signal.SIGTERM)
    printed, _ = subscriber.communicate(timeout=PATIENCE)
    assert subscriber.returncode == 0, printed
