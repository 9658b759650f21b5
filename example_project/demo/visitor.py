"""A visitor of the shop, who knows it by its pages alone."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from typing import Any

from demo.trouble import Trouble

#: Seconds after which a page that does not come is given up.
TIMEOUT = 30.0
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


class Visitor:
    """Opens pages and sends forms. Each thread that uses it is a visitor with cookies of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._mine = threading.local()

    def is_open(self) -> bool:
        """Tell whether the shop answers."""
        try:
            self.get("/")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def get(self, path: str) -> str:
        """Return a page."""
        return self._open(path)[1]

    def order(self, product: str, quantity: int, destination: str, note: str = "") -> str:
        """Place an order through the form on the first page; return the order's number."""
        form = {"product": product, "quantity": str(quantity), "destination": destination, "note": note}
        where = self._send("/", form)
        number = re.search(r"/orders/([^/]+)/$", where)
        if number is None:
            raise Trouble(f"the shop did not take the order; it answered with {where}")
        return number[1]

    def turn_provider(self, broken: bool) -> None:
        """Press the button that breaks or repairs the payment provider."""
        self._send("/payments/provider/", {"broken": "1" if broken else "0"})

    def events(self, after: int) -> dict[str, Any]:
        """Return which events left the outbox after the one numbered ``after``."""
        answer: dict[str, Any] = json.loads(self.get(f"/events.json?after={after}"))
        return answer

    def _send(self, path: str, form: dict[str, str]) -> str:
        if not hasattr(self._mine, "token"):
            found = TOKEN.search(self.get("/"))
            self._mine.token = found[1] if found else ""
        body = urllib.parse.urlencode({**form, "csrfmiddlewaretoken": self._mine.token})
        return self._open(path, body.encode())[0]

    def _open(self, path: str, body: bytes | None = None) -> tuple[str, str]:
        if not hasattr(self._mine, "opener"):
            # No proxy: the shop is on this machine. No redirect is followed: the visitor has seen enough.
            self._mine.opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar()), _Stay()
            )
        try:
            with self._mine.opener.open(self.address + path, body, TIMEOUT) as answer:
                return answer.headers.get("Location") or answer.url, answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Trouble(f"the shop answered {error.code} {error.reason} to {path}") from error


class _Stay(urllib.request.HTTPErrorProcessor):
    """Takes a redirect as an answer."""

    def http_response(self, request: Any, response: Any) -> Any:
        """Return redirects as they are; the rest as ever."""
        return response if response.status == 302 else super().http_response(request, response)


def any_port(preferred: int | None) -> int:
    """Return a port nobody listens on: the preferred one if it can be had."""
    try:
        return free_port(preferred or 0)
    except Trouble:
        return free_port(0)


def free_port(wanted: int) -> int:
    """Return the wanted port, or for 0 any, that nobody listens on.

    :raises Trouble: it cannot be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise Trouble(f"port {wanted} cannot be had: {error.strerror}; choose another --port") from error
        port: int = probe.getsockname()[1]
        return port
