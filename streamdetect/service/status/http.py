"""`/metrics`, `/healthz`, `/readyz` and the status page, on the standard library's HTTP server.

It runs in threads of its own and only reads the run status, so it also answers during a restore, on a standby, and
during an outage of the brokers.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

from streamdetect.config import HttpSettings
from streamdetect.errors import ConfigError
from streamdetect.service.status.metrics import Metrics
from streamdetect.service.status.page import POLICY, Page
from streamdetect.service.status.state import RunStatus

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_SOCKET_SECONDS = 10.0
_MOST_AT_ONCE = 16
_PLAIN = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes


class Endpoints:
    """The responses to all paths, without a network."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status
        self._metrics = Metrics(status)
        self._page = Page(status)

    def get(self, path: str, accept: str = "") -> Response:
        """The response to a path and an Accept header."""
        if path == "/metrics":
            body, content_type = self._metrics.exposition(accept)
            return Response(200, content_type, body)
        if path == "/healthz":
            return self._probe(self._status.not_alive_reason())
        if path == "/readyz":
            return self._probe(self._status.not_ready_reason())
        if path == "/":
            return Response(200, "text/html; charset=utf-8", self._page.document().encode())
        if path == "/part":
            return Response(200, "text/html; charset=utf-8", self._page.content().encode())
        return Response(404, _PLAIN, b"not found; the paths are /, /metrics, /healthz and /readyz\n")

    @staticmethod
    def _probe(failure: str | None) -> Response:
        if failure is None:
            return Response(200, _PLAIN, b"ok\n")
        return Response(503, _PLAIN, f"{failure}\n".encode())


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD, one request per connection."""

    server: _Server
    server_version = "streamdetect"
    sys_version = ""
    timeout = _SOCKET_SECONDS

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        if not self.server.accepts_host(self.headers.get("Host")):
            response = Response(421, _PLAIN, b"the Host header does not name this machine; see http.host\n")
        else:
            response = self.server.endpoints.get(urlsplit(self.path).path, self.headers.get("Accept", ""))
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        log.debug("%s: %s", self.client_address[0], format % args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], endpoints: Endpoints) -> None:
        self.address_family = family
        self.endpoints = endpoints
        self._slots = threading.BoundedSemaphore(_MOST_AT_ONCE)
        # Bound to loopback: a foreign web page whose name resolves to this address (DNS rebinding) must not read it.
        self._only_local = ipaddress.ip_address(address[0]).is_loopback
        super().__init__(address, _Handler)

    def accepts_host(self, host: str | None) -> bool:
        """False if bound to loopback and the Host header of the request names another machine."""
        if not self._only_local or host is None:
            return True
        name = urlsplit(f"//{host}").hostname or ""
        try:
            return name == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def process_request(self, request: object, client_address: object) -> None:
        if not self._slots.acquire(timeout=_SOCKET_SECONDS):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._slots.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Called with errors while responding; mostly the client has disconnected."""
        del request
        log.debug("while responding to %s: %s", client_address, sys.exception())


@contextmanager
def status_server(settings: HttpSettings, status: RunStatus) -> Iterator[None]:
    """Serve within the block. Raises ConfigError for an address that does not belong to this machine.

    If the port is in use, binding is retried every few seconds: detection must not depend on monitoring, and a
    standby on the same machine gets the port when the other instance exits.
    """
    family, address = _resolve(settings)
    endpoints, done = Endpoints(status), threading.Event()

    def bind() -> _Server | None:
        return _bind(family, address, endpoints, settings)

    server = bind()
    if server is None:
        log.warning(
            "http.port %d is in use by another program, so there are no metrics and probes yet; retrying every %g s. "
            "Give each instance on this machine its own http.port",
            settings.port,
            _RETRY_SECONDS,
        )
    thread = threading.Thread(
        target=_serve,
        args=(server, bind, done),
        kwargs={"chosen": settings.port == 0},
        name="streamdetect-http",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=2.0)


def _serve(
    server: _Server | None, bind: Callable[[], _Server | None], done: threading.Event, *, chosen: bool
) -> None:
    while server is None:
        if done.wait(_RETRY_SECONDS):
            return
        try:
            server = bind()
        except ConfigError as error:
            log.warning("%s", error)
    # At level INFO only if the system chose the port: a start that fails should log its reason and nothing else.
    log.log(
        logging.INFO if chosen else logging.DEBUG,
        "metrics, probes and status page at http://%s/",
        _host_and_port(server),
    )
    with server:
        threading.Thread(
            target=server.serve_forever, args=(0.2,), name="streamdetect-http-accept", daemon=True
        ).start()
        done.wait()
        server.shutdown()


def _resolve(settings: HttpSettings) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"http.host {settings.host} is not an address of this machine: {error}.") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _bind(
    family: socket.AddressFamily, address: tuple[str, int], endpoints: Endpoints, settings: HttpSettings
) -> _Server | None:
    """None if the port is in use."""
    try:
        return _Server(family, address, endpoints)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(
            f"http.host {settings.host} and http.port {settings.port} cannot be bound: {error.strerror}. Choose an "
            "address of this machine and a port above 1023."
        ) from error


def _host_and_port(server: _Server) -> str:
    host, port = str(server.server_address[0]), server.server_address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
