"""A proxy in front of a broker that causes outages at a chosen moment: lost responses, silence, refused connections.

Of the frames of Kafka's protocol it decodes only the length, the API key and the correlation id.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, Self

from broker import Broker, free_ports

PRODUCE, ADD_PARTITIONS_TO_TXN, ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 0, 24, 25, 26, 28
"""API keys of the steps of a transaction."""

OFFSET_FETCH = 9

Moment = Literal["request", "response"]
"""Before the broker receives the request, or after it has processed the request and before the client knows."""


class Proxy:
    """Enter `with Proxy(broker) as proxy:` before `broker.start()`. Clients that use `proxy.address` stay on the proxy.

    The broker gets a separate listener for the proxy, so its connections to itself do not pass through.
    """

    def __init__(self, broker: Broker) -> None:
        broker_port, self._port = free_ports(2)
        self._broker_address = ("127.0.0.1", broker_port)
        base = broker._base_properties()
        for name, port in (("listeners", broker_port), ("advertised.listeners", self._port)):
            broker._properties[name] = f"{base[name]},PROXIED://127.0.0.1:{port}"
        protocols = base["listener.security.protocol.map"]
        broker._properties["listener.security.protocol.map"] = f"{protocols},PROXIED:PLAINTEXT"
        self._listener: socket.socket | None = None
        self._connections: list[_Connection] = []
        self.passing = threading.Event()
        """While cleared, nothing passes in either direction, and connections stay open: a silent network."""
        self.passing.set()
        self.bytes_per_second = float("inf")
        """The bandwidth for requests."""
        self.requests: Counter[int] = Counter()
        """Number of requests by API key."""
        self.on_request: Callable[[int], bool] = lambda _key: True
        """Called with the API key of each request; False closes the connection instead of forwarding it."""
        self.on_response: Callable[[int], bool] = lambda _key: True
        """Called with the API key of each response's request; False closes the connection: the response is lost."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        self.down()

    def reset(self) -> None:
        """Restore the initial state: everything passes."""
        self.on_request = self.on_response = lambda _key: True
        self.bytes_per_second = float("inf")
        self.passing.set()
        self.up()

    def down_at(self, step: int, moment: Moment, seconds: float) -> None:
        """Call `down` at the next request with this API key, or at its response; call `up` after `seconds`."""

        def keep(key: int) -> bool:
            if key == step:
                self.on_request = self.on_response = lambda _key: True
                self.down()
                threading.Timer(seconds, self.up).start()
            return key != step

        if moment == "request":
            self.on_request = keep
        else:
            self.on_response = keep

    def up(self) -> None:
        """Accept connections."""
        if self._listener is None:
            listener = self._listener = socket.create_server(("127.0.0.1", self._port))
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        """Close every connection and refuse new ones, as after the broker's process was killed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._broker_address)
            except OSError:
                client.close()
                continue
            connection = _Connection(self, client, server)
            self._connections.append(connection)
            if listener is not self._listener:
                connection.close()


class _Connection:
    """One connection, with a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._keys: dict[int, int] = {}
        for work in (self._requests, self._responses):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            work()
        self.close()

    def _requests(self) -> None:
        while (frame := _frame(self._client)) is not None:
            self._proxy.passing.wait()
            key, _version, correlation = struct.unpack_from(">hhi", frame, 4)
            self._keys[correlation] = key
            self._proxy.requests[key] += 1
            if not self._proxy.on_request(key):
                return
            self._forward(frame)

    def _forward(self, frame: bytes) -> None:
        step = 64 * 1024
        for start in range(0, len(frame), step):
            part = frame[start : start + step]
            self._server.sendall(part)
            time.sleep(len(part) / self._proxy.bytes_per_second)

    def _responses(self) -> None:
        while (frame := _frame(self._server)) is not None:
            (correlation,) = struct.unpack_from(">i", frame, 4)
            if not self._proxy.on_response(self._keys.pop(correlation, -1)):
                return
            self._proxy.passing.wait()
            self._client.sendall(frame)

    def close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _frame(end: socket.socket) -> bytes | None:
    """One frame with its length; None at the end of the connection."""
    head = _receive(end, 4)
    if head is None:
        return None
    body = _receive(end, int.from_bytes(head, "big"))
    return None if body is None else head + body


def _receive(end: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = end.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
