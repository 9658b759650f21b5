"""The certificate of a broker is verified, and what is wrong with it is told with what to do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

from domain_event_broker.errors import BrokerUnavailable, ConfigurationError
from domain_event_broker.ports import Stored
from domain_event_broker.transports.rabbitmq.addresses import parameters
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.rabbitmq.tools import message
from tests.security.rabbitmq.conftest import Connect

SECRET = "t0p-s3cret"
INSECURE = "insecure_accept_any_certificate=yes"


@pytest.fixture(scope="module")
def tls_broker() -> Iterator[PrivateRabbitMQ]:
    """A broker with a certificate of an authority that nobody else knows."""
    with PrivateRabbitMQ(tls=True) as broker:
        yield broker


class TlsServer:
    """Shakes hands with whoever comes, and shows the certificate that it was given."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError), client, self._context.wrap_socket(client, server_side=True) as greeted:
                greeted.recv(1)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[datetime, datetime], str]]:
    """Return a function that starts a server whose certificate is valid for a time; it returns the URL."""
    started: list[TlsServer] = []
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def start(not_before: datetime, not_after: datetime) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", not_before=not_before, not_after=not_after).configure_cert(context)
        started.append(TlsServer(context))
        return f"amqps://u:{SECRET}@localhost:{started[-1].port}/?cafile={tmp_path / 'ca.pem'}"

    yield start
    for each in started:
        each.close()


def failure(connect: Connect, url: str) -> str:
    with pytest.raises(BrokerUnavailable) as told:
        connect(url)
    assert SECRET not in str(told.value)
    return str(told.value)


def works(connect: Connect, url: str) -> bool:
    return connect(url).publish([message("nobody.listens")])[0].stored is Stored.UNROUTABLE


def test_a_certificate_of_a_known_authority_is_taken(tls_broker: PrivateRabbitMQ, connect: Connect) -> None:
    assert works(connect, f"{tls_broker.tls_url()}?cafile={tls_broker.ca_path}")


def test_one_of_an_unknown_authority_is_refused_and_told(
    tls_broker: PrivateRabbitMQ, connect: Connect
) -> None:
    text = failure(connect, tls_broker.tls_url())
    assert "certificate verify failed" in text
    assert "name its authority with cafile=/path/ca.pem in the URL" in text


def test_one_for_another_host_is_refused_and_told(tls_broker: PrivateRabbitMQ, connect: Connect) -> None:
    url = f"{tls_broker.tls_url()}?cafile={tls_broker.ca_path}&server_hostname=elsewhere.example"
    text = failure(connect, url)
    assert "certificate is not valid for 'elsewhere.example'" in text
    assert "server_hostname=NAME" in text


def test_one_that_has_expired_is_refused_and_told(
    server: Callable[[datetime, datetime], str], connect: Connect
) -> None:
    now = datetime.now(timezone.utc)
    text = failure(connect, server(now - timedelta(days=9), now - timedelta(days=2)))
    assert "certificate has expired; it has expired: renew it on the broker" in text


def test_one_that_is_not_valid_yet_is_refused_and_told(
    server: Callable[[datetime, datetime], str], connect: Connect
) -> None:
    now = datetime.now(timezone.utc)
    text = failure(connect, server(now + timedelta(days=2), now + timedelta(days=9)))
    assert "compare the clocks of both hosts" in text


def test_an_option_with_a_loud_name_takes_any_certificate(
    tls_broker: PrivateRabbitMQ, connect: Connect
) -> None:
    assert works(connect, f"{tls_broker.tls_url()}?{INSECURE}")
    with pytest.raises(ConfigurationError, match="say 'yes', or leave it out"):
        parameters("amqps://h/?insecure_accept_any_certificate=1")


def test_options_of_pika_do_not_switch_it_off_in_silence(
    tls_broker: PrivateRabbitMQ, connect: Connect
) -> None:
    old = f"{{'ca_certs':'{tls_broker.ca_path}','protocol':{int(ssl.PROTOCOL_TLS)}}}"
    with (
        pytest.warns(DeprecationWarning, match="PROTOCOL_TLS is deprecated"),
        pytest.raises(ConfigurationError, match="nobody checks who answers"),
    ):
        parameters(f"amqps://u:p@h/?ssl_options={old}")


def test_options_of_pika_without_a_host_name_check_that_of_the_url(
    tls_broker: PrivateRabbitMQ, connect: Connect
) -> None:
    options = f"{{'ca_certs':'{tls_broker.ca_path}'}}"
    assert works(connect, f"{tls_broker.tls_url()}?ssl_options={options}")


@pytest.mark.parametrize("query", ["", "?cafile={ca}", "?heartbeat=5"])
def test_verification_is_what_an_amqps_url_means(query: str, tls_broker: PrivateRabbitMQ) -> None:
    options = parameters(f"amqps://h/{query.format(ca=tls_broker.ca_path)}").ssl_options
    assert options is not None
    assert options.context.verify_mode is ssl.CERT_REQUIRED
    assert options.context.check_hostname
    assert options.server_hostname == "h"
    assert options.context.minimum_version >= ssl.TLSVersion.TLSv1_2
