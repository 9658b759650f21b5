"""Handlers that write one row for each event, and fail in programmed ways."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from django.db import connection, transaction

from domain_event_broker import Backoff, DomainEvent, Retry, subscribe
from tests.faults.project.fates import delay_of, failures_before_success, fate_of
from tests.faults.project.models import Effect


@subscribe("faults.#", name="steady", max_retries=1000, backoff=Backoff.fixed(0.3), concurrency=2)
def steady(event: DomainEvent) -> None:
    """Write the effect; what a database that goes away meanwhile raises is tried again."""
    _write("steady", event)


@subscribe("faults.#", name="moody", max_retries=5)
def moody(event: DomainEvent) -> None:
    """Write the effect, then do what the event's fate says."""
    _write("moody", event)
    _FATES.get(fate_of(event.uuid_string), lambda event: None)(event)


@subscribe("poison.#", "plain.#", name="lethal", max_retries=0)
def lethal(event: DomainEvent) -> None:
    """Kill the process whenever a poisonous event comes."""
    _write("lethal", event)
    if event.routing_key.startswith("poison."):
        _die()


#: Seconds that ``slow`` may take, if the environment says so.
SLOW_TIMEOUT = float(os.environ["FAULTS_TIMEOUT"]) if "FAULTS_TIMEOUT" in os.environ else None


@subscribe("slow.#", name="slow", max_retries=0, concurrency=4, timeout=SLOW_TIMEOUT)
def slow(event: DomainEvent) -> None:
    """Take as long as the event says; out of reach of any interruption if it is ``slow.stuck``."""
    Path(os.environ["FAULTS_DIRECTORY"], f"began-{event.uuid_string}").touch()
    _write("slow", event)
    if event.routing_key == "slow.stuck":
        time.sleep(event.data["seconds"])
    end = time.monotonic() + event.data["seconds"]
    while time.monotonic() < end:
        time.sleep(0.05)  # in slices: one long sleep cannot be interrupted from another thread


@subscribe("odd.#", name="odd", max_retries=0)
def odd(event: DomainEvent) -> None:
    """Write the effect of an event whose identity no column holds."""
    digest = hashlib.sha256(event.uuid_string.encode("utf-8", "surrogatepass")).hexdigest()
    Effect.objects.create(handler="odd", event_id=digest, pid=os.getpid())


def deployed(event: DomainEvent) -> None:
    """Write the effect, after as many retries as this release wants."""
    if event.retries < int(os.environ.get("FAULTS_DEPLOYED_RETRIES", "0")):
        raise Retry(float(os.environ["FAULTS_DEPLOYED_DELAY"]))
    _write("deployed", event)


if name := os.environ.get("FAULTS_DEPLOYED", ""):
    # Name, keys and queue type are those of the release that the environment tells of.
    keys = os.environ.get("FAULTS_DEPLOYED_KEYS", "deploy.a deploy.b").split()
    kind = os.environ.get("FAULTS_DEPLOYED_TYPE", "quorum")
    subscribe(*keys, name=name, queue_type=kind, max_retries=5)(deployed)


@subscribe("faults.#", name="spy", max_retries=0)
def spy(event: DomainEvent) -> None:
    """Never run: its queue shows in which order events left the outbox."""
    raise AssertionError("nobody runs the spy")


def _write(handler: str, event: DomainEvent) -> None:
    Effect.objects.create(handler=handler, event_id=event.uuid_string, pid=os.getpid())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _retry(event: DomainEvent) -> None:
    if event.retries < failures_before_success(event.uuid_string):
        raise Retry(delay_of(event.uuid_string))


def _fail(event: DomainEvent) -> None:
    raise ValueError("never works")


def _exit(event: DomainEvent) -> None:
    raise SystemExit("as if the program were over")


def _interrupt(event: DomainEvent) -> None:
    raise KeyboardInterrupt


def _leak(event: DomainEvent) -> None:
    transaction.atomic().__enter__()


def _close(event: DomainEvent) -> None:
    connection.close()


def _exhaust(event: DomainEvent) -> None:
    raise Retry(0.05)


def _die_once(event: DomainEvent) -> None:
    try:
        Path(os.environ["FAULTS_DIRECTORY"], f"died-{event.uuid_string}").touch(exist_ok=False)
    except FileExistsError:
        return
    _die()


_FATES = {
    "retry": _retry,
    "error": _fail,
    "exit": _exit,
    "interrupt": _interrupt,
    "leak": _leak,
    "close": _close,
    "exhaust": _exhaust,
    "deadly": _die_once,
}
