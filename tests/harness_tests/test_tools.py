"""Ports, waiting and finding programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ports
from tests.harness.binaries import REDIS, ServerMissing, ServerSoftware
from tests.harness.waiting import TimedOut, wait_until

NOWHERE = ServerSoftware("Nowhere", "no-such-program", (), "nowhere-server", (), "TEST_NOWHERE_BIN")


def test_a_missing_server_is_an_error_that_names_the_package() -> None:
    with pytest.raises(ServerMissing, match=r"package 'nowhere-server'.*TEST_NOWHERE_BIN"):
        NOWHERE.require()


def test_a_variable_overrules_where_a_server_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("TEST_REDIS_BIN", str(tmp_path))
    assert REDIS.require() == program


def test_the_highest_version_of_a_server_is_taken(tmp_path: Path) -> None:
    for version in ("9", "15", "13"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "thing").touch(mode=0o755)
    software = ServerSoftware("Thing", "thing", (f"{tmp_path}/*/bin",), "thing", (), "TEST_THING_BIN")
    assert software.require() == tmp_path / "15" / "bin" / "thing"


def test_a_leased_port_is_nobody_elses_until_it_is_released() -> None:
    lease = ports.lease_port()
    assert "no free port" in lease_in_another_process(lease.port).stderr
    lease.release()
    assert lease_in_another_process(lease.port).stdout.strip() == str(lease.port)


def lease_in_another_process(port: int) -> subprocess.CompletedProcess[str]:
    program = (
        f"from tests.harness import ports; ports.FIRST = ports.LAST = {port}; print(ports.lease_port().port)"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    lease = ports.lease_port()
    below, above = (int(number) for number in ports.LOCAL_RANGE.read_text().split())
    assert not below <= lease.port <= above
    lease.release()


def test_waiting_returns_what_became_true() -> None:
    values = iter([None, 0, "here"])
    assert wait_until(lambda: next(values)) == "here"


def test_waiting_in_vain_says_what_for() -> None:
    with pytest.raises(TimedOut, match="rain stops"):
        wait_until(lambda: False, timeout=0.05, message="rain stops")
