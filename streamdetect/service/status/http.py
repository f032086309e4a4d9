"""`/metrics`, `/healthz`, `/readyz` and the status page, by the standard library's HTTP server.

It runs beside the loop and only reads the vitals, so it answers also while the state is restored, while this instance
stands by and while the brokers are away.
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


class Answer(NamedTuple):
    """What to send back."""

    status: int
    content_type: str
    body: bytes


class Site:
    """What there is to see, without a network: a path and an Accept header in, an answer out."""

    def __init__(self, vitals: RunStatus) -> None:
        self._vitals = vitals
        self._metrics = Metrics(vitals)
        self._page = Page(vitals)

    def answer(self, path: str, accept: str = "") -> Answer:
        if path == "/metrics":
            body, content_type = self._metrics.exposition(accept)
            return Answer(200, content_type, body)
        if path == "/healthz":
            return self._verdict(
                None if self._vitals.alive else f"nothing has moved for {self._vitals.still_seconds():.0f} s"
            )
        if path == "/readyz":
            return self._verdict(self._vitals.unready())
        if path == "/":
            return Answer(200, "text/html; charset=utf-8", self._page.whole().encode())
        if path == "/part":
            return Answer(200, "text/html; charset=utf-8", self._page.part().encode())
        return Answer(404, _PLAIN, b"not found; there is /, /metrics, /healthz and /readyz\n")

    @staticmethod
    def _verdict(objection: str | None) -> Answer:
        return (
            Answer(200, _PLAIN, b"ok\n")
            if objection is None
            else Answer(503, _PLAIN, f"{objection}\n".encode())
        )


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD, one request a connection."""

    server: _Server
    server_version = "streamdetect"
    sys_version = ""
    timeout = _SOCKET_SECONDS

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        if not self.server.is_meant(self.headers.get("Host")):
            answer = Answer(421, _PLAIN, b"this server is asked for under another name; see http.host\n")
        else:
            answer = self.server.site.answer(urlsplit(self.path).path, self.headers.get("Accept", ""))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        log.debug("%s: %s", self.client_address[0], format % args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], site: Site) -> None:
        self.address_family = family
        self.site = site
        self._slots = threading.BoundedSemaphore(_MOST_AT_ONCE)
        # Bound to loopback: a page of somebody else's, whose name resolves to us, may not read this one.
        self._only_local = ipaddress.ip_address(address[0]).is_loopback
        super().__init__(address, _Handler)

    def is_meant(self, host: str | None) -> bool:
        """Whether a request's Host header names this machine, where only this machine may ask."""
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
        """A client that went away, mostly."""
        del request
        log.debug("while answering %s: %s", client_address, sys.exception())


@contextmanager
def serving(settings: HttpSettings, vitals: RunStatus) -> Iterator[None]:
    """Serve until the end of the block. Raises ConfigError for an address that this machine cannot have.

    A port that is taken is tried again every few seconds: detection matters more than being watched, and a standby on
    the same machine has it soon.
    """
    family, address = _resolved(settings)
    site, done = Site(vitals), threading.Event()

    def bound() -> _Server | None:
        return _bound(family, address, site, settings)

    server = bound()
    if server is None:
        log.warning(
            "http.port %d is taken by another program, so there are no metrics and no probes yet; trying again every "
            "%g s. Give each instance on this machine its own http.port",
            settings.port,
            _RETRY_SECONDS,
        )
    thread = threading.Thread(
        target=_serve,
        args=(server, bound, done),
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
    server: _Server | None, bound: Callable[[], _Server | None], done: threading.Event, *, chosen: bool
) -> None:
    while server is None:
        if done.wait(_RETRY_SECONDS):
            return
        try:
            server = bound()
        except ConfigError as error:
            log.warning("%s", error)
    # Told only where nobody can know: a start that fails should say why, and nothing else.
    log.log(
        logging.INFO if chosen else logging.DEBUG, "metrics, health and status at http://%s/", _shown(server)
    )
    with server:
        threading.Thread(
            target=server.serve_forever, args=(0.2,), name="streamdetect-http-accept", daemon=True
        ).start()
        done.wait()
        server.shutdown()


def _resolved(settings: HttpSettings) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ConfigError(f"http.host {settings.host} is no address of this machine: {error}.") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _bound(
    family: socket.AddressFamily, address: tuple[str, int], site: Site, settings: HttpSettings
) -> _Server | None:
    """None if the port is taken."""
    try:
        return _Server(family, address, site)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise ConfigError(
            f"http.host {settings.host} and http.port {settings.port} cannot be listened on: {error.strerror}. "
            "Choose an address of this machine and a port above 1023."
        ) from error


def _shown(server: _Server) -> str:
    host, port = str(server.server_address[0]), server.server_address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
