"""A proxy before a broker that can lose an answer, fall silent, or be away: outages at a chosen moment.

It knows the frames of Kafka's protocol only as far as their length, API key and correlation id.
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
"""API keys of a transaction's steps."""

OFFSET_FETCH = 9

Moment = Literal["request", "answer"]
"""Before the broker has heard of a step, or when it has done it and nobody knows."""


class Proxy:
    """`with Proxy(broker) as proxy:` before `broker.start()`; clients use `proxy.address` and stay behind it.

    The broker gets a listener of its own for it, so that its talk with itself does not pass here.
    """

    def __init__(self, broker: Broker) -> None:
        inside, self._port = free_ports(2)
        self._inside = ("127.0.0.1", inside)
        base = broker._base_properties()
        for name, port in (("listeners", inside), ("advertised.listeners", self._port)):
            broker._properties[name] = f"{base[name]},PROXIED://127.0.0.1:{port}"
        protocols = base["listener.security.protocol.map"]
        broker._properties["listener.security.protocol.map"] = f"{protocols},PROXIED:PLAINTEXT"
        self._listener: socket.socket | None = None
        self._pairs: list[_Pair] = []
        self.passing = threading.Event()
        """Cleared, nothing passes in either direction, and connections stay: a network that fell silent."""
        self.passing.set()
        self.bytes_per_second = float("inf")
        """How fast requests pass."""
        self.seen: Counter[int] = Counter()
        """How many requests came by, by API key."""
        self.on_request: Callable[[int], bool] = lambda _key: True
        """Asked for each request by its API key; False cuts the connection in place of passing it on."""
        self.on_answer: Callable[[int], bool] = lambda _key: True
        """Asked for each answer by the API key of its request; False cuts the connection: the answer is lost."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.calm()
        self.down()

    def calm(self) -> None:
        """As at the start: everything passes."""
        self.on_request = self.on_answer = lambda _key: True
        self.bytes_per_second = float("inf")
        self.passing.set()
        self.up()

    def down_at(self, step: int, moment: Moment, seconds: float) -> None:
        """Down when the next request of this kind, or its answer, comes by; up again after so long."""

        def passes(key: int) -> bool:
            if key == step:
                self.on_request = self.on_answer = lambda _key: True
                self.down()
                threading.Timer(seconds, self.up).start()
            return key != step

        if moment == "request":
            self.on_request = passes
        else:
            self.on_answer = passes

    def up(self) -> None:
        """Take connections, again after `down`."""
        if self._listener is None:
            listener = self._listener = socket.create_server(("127.0.0.1", self._port))
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        """Cut every connection and refuse new ones, as when the broker's process has died."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._inside)
            except OSError:
                client.close()
                continue
            pair = _Pair(self, client, server)
            self._pairs.append(pair)
            if listener is not self._listener:
                pair.cut()


class _Pair:
    """One connection: two threads, one for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._keys: dict[int, int] = {}
        for work in (self._requests, self._answers):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            work()
        self.cut()

    def _requests(self) -> None:
        while (frame := _frame(self._client)) is not None:
            self._proxy.passing.wait()
            key, _version, correlation = struct.unpack_from(">hhi", frame, 4)
            self._keys[correlation] = key
            self._proxy.seen[key] += 1
            if not self._proxy.on_request(key):
                return
            self._pass_on(frame)

    def _pass_on(self, frame: bytes) -> None:
        step = 64 * 1024
        for start in range(0, len(frame), step):
            part = frame[start : start + step]
            self._server.sendall(part)
            time.sleep(len(part) / self._proxy.bytes_per_second)

    def _answers(self) -> None:
        while (frame := _frame(self._server)) is not None:
            (correlation,) = struct.unpack_from(">i", frame, 4)
            if not self._proxy.on_answer(self._keys.pop(correlation, -1)):
                return
            self._proxy.passing.wait()
            self._client.sendall(frame)

    def cut(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _frame(end: socket.socket) -> bytes | None:
    """Length and what it announces; None at the end of the connection."""
    head = _exactly(end, 4)
    if head is None:
        return None
    body = _exactly(end, int.from_bytes(head, "big"))
    return None if body is None else head + body


def _exactly(end: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = end.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
