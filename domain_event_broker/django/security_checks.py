"""System checks of what would let strangers read, send or imitate: see SECURITY.rst."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.core.checks import CheckMessage, Error, Tags, Warning, register

from domain_event_broker import config
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings, mask, scheme
from domain_event_broker.errors import ConfigurationError
from domain_event_broker.redaction import redact_of

TAG = "domain_event_broker"

#: Schemes whose connections are not encrypted, with those that are.
_PLAIN = {"amqp": "amqps", "redis": "rediss"}


def register_all() -> None:
    """Register the checks; those that only matter in production run with ``check --deploy``."""
    register(check_hooks, TAG)
    register(check_certificates, TAG, Tags.security)
    register(check_connections, TAG, Tags.security, deploy=True)


def check_hooks(**_: Any) -> list[CheckMessage]:
    """What ``CODEC`` and ``REDACT`` name must be there before the first event needs it."""
    try:
        broker = config.current()
    except ConfigurationError:
        return []  # the check of the settings says so
    found: list[CheckMessage] = []
    for use in (bodies_of, redact_of) if broker is not None else ():
        try:
            use(broker)  # type: ignore[arg-type]
        except ConfigurationError as error:
            found.append(Error(str(error), id=f"{TAG}.E010"))
    return found


def check_certificates(**_: Any) -> list[CheckMessage]:
    """A broker whose certificate is not verified may be anybody."""
    return [
        Warning(
            f"{mask(url)}: the certificate of the broker is not verified, so whoever can answer in its place "
            "reads the events and the password",
            hint="Name the authority that signed it with cafile=/path/ca.pem in the URL, and leave out "
            f"{parameter}.",
            id=f"{TAG}.W010",
        )
        for url in _urls()
        if (parameter := _unverified(url))
    ]


def check_connections(**_: Any) -> list[CheckMessage]:
    """Over a network, passwords and events need TLS, and a user of their own."""
    return [message for url in _urls() for message in (*_check_plain(url), *_check_guest(url))]


def _check_plain(url: str) -> list[CheckMessage]:
    if scheme(url) not in _PLAIN or _is_local(url):
        return []
    return [
        Warning(
            f"{mask(url)} is another host, and nothing on the way to it is encrypted: neither the events nor "
            "the password",
            hint=f"Use {_PLAIN[scheme(url)]}:// (and cafile= for an authority of your own), or silence this "
            "check where the network itself is private.",
            id=f"{TAG}.W011",
        )
    ]


def _check_guest(url: str) -> list[CheckMessage]:
    if (
        scheme(url) not in ("amqp", "amqps")
        or _is_local(url)
        or urlsplit(url).username not in (None, "guest")
    ):
        return []
    return [
        Warning(
            f"{mask(url)} comes as the user 'guest' to another host: RabbitMQ refuses that, unless somebody "
            "has opened it to everybody",
            hint="Give the project a user of its own, with the permissions that it needs: see "
            "docs/how-to/rabbitmq.rst.",
            id=f"{TAG}.W012",
        )
    ]


def _urls() -> tuple[str, ...]:
    try:
        broker: BrokerSettings | None = config.current()
    except ConfigurationError:
        return ()
    return broker.url if broker is not None else ()


def _unverified(url: str) -> str:
    """Return the parameter by which a URL gives up the verification of certificates, or nothing."""
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name.startswith("insecure_"):
            return name
        if name == "ssl_cert_reqs" and value.lower() in ("none", "optional", "cert_none", "cert_optional"):
            return f"{name}={value}"
    return ""


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
