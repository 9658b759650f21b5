"""Relays and subscribers as Prometheus and probes see them, with real servers and processes."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from domain_event_broker.patience import REMIND_SECONDS
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.monitoring.project import PATIENCE, Project

MakeProject = Callable[..., Project]


def children(pid: int) -> list[int]:
    """Return the children of a process, in the order in which they were started."""
    # Linux appends to the list; the ids themselves begin anew some time.
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not asked for its code yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_listening(url: str) -> bool:
    """Tell whether somebody answers at an address."""
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def is_stuck(verdict: tuple[int, list[str]]) -> bool:
    """Tell whether a probe says that one of two processes does not go on."""
    status, reasons = verdict
    return status == 503 and any("of 2 should have gone on" in reason for reason in reasons)


def test_a_relay_shows_what_it_sent_and_what_waits(make_project: MakeProject) -> None:
    project = make_project()
    project.run("declare_queues")
    project.publish(*({"number": number} for number in range(7)))
    with project.running("run_relay", "--metrics-port", "0") as relay:
        relay.wait_for(7, "relay_events_total", "confirmed")
        relay.wait_for(0, "outbox_pending_events")
        relay.wait_for(1, "outbox_up")
        metrics = relay.metrics()
        assert metrics["relay_events_total", "unroutable"] == 0
        assert metrics["relay_buckets",] == 64
        assert metrics["relay_batch_seconds_count",] >= 1
        assert metrics["outbox_oldest_seconds",] == 0
        assert metrics["outbox_held_events", "parked"] == 0
        assert metrics["broker_away_seconds",] == 0
        assert relay.probe("/livez") == (200, [])
        assert relay.probe("/readyz") == (200, [])
        assert relay.stop() == 0


def test_counters_do_not_fall_when_a_process_is_killed_and_replaced(make_project: MakeProject) -> None:
    project = make_project()
    with project.running("run_subscriber", "--processes", "2", "--metrics-port", "0") as subscriber:
        subscriber.wait_for(2, "processes")
        with project.running("run_relay"):
            project.publish(*({"number": number} for number in range(10)), {"refuse": True})
            subscriber.wait_for(10, "handler_events_total", "parcels-sort", "handled")
            subscriber.wait_for(1, "handler_events_total", "parcels-sort", "dead-lettered")
            # Killed outright: what it has counted is in memory that it shared.
            os.kill(project.sorted()[0][0], signal.SIGKILL)
            subscriber.wait_for(1, "process_restarts_total")
            subscriber.wait_for(2, "processes")
            project.publish(*({"number": number} for number in range(10, 15)))
            subscriber.wait_for(15, "handler_events_total", "parcels-sort", "handled")
        metrics = subscriber.metrics()
        assert metrics["handler_duration_seconds_count", "parcels-sort"] == 16
        assert metrics["handler_duration_seconds_bucket", "parcels-sort", "+Inf"] == 16
        assert metrics["handler_in_flight_events", "parcels-sort"] == 0
        subscriber.wait_for(1, "queue_events", "parcels-sort", "dead")
        subscriber.wait_for(2, "queue_consumers", "parcels-sort")
        assert subscriber.probe("/livez") == (200, [])
        assert subscriber.probe("/readyz") == (200, [])
        assert subscriber.stop() == 0


def test_the_process_that_answers_is_replaced_too_and_ends_with_its_parent(make_project: MakeProject) -> None:
    project = make_project()
    with project.running("run_subscriber", "--processes", "2", "--metrics-port", "0") as subscriber:
        subscriber.wait_for(2, "processes")
        with project.running("run_relay"):
            project.publish(*({"number": number} for number in range(3)))
            subscriber.wait_for(3, "handler_events_total", "parcels-sort", "handled")
        # The last that was started is the one that answers.
        os.kill(children(subscriber.process.pid)[-1], signal.SIGKILL)
        wait_until(lambda: "ended with code -9" in subscriber.printed(), PATIENCE, subscriber.printed)
        # What asks meanwhile waits for it: the socket is the parent's.
        assert subscriber.metrics()["handler_events_total", "parcels-sort", "handled"] == 3
        assert subscriber.metrics()["process_restarts_total",] == 0
        url, left = subscriber.url, children(subscriber.process.pid)
        assert len(left) == 3
        subscriber.process.kill()
    wait_until(lambda: not is_listening(url), PATIENCE, f"nobody at {url}")
    wait_until(lambda: not any(map(is_alive, left)), PATIENCE, f"{left} are gone")


def test_a_scrape_is_answered_while_a_stopped_handler_finishes(make_project: MakeProject) -> None:
    project = make_project()
    with project.running(
        "run_subscriber", "--processes", "2", "--grace", "300", "--metrics-port", "0"
    ) as subscriber:
        subscriber.wait_for(2, "processes")
        with project.running("run_relay"):
            project.publish({"number": 1, "hold": True})
            subscriber.wait_for(1, "handler_in_flight_events", "parcels-sort")
        subscriber.process.send_signal(signal.SIGTERM)
        pid = subscriber.process.pid
        wait_until(lambda: len(children(pid)) < 3, PATIENCE, "the idle process ends")
        assert subscriber.metrics()["handler_in_flight_events", "parcels-sort"] == 1
        (project.directory / "go-on").touch()
        assert subscriber.process.wait(PATIENCE) == 0
    assert [number for _, number in project.sorted()] == [1]


def test_ports_are_for_a_relay_that_goes_on(make_project: MakeProject) -> None:
    with make_project().running("run_relay", "--once", "--metrics-port", "0") as relay:
        assert relay.process.wait(PATIENCE) == 2


def test_a_frozen_process_is_not_live(make_project: MakeProject) -> None:
    project = make_project(MONITORING={"STUCK_SECONDS": 10})
    with project.running("run_subscriber", "--processes", "2", "--health-port", "0") as subscriber:
        wait_until(lambda: subscriber.probe("/readyz") == (200, []), PATIENCE, subscriber.printed)
        with project.running("run_relay"):
            project.publish({"number": 1})
            wait_until(project.sorted, PATIENCE, subscriber.printed)
        frozen = project.sorted()[0][0]
        os.kill(frozen, signal.SIGSTOP)
        try:
            wait_until(lambda: is_stuck(subscriber.probe("/livez")), PATIENCE, subscriber.printed)
            assert subscriber.get("/metrics")[0] == 404
        finally:
            os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: subscriber.probe("/livez") == (200, []), PATIENCE, subscriber.printed)


def test_a_broker_that_is_away_shows_and_a_scrape_goes_on(make_project: MakeProject) -> None:
    with PrivateRabbitMQ() as broker:
        project = make_project(URL=broker.url(), MONITORING={"AWAY_SECONDS": 1})
        with (
            project.running("run_subscriber", "--metrics-port", "0") as subscriber,
            project.running("run_relay", "--metrics-port", "0") as relay,
        ):
            subscriber.wait_for(1, "queues_up")
            subscriber.wait_for(0, "queue_events", "parcels-sort", "ready")
            broker.stop()
            project.publish({"number": 1})
            for worker in (subscriber, relay):
                wait_until(lambda worker=worker: worker.probe("/readyz")[0] == 503, PATIENCE)
                assert "the broker has been away for" in worker.probe("/readyz")[1][0]
                assert worker.probe("/livez") == (200, [])
                assert worker.metrics()["broker_away_seconds",] > 0
            subscriber.wait_for(0, "queues_up")
            assert subscriber.metrics()["queue_events", "parcels-sort", "ready"] == 0
            broker.start()
            for worker in (subscriber, relay):
                wait_until(lambda worker=worker: worker.probe("/readyz") == (200, []), PATIENCE)
            subscriber.wait_for(1, "handler_events_total", "parcels-sort", "handled")
            assert subscriber.metrics()["reconnects_total",] >= 1


def test_events_that_nobody_sends_make_a_relay_unready(make_project: MakeProject) -> None:
    project = make_project(URL="amqp://nobody:secret-word@127.0.0.1:1/", MONITORING={"LAG_SECONDS": 1})
    project.publish({"number": 1})
    with project.running("run_relay", "--metrics-port", "0") as relay:
        wait_until(lambda: "waited" in str(relay.probe("/readyz")[1]), PATIENCE)
        wait_until(lambda: relay.metrics()["outbox_oldest_seconds",] > 1, PATIENCE)
        assert relay.metrics()["outbox_pending_events",] == 1
        assert "secret-word" not in relay.get("/readyz")[1] + relay.get("/metrics")[1] + relay.printed()


def test_a_full_queue_refuses_many_events_and_the_log_tells_of_it_once(
    make_project: MakeProject, rabbitmq_server: PrivateRabbitMQ, broker_url: str
) -> None:
    project = make_project()
    project.run("declare_queues")
    vhost = broker_url.rpartition("/")[2]
    rabbitmq_server.ctl("set_policy", "-p", vhost, "full", "^parcels-sort$", '{"max-length": 1}')
    started = time.monotonic()
    with project.running("run_relay", "--metrics-port", "0") as relay:
        # A quorum queue takes a few more than its limit before it begins to refuse.
        project.publish(*({"number": number} for number in range(20)))
        wait_until(lambda: relay.metrics()["relay_events_total", "confirmed"] > 0, PATIENCE, relay.printed)
        project.publish(*({"number": number} for number in range(20, 50)))
        wait_until(lambda: relay.metrics()["relay_events_total", "refused"] >= 20, PATIENCE, relay.printed)
        assert relay.metrics()["relay_events_total", "parked"] == 0
        # Once, and once more for each minute that a slow machine took.
        told = relay.printed().count("refused by the broker")
        assert 1 <= told <= 1 + (time.monotonic() - started) / REMIND_SECONDS, relay.printed()
        wait_until(lambda: relay.metrics().get(("outbox_held_events", "retrying"), 0) > 0, PATIENCE)


@pytest.mark.parametrize("command", ["run_relay", "run_subscriber"])
def test_a_port_that_is_taken_is_told_at_once(command: str, make_project: MakeProject) -> None:
    project = make_project()
    with project.running("run_relay", "--health-port", "0") as relay:
        port = relay.url.rpartition(":")[2]
        with project.running(command, "--metrics-port", port) as second:
            assert second.process.wait(PATIENCE) == 2
            log = (project.directory / f"{command}.log").read_text()
    assert f"cannot listen on 127.0.0.1 port {port}" in log
