"""TLS: what a URL can say of it, what is never left to chance, and what a failure means."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import pika

from domain_event_broker.errors import ConfigurationError
from domain_event_broker.masking import mask

#: Takes whatever certificate the broker shows, and so whoever answers in its place.
UNVERIFIED = "insecure_accept_any_certificate"

#: Parameters of a TLS connection, in the URL: ``amqps://host?cafile=/etc/ca.pem``.
PARAMETERS = ("cafile", "certfile", "keyfile", "server_hostname", UNVERIFIED)

#: What to do, by the code of OpenSSL for what is wrong with a certificate
#: (https://docs.openssl.org/master/man1/openssl-verification-options/).
_REMEDIES = {
    9: "it is not valid yet: compare the clocks of both hosts",
    10: "it has expired: renew it on the broker",
    18: "nobody known here vouches for it: name its authority with cafile=/path/ca.pem in the URL",
    19: "nobody known here vouches for it: name its authority with cafile=/path/ca.pem in the URL",
    20: "nobody known here vouches for it: name its authority with cafile=/path/ca.pem in the URL",
    62: "it is made out to another host: connect to the name that is in it, or say which one that is with "
    "server_hostname=NAME in the URL",
    64: "it is made out to another address: connect to the name that is in it, or say which one that is with "
    "server_hostname=NAME in the URL",
}


def options(host: str, tls: Mapping[str, str]) -> pika.SSLOptions:
    """Return what pika makes a TLS connection to ``host`` with, by the parameters of the URL.

    :raises ConfigurationError: a file does not exist.
    """
    for name in ("cafile", "certfile", "keyfile"):
        if name in tls and not Path(tls[name]).is_file():
            raise ConfigurationError(
                f"the file {tls[name]!r}, given as {name} in the broker URL, does not exist"
            )
    context = ssl.create_default_context(cafile=tls.get("cafile"))
    if "certfile" in tls:
        context.load_cert_chain(tls["certfile"], tls.get("keyfile"))
    if UNVERIFIED in tls:
        _accept_any(context, tls[UNVERIFIED])
    return pika.SSLOptions(context, tls.get("server_hostname", host))


def _accept_any(context: ssl.SSLContext, answer: str) -> None:
    if answer != "yes":
        raise ConfigurationError(
            f"{UNVERIFIED}={answer} in the broker URL: say 'yes', or leave it out and be safe"
        )
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def check_verifying(url: str, options: pika.SSLOptions) -> None:
    """Refuse what pika's own ``ssl_options`` can say between the lines: some protocols verify nothing.

    :raises ConfigurationError: nobody would check who answers.
    """
    context = options.context
    if context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname:
        raise ConfigurationError(
            f"broker URL {mask(url)!r}: with these ssl_options nobody checks who answers; use cafile=, "
            f"certfile= and keyfile= instead, or say that you want it so: {UNVERIFIED}=yes"
        )


def forbid_old_versions(context: ssl.SSLContext) -> None:
    """Let nothing older than TLS 1.2 be spoken: RFC 8996 forbids it."""
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)


def certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    """Return in words why the certificate of a broker was not taken, and what to do."""
    remedy = _REMEDIES.get(error.verify_code, "")
    return f"certificate verify failed: {error.verify_message}{'; ' + remedy if remedy else ''}"
