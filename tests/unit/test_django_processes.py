"""Several processes of one command: told to stop at a bad moment, all of them do."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.harness.waiting import wait_until

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys
from django.conf import settings
settings.configure()
from domain_event_broker.django import processes

real_fork, forks = os.fork, []

def fork_and_be_told_to_stop():
    pid = real_fork()
    if pid:
        forks.append(pid)
        os.kill(os.getpid(), signal.SIGTERM)
    return pid

os.fork = fork_and_be_told_to_stop
code = processes.supervise([signal.pause] * 3)
sys.exit(code if len(forks) == 1 else 9)
"""


def test_a_signal_while_processes_are_started_reaches_those_that_were_and_starts_no_more() -> None:
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, cwd=ROOT, timeout=30, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


ACCOMPANIED = """
import os, signal, sys, threading
from pathlib import Path
from django.conf import settings
settings.configure()
from domain_event_broker.django import processes

told, let_go, seen = map(Path, sys.argv[1:])
pause = threading.Event()

def work():
    signal.signal(signal.SIGTERM, lambda *_: told.touch())
    Path(f"{told}.ready").touch()
    while not let_go.exists():
        pause.wait(0.02)

def accompany():
    signal.signal(signal.SIGTERM, lambda *_: (seen.write_text(str(let_go.exists())), os._exit(0)))
    Path(f"{seen}.ready").touch()
    while True:
        signal.pause()

sys.exit(processes.supervise([work, accompany], companions=1))
"""


def _accompanied(directory: Path) -> tuple[subprocess.Popen[bytes], Path, Path, Path]:
    """Start a work with its companion; return it with the files they write, when both are at work."""
    told, let_go, seen = (directory / name for name in ("told", "let_go", "seen"))
    command = [sys.executable, "-c", ACCOMPANIED, *map(str, (told, let_go, seen))]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        for name in ("told.ready", "seen.ready"):
            wait_until((directory / name).exists, 30, name)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process, told, let_go, seen


def test_a_companion_is_told_to_stop_when_the_others_have_ended(tmp_path: Path) -> None:
    process, told, let_go, seen = _accompanied(tmp_path)
    try:
        process.send_signal(signal.SIGTERM)
        wait_until(told.exists, 30)
        let_go.touch()
        assert process.wait(30) == 0
        assert seen.read_text() == "True"
    finally:
        let_go.touch()
        process.kill()
        process.wait()


def test_a_second_signal_ends_companions_too(tmp_path: Path) -> None:
    process, told, let_go, seen = _accompanied(tmp_path)
    try:
        process.send_signal(signal.SIGTERM)
        wait_until(told.exists, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert not seen.exists()
    finally:
        let_go.touch()
        process.kill()
        process.wait()
