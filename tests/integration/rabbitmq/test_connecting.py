"""Connecting: which broker, with which credentials, over TLS; and what is told when it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from domain_event_broker.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from domain_event_broker.ports import Stored, Subscription
from domain_event_broker.transports.rabbitmq.addresses import BLOCKED_TIMEOUT, HEARTBEAT, parameters
from tests.harness.ports import lease_port
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.rabbitmq.tools import collect, message


@pytest.fixture(scope="module")
def tls_broker() -> Iterator[PrivateRabbitMQ]:
    """A broker that takes TLS connections of clients with a certificate only."""
    with PrivateRabbitMQ(tls=True, client_cert_required=True) as broker:
        yield broker


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens."""
    lease = lease_port()
    yield lease.port
    lease.release()


def works(transport) -> bool:
    """Tell whether the broker answers."""
    return transport.publish([message("nobody.listens")])[0].stored is Stored.UNROUTABLE


# --- TLS --------------------------------------------------------------------------------


def test_tls_with_an_authority_and_a_client_certificate_of_ones_own(tls_broker, connect) -> None:
    broker = tls_broker
    files = f"cafile={broker.ca_path}&certfile={broker.client_cert}&keyfile={broker.client_key}"
    url = f"{broker.tls_url()}?{files}"
    assert works(connect(url))


def test_tls_in_the_words_of_pika(tls_broker, connect) -> None:
    broker = tls_broker
    options = (
        f"{{'ca_certs':'{broker.ca_path}','certfile':'{broker.client_cert}','keyfile':'{broker.client_key}',"
        "'server_hostname':'localhost'}"
    )
    assert works(connect(f"{broker.tls_url()}?ssl_options={options}"))


def test_a_client_without_certificate_is_refused(tls_broker, connect) -> None:
    with pytest.raises(BrokerUnavailable, match=r"cannot connect to amqps://guest:\*\*\*@"):
        connect(f"{tls_broker.tls_url()}?cafile={tls_broker.ca_path}")


def test_an_authority_we_do_not_know_is_refused(tls_broker, connect) -> None:
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        connect(tls_broker.tls_url())


def test_a_certificate_made_out_to_another_host_is_refused(tls_broker, connect) -> None:
    url = f"{tls_broker.tls_url()}?cafile={tls_broker.ca_path}&server_hostname=elsewhere.example"
    with pytest.raises(BrokerUnavailable, match=r"elsewhere\.example"):
        connect(url)


# --- refusals ---------------------------------------------------------------------------


def test_a_wrong_password_is_told_without_telling_it(rabbitmq_server, connect, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AccessRefused, match="refused the user or the password") as told:
        connect(rabbitmq_server.url(password="t0p-s3cret"))
    assert "t0p-s3cret" not in f"{told.value} {told.value.__cause__} {caplog.text}"


def test_a_virtual_host_that_does_not_exist_is_told(rabbitmq_server, connect) -> None:
    with pytest.raises(AccessRefused, match=r"virtual host.*nowhere.*add_vhost"):
        connect(rabbitmq_server.url(vhost="nowhere"))


def test_a_virtual_host_without_permission_is_told(rabbitmq_server, connect, fresh_name) -> None:
    name = fresh_name("user")
    rabbitmq_server.ctl("add_user", name, "secret")
    with pytest.raises(AccessRefused, match=r"set_permissions"):
        connect(rabbitmq_server.url(name, "secret"))


def test_a_missing_permission_is_told(rabbitmq_server, connect, handler, fresh_name) -> None:
    name = fresh_name("user")
    rabbitmq_server.ctl("add_user", name, "secret")
    rabbitmq_server.ctl("set_permissions", name, "", "domain-events", ".*")
    wanted = handler()
    transport = connect(rabbitmq_server.url(name, "secret"))
    with pytest.raises(AccessRefused, match=r"set_permissions"):
        transport.declare(wanted)
    # It may publish, though: that takes no right to configure the exchange.
    connect().declare(wanted)
    (outcome,) = connect(rabbitmq_server.url(name, "secret")).publish([message(f"{wanted.name}.x")])
    assert outcome.stored is Stored.STORED


def test_a_user_who_may_not_publish_is_told(rabbitmq_server, connect, fresh_name) -> None:
    connect().publish([message("makes.the.exchange")])
    name = fresh_name("user")
    rabbitmq_server.ctl("add_user", name, "secret")
    rabbitmq_server.ctl("set_permissions", name, ".*", "", ".*")
    with pytest.raises(AccessRefused, match=r"access to exchange 'domain-events'.*set_permissions"):
        connect(rabbitmq_server.url(name, "secret")).publish([message("a.b")])


# --- several brokers ----------------------------------------------------------------------


def test_urls_are_tried_in_turn(rabbitmq_server, connect, free_port) -> None:
    assert works(connect([f"amqp://guest:guest@127.0.0.1:{free_port}/", rabbitmq_server.url()]))


def test_if_none_answers_each_is_told(connect, free_port) -> None:
    urls = [f"amqp://guest:s3cret@127.0.0.1:{free_port}/", f"amqp://guest:s3cret@localhost:{free_port}/"]
    with pytest.raises(BrokerUnavailable) as told:
        connect(urls)
    assert type(told.value) is BrokerUnavailable
    assert str(told.value).count("Connection refused") == 2
    assert "s3cret" not in str(told.value)


def test_a_lost_connection_names_the_broker_and_not_the_password(connect) -> None:
    with PrivateRabbitMQ() as broker:
        transport = connect(broker.url())
        transport.subscribe(Subscription("killed", ("killed.#",)))
        broker.kill()
        with pytest.raises(BrokerUnavailable, match=rf"guest:\*\*\*@127.0.0.1:{broker.port}"):
            collect(transport, 1)
        transport.wake()
        transport.close()
        transport.wake()


# --- URLs -------------------------------------------------------------------------------


def test_parameters_of_the_url_count_and_ours_fill_in() -> None:
    plain = parameters("amqp://u:p%40ss@broker.example/shop%2Fone")
    assert (plain.host, plain.port, plain.virtual_host) == ("broker.example", 5672, "shop/one")
    assert (plain.credentials.username, plain.credentials.password) == ("u", "p@ss")
    assert (plain.heartbeat, plain.blocked_connection_timeout) == (HEARTBEAT, BLOCKED_TIMEOUT)
    assert "pid" in plain.client_properties["connection_name"]
    given = parameters("amqp://h?heartbeat=30&connection_attempts=3&blocked_connection_timeout=7")
    assert (given.heartbeat, given.connection_attempts, given.blocked_connection_timeout) == (30, 3, 7.0)
    named = parameters("amqp://h?client_properties={'connection_name':'mine'}")
    assert named.client_properties["connection_name"] == "mine"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://h?heartbeet=3", "heartbeet"),
        ("amqp://h?heartbeat=often", "heartbeat"),
        ("amqp://user@h/", "without a password"),
        ("amqp://h/shop/one", "%2F"),
        ("amqp://h?cafile=/ca.pem", "amqps:"),
        ("amqps://h?cafile=/does/not/exist.pem", "does not exist"),
        ("amqps://h?ssl_options={'ca_certs'", "ssl_options"),
        ("amqp://h?heartbeat=1&heartbeat=2", "heartbeat"),
    ],
)
def test_a_wrong_url_is_told_and_nothing_is_tried(url, told, connect) -> None:
    secret = url.replace("amqp://h", "amqp://u:s3cret@h")
    with pytest.raises(ConfigurationError, match=told) as error:
        connect(secret)
    assert "s3cret" not in str(error.value)
