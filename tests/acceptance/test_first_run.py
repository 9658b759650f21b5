"""The README's first command, as a newcomer gives it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.acceptance.shop import (
    CHECKOUT,
    account_of,
    developers_environment,
    fresh_copy,
    newcomers_environment,
    run,
    run_the_show,
)
from tests.harness.server import descendants, is_alive
from tests.harness.waiting import wait_until

#: Starts the program on a Python whose ensurepip is packaged apart, as Debian does it.
WITHOUT_ENSUREPIP = """
import runpy, sys
sys.modules["ensurepip"] = None
sys.path.insert(0, "example_project")
sys.argv = ["example_project/run"]
runpy.run_path("example_project/run", run_name="__main__")
"""


def test_a_fresh_checkout_installs_itself_shows_the_road_and_balances(tmp_path: Path) -> None:
    copy = fresh_copy(tmp_path)
    environment = newcomers_environment(tmp_path / "home")
    done = run(["example_project/run", "--orders", "12"], environment, cwd=copy)
    assert done.returncode == 0, done.stdout
    assert "virtualenv" in done.stdout
    assert "↻" in done.stdout, "a retry is shown"
    assert "→ dead letter" in done.stdout
    replayed = re.search(r"payments-charge: (\d+) replayed, 0 left", done.stdout)
    assert replayed, done.stdout
    assert int(replayed[1]) >= 3, "three orders were placed while the provider was broken"
    published, handled, waiting, parked, dead = account_of(done.stdout)
    assert (waiting, parked, dead) == (0, 0, 1), "one order goes to the moon, which no carrier does"
    assert published == handled + 1


def test_killing_relay_and_subscriber_loses_and_doubles_nothing_on_sqlite(tmp_path: Path) -> None:
    done = run_the_show(tmp_path, "--kill", "--orders", "30")
    assert done.returncode == 0, done.stdout
    assert "killed with -9" in done.stdout
    assert account_of(done.stdout)[2:] == (0, 0, 1)


def test_a_python_that_cannot_make_virtualenvs_is_told_what_to_install(tmp_path: Path) -> None:
    copy = fresh_copy(tmp_path)
    done = run([sys.executable, "-c", WITHOUT_ENSUREPIP], newcomers_environment(tmp_path / "home"), cwd=copy)
    assert done.returncode == 2
    assert f"apt-get install python3.{sys.version_info.minor}-venv" in done.stdout
    assert not (copy / "example_project" / ".venv").exists()


def test_a_failing_command_is_told_in_one_line_with_its_log(tmp_path: Path) -> None:
    done = run_the_show(tmp_path, DATABASE_URL="postgres://nobody:secret@127.0.0.1:1/nothing")
    assert done.returncode == 2
    assert "'manage.py migrate --verbosity 0' failed" in done.stdout
    assert "Traceback" not in done.stdout
    assert "secret" not in done.stdout
    assert "Traceback" in (tmp_path / "logs" / "failed-command.log").read_text()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    with _serving(tmp_path) as first:
        _wait_for_address(first, tmp_path)
        second = run_the_show(tmp_path, "--orders", "1")
        assert second.returncode == 2
        assert "another run is going on" in second.stdout
        first.send_signal(signal.SIGINT)


def test_serve_keeps_the_shop_open_and_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    with _serving(tmp_path) as show:
        address = _wait_for_address(show, tmp_path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert "The event shop" in opener.open(f"{address}/").read().decode()
        assert "Log in" in opener.open(f"{address}/admin/").read().decode()
        children = descendants(show.pid)
        assert len(children) >= 3, "web, relay and subscriber"
        show.send_signal(signal.SIGINT)
        assert show.wait(20) == 130
    wait_until(lambda: not any(map(is_alive, children)), 5, "all processes have ended")


def test_processes_of_a_show_that_is_killed_end_too(tmp_path: Path) -> None:
    with _serving(tmp_path) as show:
        _wait_for_address(show, tmp_path)
        children = descendants(show.pid)
        show.kill()
    wait_until(lambda: not any(map(is_alive, children)), 5, "all processes have ended")


def _serving(state: Path) -> subprocess.Popen[bytes]:
    """Start a show that stays open, with its output in a file of the state folder."""
    options: list[str | Path] = ["--python", sys.executable, "--state", state, "--serve", "--orders", "0"]
    with (state / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "example_project/run", *options],
            cwd=CHECKOUT,
            env=developers_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _wait_for_address(show: subprocess.Popen[bytes], state: Path) -> str:
    def address() -> str:
        output = (state / "output").read_text()
        assert show.poll() is None, output
        found = re.search(r"admin +(http://\S+)/admin/\n", output)
        return found[1] if found and "password" in output else ""

    return wait_until(address, 60, lambda: (state / "output").read_text())
