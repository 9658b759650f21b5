"""A small HTTP server: a few pages for GET, for Prometheus and for probes."""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from domain_event_broker.errors import ConfigurationError
from domain_event_broker.monitoring.health import Verdict

logger = logging.getLogger("domain_event_broker.monitoring")

#: Seconds that a client may take to send its request, or to read the answer.
CLIENT_SECONDS = 10.0
#: Seconds between two looks whether to stop.
STOP_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: bytes
    content_type: str
    status: HTTPStatus = HTTPStatus.OK


#: Makes the answer of a page, given the header ``Accept``.
Page = Callable[[str], Answer]


def probe(ask: Callable[[], Verdict]) -> Page:
    """Return the page of a health probe: 200 or 503, and why, as JSON."""

    def page(accept: str) -> Answer:
        verdict = ask()
        status = HTTPStatus.OK if verdict.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(json.dumps(verdict.as_dict()).encode() + b"\n", "application/json", status)

    return page


class Server:
    """Listens from the moment it is made; answers from :meth:`serve` on.

    :param address: name or address of the interface.
    :param port: 0: any that is free; see :attr:`url`.
    :param pages: by path.
    :raises ConfigurationError: address and port cannot be used.
    """

    def __init__(self, address: str, port: int, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        try:
            self._http = _listen(address, port, pages)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"cannot listen on {address} port {port}: {error}; choose another port, or another address "
                "with DOMAIN_EVENT_BROKER['MONITORING']['ADDRESS']"
            ) from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Where its pages are, without a path."""
        host = str(self._http.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def serve(self) -> None:
        """Answer requests, each in a thread of its own, until :meth:`stop`."""
        self._http.serve_forever(STOP_SECONDS)

    def start(self) -> None:
        """:meth:`serve` in a thread that ends with the program."""
        threading.Thread(target=self.serve, name="domain-event-broker-http", daemon=True).start()

    def stop(self) -> None:
        """End :meth:`serve`, which must be running in another thread, and stop listening."""
        self._http.shutdown()
        self.close()

    def close(self) -> None:
        """Stop listening; for a process that does not serve."""
        self._http.server_close()

    def __str__(self) -> str:
        return ", ".join(self.url + path for path in self._pages)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind, and don't ask a name server who we are, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""
        logger.debug("a request from %s failed: %r", client_address, sys.exc_info()[1])


def _listen(address: str, port: int, pages: Mapping[str, Page]) -> _HTTPServer:
    class Request(_Request):
        routes = pages

    class Listener(_HTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    return Listener((address, port), Request)


class _Request(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: a connection each."""

    routes: Mapping[str, Page] = {}
    timeout = CLIENT_SECONDS
    server_version, sys_version = "domain-event-broker", ""

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with its status."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        answer = self._page()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def _page(self) -> Answer:
        page = self.routes.get(self.path.partition("?")[0])
        if page is None:
            text = f"There are {', '.join(self.routes)}.\n"
            return Answer(text.encode(), "text/plain; charset=utf-8", HTTPStatus.NOT_FOUND)
        try:
            return page(self.headers.get("Accept", ""))
        except Exception:
            logger.exception("the page %s could not be made", self.path.partition("?")[0])
            return Answer(b"See the log.\n", "text/plain; charset=utf-8", HTTPStatus.INTERNAL_SERVER_ERROR)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: no line for each."""
        logger.debug(format, *args)
