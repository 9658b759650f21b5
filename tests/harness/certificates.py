"""Throw-away certificates for servers and clients on this machine."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificates:
    """An authority with one server's and one client's certificate, as PEM files in ``directory``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        authority = trustme.CA()
        self.ca_path = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_path)
        self.server_cert, self.server_key = _issue(authority, directory, "server", "localhost", "127.0.0.1")
        self.client_cert, self.client_key = _issue(authority, directory, "client", "test-client.example")


def _issue(authority: trustme.CA, directory: Path, name: str, *identities: str) -> tuple[Path, Path]:
    issued = authority.issue_cert(*identities)
    cert, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(cert)
    return cert, key
