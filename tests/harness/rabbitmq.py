"""A RabbitMQ of our own."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pika
import pika.exceptions

from tests.harness import binaries
from tests.harness.certificates import Certificates
from tests.harness.server import PrivateServer, ServerError
from tests.harness.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

#: Milliseconds after which at-least-once dead-lettering tries again when its target was away. The broker's
#: own 180 s would make every test with a restart in it take minutes.
DEAD_LETTER_RETRY_MS = 5000
#: Seconds that nodes get to find each other.
CLUSTER_TIMEOUT = 60.0

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 50MB
log.file.level = warning
"""
TLS_CONFIGURATION = """\
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {certificates.ca_path}
ssl_options.certfile = {certificates.server_cert}
ssl_options.keyfile = {certificates.server_key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = {client_must_show_certificate}
"""


class PrivateRabbitMQ(PrivateServer):
    """A broker with one node, its own Erlang port mapper (epmd) and, with ``tls=True``, a TLS listener.

    ``client_cert_required`` makes the TLS listener refuse clients that show no certificate; otherwise one
    that is shown must be valid, but none is asked for. ``beside`` is another node, whose port mapper and
    cookie this one shares, so that the two can form a cluster.
    """

    kind = "rabbitmq"

    def __init__(
        self, *, tls: bool = False, client_cert_required: bool = False, beside: PrivateRabbitMQ | None = None
    ) -> None:
        self._binary = binaries.RABBITMQ.require()
        self._epmd_binary = _find_epmd()
        super().__init__()
        self._distribution_port = self.lease_port()
        self._beside = beside
        self._epmd_port: int = beside._epmd_port if beside else self.lease_port()
        self._cookie: str = beside._cookie if beside else secrets.token_hex(16)
        #: Names of the nodes that shall form a cluster when they start for the first time.
        self.peers: tuple[str, ...] = ()
        self._epmd: subprocess.Popen[bytes] | None = None
        self.node = f"private-{self.port}@localhost"
        self.tls_port = self.lease_port() if tls else None
        self.certificates = Certificates(self.directory / "certificates") if tls else None
        self._client_cert_required = client_cert_required

    def url(
        self, user: str = "guest", password: str = "guest", vhost: str = "/", host: str = "127.0.0.1"
    ) -> str:
        """Return the ``amqp://`` URL of this broker."""
        user, password, vhost = (quote(part, safe="") for part in (user, password, vhost))
        return f"amqp://{user}:{password}@{host}:{self.port}/{vhost}"

    def add_vhost(self, name: str) -> str:
        """Make a virtual host that ``guest`` may do everything in; return its URL."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url(vhost=name)

    def tls_url(self, user: str = "guest", password: str = "guest", vhost: str = "/") -> str:
        """Return the ``amqps://`` URL; the certificate is made out to localhost and 127.0.0.1."""
        url = self.url(user, password, vhost, host="localhost")
        return url.replace("amqp://", "amqps://", 1).replace(f":{self.port}/", f":{self.tls_port}/", 1)

    @property
    def ca_path(self) -> Path:
        """The certificate of the authority that signed the server's and the client's."""
        return self._require_certificates().ca_path

    @property
    def client_cert(self) -> Path:
        """A client's certificate, signed by the authority."""
        return self._require_certificates().client_cert

    @property
    def client_key(self) -> Path:
        """The private key that belongs to ``client_cert``."""
        return self._require_certificates().client_key

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` against this broker (0.4 s each) and return what it prints."""
        return self.run_tool(self._binary.with_name("rabbitmqctl"), "-q", "-n", self.node, *arguments)

    def add_user(self, name: str, password: str, vhost: str = "/", permissions: str = ".*") -> None:
        """Create a user who may configure, write and read whatever matches ``permissions`` in ``vhost``."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "-p", vhost, name, permissions, permissions, permissions)

    def connections(self) -> list[str]:
        """Return the connections that are open now, one line each with the client's own name for it."""
        return self.ctl("list_connections", "--no-table-headers", "name", "client_properties").splitlines()

    def start(self) -> Self:
        """Start the port mapper if it isn't there, then the broker."""
        self.start_port_mapper()
        return super().start()

    def close(self) -> None:
        """End the broker and, last, its port mapper."""
        super().close()
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait()
            self._epmd = None

    def prepare(self) -> None:
        """Write configuration and cookie; make the certificates."""
        for name in ("mnesia", "log", "home"):
            (self.directory / name).mkdir()
        self._write("enabled_plugins", "[].\n")
        self._write("rabbitmq.conf", self._configuration())
        self._write(
            "advanced.config",
            f"[{{rabbit, [{{dead_letter_worker_publisher_confirm_timeout, {DEAD_LETTER_RETRY_MS}}}]}}].\n",
        )
        self._write("home/.erlang.cookie", self._cookie).chmod(0o400)

    def command(self) -> Sequence[str | Path]:
        """Return the start script: told that a supervisor watches it, it execs the Erlang machine."""
        return [self._binary]

    def environment(self) -> Mapping[str, str]:
        """Return the variables that keep this broker apart from any other on the machine."""
        here = self.directory
        return {
            "PATH": f"{self._epmd_binary.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(here / "home"),
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "no-such-file"),
            "RABBITMQ_PID_FILE": str(here / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def is_ready(self) -> bool:
        """Tell whether a client gets a connection.

        The port is tried first, for pika logs each refusal as an error.
        """
        if not _listens(self.port) or (self.tls_port and not _listens(self.tls_port)):
            return False
        try:
            pika.BlockingConnection(pika.URLParameters(self.url())).close()
        except pika.exceptions.AMQPError:
            return False
        return True

    def start_port_mapper(self) -> None:
        """Run the port mapper as our child: the broker would leave one behind that nobody ends."""
        if self._beside is not None:
            self._beside.start_port_mapper()
        elif self._epmd is None or self._epmd.poll() is not None:
            command: list[str | Path] = [
                self._epmd_binary,
                "-port",
                str(self._epmd_port),
                "-address",
                "127.0.0.1",
            ]
            self._epmd = self._spawn(command, self.directory / "epmd.txt")
            wait_until(lambda: _listens(self._epmd_port), message="epmd listens")

    def _configuration(self) -> str:
        text = CONFIGURATION.format(port=self.port)
        if self.certificates:
            must = str(self._client_cert_required).lower()
            text += TLS_CONFIGURATION.format(
                tls_port=self.tls_port, certificates=self.certificates, client_must_show_certificate=must
            )
        if self.peers:
            text += "cluster_formation.peer_discovery_backend = classic_config\n"
        for number, peer in enumerate(self.peers, 1):
            text += f"cluster_formation.classic_config.nodes.{number} = {peer}\n"
        return text

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def _require_certificates(self) -> Certificates:
        if self.certificates is None:
            raise ServerError("this broker speaks no TLS: make it with PrivateRabbitMQ(tls=True)")
        return self.certificates


class PrivateRabbitMQCluster:
    """Several nodes on this machine; each can be killed and started again like a broker of one node.

    A queue's first leader is on the node over which it is declared.
    """

    def __init__(self, size: int = 3) -> None:
        first = PrivateRabbitMQ()
        self.nodes = [first, *(PrivateRabbitMQ(beside=first) for _ in range(size - 1))]
        for node in self.nodes:
            node.peers = tuple(each.node for each in self.nodes)

    def urls(self) -> list[str]:
        """Return the URL of each node."""
        return [node.url() for node in self.nodes]

    def start(self) -> Self:
        """Start all nodes, beside each other; return when they know each other."""
        self.nodes[0].start_port_mapper()
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(PrivateRabbitMQ.start, self.nodes))
        size = len(self.nodes)
        wait_until(lambda: self.running() == size, CLUSTER_TIMEOUT, lambda: f"{self.running()} of {size} run")
        return self

    def running(self) -> int:
        """Return how many nodes are together, as one of them sees it."""
        seen = next(node for node in self.nodes if node.is_running).ctl("eval", "length(nodes()) + 1.")
        return int(seen.strip())

    def close(self) -> None:
        """End all nodes; the first one last, for its port mapper serves the others."""
        for node in reversed(self.nodes):
            node.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _find_epmd() -> Path:
    """Find epmd in PATH or where Erlang lives without a link in it."""
    path = binaries.RABBITMQ.find("epmd")
    found = [path] if path else sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
    if not found:
        raise binaries.ServerMissing(
            "RabbitMQ: epmd was not found; on Debian and Ubuntu the package 'erlang-base' has it"
        )
    return found[-1]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
