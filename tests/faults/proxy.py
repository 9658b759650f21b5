"""A TCP proxy of ours between the processes under test and a server: cut, silent, or losing one answer."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress

#: Bytes read at once.
CHUNK = 65536
#: Requests of more bytes than these can be torn.
TORN_BYTES = 200


class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.doomed = False

    def other(self, end: socket.socket) -> socket.socket:
        return self.server if end is self.client else self.client

    def reset(self) -> None:
        """Close both ends with RST: what is under way is lost, and both sides learn of it."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class Proxy:
    """Forwards to ``127.0.0.1:port`` from :attr:`port`, in one thread, until closed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: set[_Pair] = set()
        self._lock = threading.RLock()
        self._silent = threading.Event()
        self._closing = threading.Event()
        self._fatal: bytes | None = None
        self._swallowed: bytes | None = None
        self._tearing = False
        self.answers_lost = 0
        self.requests_lost = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def retarget(self, port: int) -> None:
        """Send new connections to another server, as a fail-over does."""
        self._target = port

    def cut(self) -> int:
        """Reset all connections; return how many there were. New ones are let through."""
        with self._lock:
            pairs, count = list(self._pairs), len(self._pairs)
            for pair in pairs:
                self._drop(pair)
        return count

    def stall(self) -> None:
        """Let no byte through any more, in connections old and new, without closing any."""
        self._silent.set()

    def flow(self) -> None:
        """Let bytes through again."""
        self._silent.clear()

    def lose_answer_to(self, words: bytes) -> None:
        """Let the next request that holds ``words`` reach the server, and its answer nobody."""
        self._fatal = words

    def lose_request_with(self, words: bytes) -> None:
        """Let the next request that holds ``words`` reach nobody, and reset its connection."""
        self._swallowed = words

    def tear(self) -> None:
        """Let half of the next larger request through, and reset its connection."""
        self._tearing = True

    def close(self) -> None:
        """End the thread and all connections."""
        self._closing.set()
        self._thread.join()
        self.cut()
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._silent.is_set():
                self._closing.wait(0.05)
                continue
            for key, _ in self._selector.select(0.05):
                with self._lock, suppress(OSError, ValueError, KeyError):
                    if key.data is None:
                        self._accept()
                    else:
                        self._forward(key.data, key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(10)  # a frozen server must not hold this thread for ever
            self._selector.register(end, selectors.EVENT_READ, pair)

    def _forward(self, pair: _Pair, end: socket.socket) -> None:
        if pair not in self._pairs:
            return
        try:
            data = end.recv(CHUNK)
            if not data:
                self._drop(pair)
            elif pair.doomed and end is pair.server:
                self.answers_lost += 1
                self._drop(pair)
            elif self._swallowed is not None and end is pair.client and self._swallowed in data:
                self._swallowed = None
                self.requests_lost += 1
                self._drop(pair)
            elif self._tearing and end is pair.client and len(data) > TORN_BYTES:
                self._tearing = False
                pair.server.sendall(data[: len(data) // 2])
                self._drop(pair)
            else:
                pair.other(end).sendall(data)
        except OSError:
            self._drop(pair)
            return
        if self._fatal is not None and end is pair.client and self._fatal in data:
            self._fatal, pair.doomed = None, True

    def _drop(self, pair: _Pair) -> None:
        if pair in self._pairs:
            self._pairs.remove(pair)
            for end in (pair.client, pair.server):
                self._selector.unregister(end)
            pair.reset()
