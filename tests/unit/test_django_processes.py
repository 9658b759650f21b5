"""Several processes of one command: told to stop at a bad moment, all of them do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
