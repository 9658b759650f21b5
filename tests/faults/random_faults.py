"""The faults of a torture: each with its weight, what it needs, and what it does.

Servers that are killed, stopped or frozen are back when the act returns; what lasts longer is ended
later, while other faults happen: see :meth:`Torture.later`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from tests.faults.apparatus import DATABASE, Stage
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.server import descendants, send_signal
from tests.harness.waiting import wait_until

if TYPE_CHECKING:
    from tests.faults.torture import Torture

#: Tables that a migration could lock.
LOCKABLE = (
    "domain_event_broker_outbox",
    "domain_event_broker_lease",
    "domain_event_broker_inbox",
    "domain_event_broker_archive",
    "faults_effect",
)


@dataclass(frozen=True)
class Fault:
    """A fault of the plan.

    :param at: seconds after the start.
    :param dice: a number for what is chosen when it comes.
    :param length: seconds it lasts, where it lasts.
    """

    at: float
    name: str
    dice: int
    length: float


Act = Callable[["Torture", Fault], None]


# --- processes


def _kill(fleet: str) -> Act:
    def act(torture: Torture, fault: Fault) -> None:
        if getattr(torture, fleet):
            torture.one_of(fleet, fault.dice).kill()

    return act


def _terminate(fleet: str) -> Act:
    """SIGTERM; who has not ended after a while is killed, as a supervisor does: that is a violation."""

    def act(torture: Torture, fault: Fault) -> None:
        torture.ask_to_stop(torture.one_of(fleet, fault.dice))

    return act


def _freeze(fleet: str) -> Act:
    """SIGSTOP, up to more than two leases; SIGCONT."""

    def act(torture: Torture, fault: Fault) -> None:
        victim = torture.one_of(fleet, fault.dice)
        # The same processes in the end: children outlive a parent that is killed meanwhile.
        pids = [*descendants(victim.pid), victim.pid] if victim.exit_code is None else []
        send_signal(signal.SIGSTOP, pids)
        torture.later(fault.length, lambda: send_signal(signal.SIGCONT, pids))

    return act


# --- the broker


def _broker(torture: Torture) -> PrivateRabbitMQ:
    assert torture.stage.rabbitmq is not None
    return torture.stage.rabbitmq


def _kill_broker(torture: Torture, fault: Fault) -> None:
    _broker(torture).kill()
    time.sleep(fault.length / 4)
    _broker(torture).start()


def _restart_broker(torture: Torture, fault: Fault) -> None:
    _broker(torture).stop()
    time.sleep(fault.length / 4)
    _broker(torture).start()


def _freeze_broker(torture: Torture, fault: Fault) -> None:
    _broker(torture).freeze()
    time.sleep(fault.length)
    _broker(torture).thaw()


def _memory_alarm(torture: Torture, fault: Fault) -> None:
    """Short of memory: publishers are blocked."""
    _broker(torture).ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    time.sleep(fault.length)
    _broker(torture).ctl("set_vm_memory_high_watermark", "absolute", "1GB")


def _disk_alarm(torture: Torture, fault: Fault) -> None:
    """Short of disk: publishers are blocked."""
    _broker(torture).ctl("set_disk_free_limit", "1000GB")
    time.sleep(fault.length)
    _broker(torture).ctl("set_disk_free_limit", "50MB")


def _close_connections(torture: Torture, fault: Fault) -> None:
    _broker(torture).ctl("close_all_connections", "by the administrator")


def _revoke(torture: Torture, fault: Fault) -> None:
    """Users lose their permissions, and get them back."""
    _broker(torture).ctl("clear_permissions", "guest")
    torture.stage.broker_proxy.cut()
    time.sleep(fault.length)
    _broker(torture).ctl("set_permissions", "guest", ".*", ".*", ".*")


def _cut_broker(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.cut()


def _tear_broker(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.tear()


def _lose_confirm(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.lose_answer_to(b"domain-events")


def _stall_broker(torture: Torture, fault: Fault) -> None:
    torture.stage.broker_proxy.stall()
    torture.later(fault.length, torture.stage.broker_proxy.flow)


# --- the database


def _cut_database(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.cut()


def _tear_database(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.tear()


def _stall_database(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.stall()
    torture.later(fault.length, torture.stage.database_proxy.flow)


def _lose_commit(torture: Torture, fault: Fault) -> None:
    torture.stage.database_proxy.lose_answer_to(b"COMMIT")


def _kill_database(torture: Torture, fault: Fault) -> None:
    torture.stage.postgres.kill()
    time.sleep(fault.length / 4)
    torture.stage.postgres.start()


def _restart_database(torture: Torture, fault: Fault) -> None:
    torture.stage.postgres.stop()
    time.sleep(fault.length / 4)
    torture.stage.postgres.start()


def _freeze_database(torture: Torture, fault: Fault) -> None:
    torture.stage.postgres.freeze()
    time.sleep(fault.length)
    torture.stage.postgres.thaw()


def _kill_session(torture: Torture, fault: Fault) -> None:
    """SIGKILL for one process of the server: it ends all sessions and recovers."""
    processes = descendants(torture.stage.postgres.pid)
    if processes:  # none: it recovers already
        send_signal(signal.SIGKILL, [processes[fault.dice % len(processes)]])


def _end_sessions(torture: Torture, fault: Fault) -> None:
    """Every session of the database ended by its administrator."""
    administer(torture.stage, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity {_OTHERS}")


def _refuse_sessions(torture: Torture, fault: Fault) -> None:
    """Who is connected goes on; nobody else gets in, as when the limit of connections is reached."""
    administer(torture.stage, f"ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS false")
    torture.later(fault.length, lambda: administer(torture.stage, _ALLOW))


def _lock_table(torture: Torture, fault: Fault) -> None:
    """A lock as a migration takes it."""
    intruder = _intrude(torture.stage, f"LOCK TABLE {LOCKABLE[fault.dice % len(LOCKABLE)]}")
    if intruder is not None:
        torture.later(fault.length, intruder.close)


def _lose_leases(torture: Torture, fault: Fault) -> None:
    """The rows that say which relay sends from which bucket are gone."""
    intruder = _intrude(torture.stage, "DELETE FROM domain_event_broker_lease")
    if intruder is not None:
        intruder.commit()
        intruder.close()


def _intrude(stage: Stage, statement: str) -> psycopg.Connection[Any] | None:
    """Open a transaction with a statement; ``None`` if another fault does not let us."""
    with suppress(psycopg.Error):
        options = f"{_WRITABLE} -c lock_timeout=2s"
        connection = psycopg.connect(stage.postgres.dsn(DATABASE), options=options)
        connection.execute(statement)
        return connection
    return None


def _read_only(torture: Torture, fault: Fault) -> None:
    """A database that takes no writes, as the losing side of a fail-over."""
    set_read_only(torture.stage, True)
    torture.later(fault.length, lambda: set_read_only(torture.stage, False))


def set_read_only(stage: Stage, on: bool) -> None:
    """Let the database refuse writes, or take them again; also in sessions that are open."""
    administer(stage, f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
    administer(stage, "SELECT pg_reload_conf()")


def administer(stage: Stage, statement: str) -> None:
    """Run a statement past the proxy, once the server lets us: it may be recovering from a fault."""

    def done() -> bool:
        try:
            with psycopg.connect(stage.postgres.dsn(), autocommit=True, options=_WRITABLE) as connection:
                connection.execute(statement)
        except psycopg.OperationalError:
            return False
        return True

    wait_until(done, 60.0, f"PostgreSQL did: {statement}", interval=0.2)


#: For sessions of our own, also while that fault is on.
_WRITABLE = "-c default_transaction_read_only=off"
_OTHERS = f"WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid()"
_ALLOW = f"ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS true"

#: Name of each fault, with its weight, the transport it needs, and what it does.
FAULTS: dict[str, tuple[int, str, Act]] = {
    "publisher kill -9": (3, "", _kill("publishers")),
    "relay kill -9": (6, "", _kill("relays")),
    "relay SIGTERM": (3, "", _terminate("relays")),
    "relay frozen": (5, "", _freeze("relays")),
    "relays' leases deleted": (2, "", _lose_leases),
    "subscriber kill -9": (6, "", _kill("subscribers")),
    "subscriber SIGTERM": (3, "", _terminate("subscribers")),
    "subscriber frozen": (3, "", _freeze("subscribers")),
    "broker kill -9": (3, "rabbitmq", _kill_broker),
    "broker restart": (2, "rabbitmq", _restart_broker),
    "broker frozen": (2, "rabbitmq", _freeze_broker),
    "broker memory alarm": (1, "rabbitmq", _memory_alarm),
    "broker disk alarm": (1, "rabbitmq", _disk_alarm),
    "broker permissions revoked": (1, "rabbitmq", _revoke),
    "broker connections closed": (2, "rabbitmq", _close_connections),
    "broker connections cut": (3, "rabbitmq", _cut_broker),
    "broker connection torn in a frame": (3, "rabbitmq", _tear_broker),
    "broker network stalled": (2, "rabbitmq", _stall_broker),
    "confirm of the broker lost": (4, "rabbitmq", _lose_confirm),
    "database connections cut": (3, "", _cut_database),
    "database connection torn in a message": (2, "", _tear_database),
    "database network stalled": (2, "", _stall_database),
    "answer to COMMIT lost": (5, "", _lose_commit),
    "database kill -9": (2, "", _kill_database),
    "database process kill -9": (2, "", _kill_session),
    "database restart": (2, "", _restart_database),
    "database frozen": (1, "", _freeze_database),
    "database sessions ended": (2, "", _end_sessions),
    "database refuses sessions": (2, "", _refuse_sessions),
    "database table locked": (3, "", _lock_table),
    "database read-only": (2, "", _read_only),
}
