"""Private servers keep their promise: killed, started again with their data, gone without a trace."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pika
import psycopg
import pymysql
import pytest
import redis

from tests.harness.mariadb import PrivateMariaDB
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.redis import PrivateRedis
from tests.harness.server import PrivateServer, ServerError, is_alive
from tests.harness.waiting import wait_until


class Broker:
    """How a test keeps a note in RabbitMQ."""

    make = PrivateRabbitMQ

    @staticmethod
    def write(server: PrivateRabbitMQ) -> None:
        with pika.BlockingConnection(pika.URLParameters(server.url())) as connection:
            connection.channel().queue_declare("notes", durable=True)
        # RabbitMQ 3.10, killed right after it came up for the first time, forgets a queue declared since
        # then, once in about fifty times, with the confirmed messages in it. A restart prevents that.
        server.restart()
        with pika.BlockingConnection(pika.URLParameters(server.url())) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", "notes", b"kept", pika.BasicProperties(delivery_mode=2), mandatory=True)

    @staticmethod
    def read(server: PrivateRabbitMQ) -> str:
        with pika.BlockingConnection(pika.URLParameters(server.url())) as connection:
            body = connection.channel().basic_get("notes", auto_ack=False)[2]
        return bytes(body or b"").decode()


class Postgres:
    """How a test keeps a note in PostgreSQL."""

    make = PrivatePostgreSQL

    @staticmethod
    def write(server: PrivatePostgreSQL) -> None:
        with psycopg.connect(server.create_database("notes")) as connection:
            connection.execute("CREATE TABLE notes (text text)")
            connection.execute("INSERT INTO notes VALUES ('kept')")

    @staticmethod
    def read(server: PrivatePostgreSQL) -> str:
        with psycopg.connect(server.dsn("notes")) as connection:
            (row,) = connection.execute("SELECT text FROM notes").fetchall()
        return str(row[0])


class Maria:
    """How a test keeps a note in MariaDB."""

    make = PrivateMariaDB

    @staticmethod
    def write(server: PrivateMariaDB) -> None:
        server.create_database("notes")
        with pymysql.connect(host="127.0.0.1", port=server.port, user="root", database="notes") as connection:
            connection.cursor().execute("CREATE TABLE notes (text text)")
            connection.cursor().execute("INSERT INTO notes VALUES ('kept')")
            connection.commit()

    @staticmethod
    def read(server: PrivateMariaDB) -> str:
        with pymysql.connect(host="127.0.0.1", port=server.port, user="root", database="notes") as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT text FROM notes")
            return str(cursor.fetchall()[0][0])


class Redis:
    """How a test keeps a note in Redis."""

    make = PrivateRedis

    @staticmethod
    def write(server: PrivateRedis) -> None:
        with redis.Redis.from_url(server.url()) as client:
            client.set("notes", "kept")

    @staticmethod
    def read(server: PrivateRedis) -> str:
        with redis.Redis.from_url(server.url(), decode_responses=True) as client:
            return str(client.get("notes"))


@dataclass
class Kind:
    """A running server with a note in it, and how to read that."""

    server: PrivateServer
    read: Callable[[], str]


@pytest.fixture(params=[Broker, Postgres, Maria, Redis], ids=lambda notes: notes.make.kind)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    notes = request.param
    with notes.make() as server:
        notes.write(server)
        yield Kind(server, lambda: notes.read(server))


def test_a_server_keeps_its_data_through_crash_and_restart_and_leaves_nothing(kind: Kind) -> None:
    server = kind.server
    first = server.pid

    server.kill()
    assert not server.is_running
    server.start()
    assert server.pid != first
    assert kind.read() == "kept"

    server.restart()
    assert kind.read() == "kept"

    server.freeze()
    server.thaw()
    wait_until(server.is_ready, message="a thawed server serves again")

    last = server.pid
    server.close()
    assert not is_alive(last)
    assert not server.directory.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_frozen_server_stays_silent_until_it_is_thawed() -> None:
    with PrivateRedis() as server:
        server.freeze()
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.3) as connection:
            connection.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(64)
            server.thaw()
            connection.settimeout(5)
            assert connection.recv(64) == b"+PONG\r\n"


def test_a_frozen_server_can_be_stopped() -> None:
    with PrivateRedis() as server:
        server.freeze()
        server.stop()
        assert not server.is_running


def test_a_server_that_cannot_start_shows_the_end_of_its_log() -> None:
    server = PrivatePostgreSQL({"max_connections": "no number"})
    with pytest.raises(ServerError, match='invalid value for parameter "max_connections"'):
        server.start()
    server.close()


def test_a_server_ends_with_the_process_that_started_it_even_if_that_is_killed() -> None:
    program = (
        "import os; from tests.harness.redis import PrivateRedis; server = PrivateRedis().start();"
        "print(server.pid, server.directory, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid, directory = done.stdout.split()
    wait_until(lambda: not is_alive(int(pid)), message="the guard ends the server")
    wait_until(lambda: not os.path.exists(directory), message="the guard removes its directory")


def test_the_broker_speaks_tls_and_knows_its_clients_by_certificate() -> None:
    with PrivateRabbitMQ(tls=True, client_cert_required=True) as broker:
        context = ssl.create_default_context(cafile=broker.ca_path)
        parameters = pika.URLParameters(broker.tls_url())
        parameters.ssl_options = pika.SSLOptions(context, "localhost")
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(parameters)

        context.load_cert_chain(broker.client_cert, broker.client_key)
        pika.BlockingConnection(parameters).close()


def test_a_new_user_of_the_broker_may_only_touch_what_was_named(fresh_name: Callable[[str], str]) -> None:
    with PrivateRabbitMQ() as broker:
        broker.add_user("till", "p@ss/word", permissions="^own-.*")
        with pika.BlockingConnection(pika.URLParameters(broker.url("till", "p@ss/word"))) as connection:
            connection.channel().queue_declare(fresh_name("own"))
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
                connection.channel().queue_declare(fresh_name("other"))
