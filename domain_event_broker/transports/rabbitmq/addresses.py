"""URLs of brokers, read into what pika connects with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pika

from domain_event_broker.config import mask, scheme
from domain_event_broker.errors import ConfigurationError
from domain_event_broker.masking import mask_text
from domain_event_broker.transports.rabbitmq import tls

#: Seconds between signs of life. A peer that went silent is noticed after about twice as long
#: (https://www.rabbitmq.com/docs/heartbeats); more would leave its deliveries in limbo.
HEARTBEAT = 10

#: Seconds for which a publisher waits while the broker takes nothing in, because it is short of
#: memory or disk space (https://www.rabbitmq.com/docs/connection-blocked).
BLOCKED_TIMEOUT = 20.0


def parameters(url: str) -> pika.URLParameters:
    """Return the connection parameters in ``url``, with our defaults for those it does not name.

    Beside pika's own parameters (``heartbeat``, ``connection_attempts``, ``ssl_options``, ...)
    an ``amqps:`` URL may have ``cafile``, ``certfile``, ``keyfile`` and ``server_hostname``. The
    broker's certificate is verified, unless it has ``insecure_accept_any_certificate=yes``.

    :raises ConfigurationError: a part of the URL is wrong; the message has no password.
    """
    try:
        return _parameters(url)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, SyntaxError, OSError) as error:
        # Not as its cause: a traceback would show the parameters of the URL, and a password among them.
        raise ConfigurationError(f"broker URL {mask(url)!r}: {mask_text(str(error))}") from None


def _parameters(url: str) -> pika.URLParameters:
    _check(url)
    plain, given_tls = _without_tls(url)
    found = pika.URLParameters(plain)
    given = dict(parse_qsl(urlsplit(url).query))
    if "heartbeat" not in given:
        found.heartbeat = HEARTBEAT
    if "blocked_connection_timeout" not in given:
        found.blocked_connection_timeout = BLOCKED_TIMEOUT
    if given_tls:
        found.ssl_options = tls.options(found.host, given_tls)
    if found.ssl_options is not None and tls.UNVERIFIED not in given_tls:
        tls.check_verifying(url, found.ssl_options)
        found.ssl_options.server_hostname = found.ssl_options.server_hostname or found.host
    if found.ssl_options is not None:
        tls.forbid_old_versions(found.ssl_options.context)
    found.client_properties = {"connection_name": _program(), **(found.client_properties or {})}
    return found


def _check(url: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None and parts.password is None:
        raise ConfigurationError(
            f"broker URL {mask(url)!r} has a user without a password; use user:password@host"
        )
    if parts.path.count("/") > 1:
        raise ConfigurationError(
            f"broker URL {mask(url)!r}: the virtual host {unquote(parts.path[1:])!r} holds a slash; "
            "write it as %2F"
        )


def _without_tls(url: str) -> tuple[str, dict[str, str]]:
    """Split our own TLS parameters off the URL; pika refuses those it does not know."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: value for name, value in pairs if name in tls.PARAMETERS}
    if ours and scheme(url) != "amqps":
        raise ConfigurationError(
            f"broker URL {mask(url)!r} names {', '.join(ours)}; that needs the scheme amqps:"
        )
    rest = urlencode([(name, value) for name, value in pairs if name not in tls.PARAMETERS])
    return urlunsplit(parts._replace(query=rest)), ours


def _program() -> str:
    """Return the name under which the broker's management shows the connection."""
    return f"domain_event_broker {Path(sys.argv[0] or 'python').name} pid {os.getpid()}"
