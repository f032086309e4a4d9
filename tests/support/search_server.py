"""A real Elasticsearch for tests, built from the jars on Maven Central: mappings, data streams and `create` are real.

It is the server without most of its modules: no security, no ingest pipelines, no x-pack types. `jgo` downloads the
jars once into the cache that the broker uses. The launcher is compiled at start, so a JDK is required.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from broker import cache_folder, free_ports, java, resolved_jars
from tools import need, skip_or_fail

VERSION = "8.19.21"
SERVER = f"org.elasticsearch:elasticsearch:{VERSION}"
NETWORK = f"org.elasticsearch.plugin:transport-netty4:{VERSION}"

JAVA_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

START_SECONDS = 120.0

LAUNCHER = """
import java.nio.file.Path;
import java.util.Map;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

public class Launcher {
    public static void main(String[] args) throws Exception {
        Settings settings = Settings.builder()
            .put("path.home", args[0])
            .put("cluster.name", "test").put("node.name", "test")
            .put("discovery.type", "single-node")
            .put("network.host", "127.0.0.1")
            .put("http.port", args[1]).put("transport.port", args[2])
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        LogConfigurator.configureESLogging();
        LogConfigurator.configureWithoutConfig(settings);
        var config = Path.of(args[0], "config");
        var environment = InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), config, () -> "test");
        var modules = PluginsLoader.loadModulesBundles(environment.modulesDir());
        var plugins = PluginsLoader.loadPluginsBundles(environment.pluginsDir());
        var loader = PluginsLoader.createPluginsLoader(modules, plugins, Map.of(), false);
        new Node(environment, loader).start();
        Thread.sleep(Long.MAX_VALUE);
    }
}
"""


def _jars() -> list[Path]:
    """The server's jars; downloads them if the cache has no complete set."""
    folder = cache_folder() / SERVER.replace(":", "_")
    listing = folder / "jars.txt"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock-search").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jars = [Path(line) for line in listing.read_text().splitlines()] if listing.exists() else []
        if not jars or not all(jar.exists() for jar in jars):
            shutil.rmtree(folder, ignore_errors=True)
            jars = [Path(path) for path in resolved_jars((SERVER, NETWORK), folder / "repository")]
            listing.write_text("\n".join(map(str, jars)))
    return jars


def _install_network(home: Path, jars: Sequence[Path]) -> None:
    """Install the HTTP and transport module as the distribution does: a folder with its jars and its descriptor."""
    folder = home / "modules" / "transport-netty4"
    folder.mkdir(parents=True)
    for jar in jars:
        shutil.copy(jar, folder)
    (module,) = (jar for jar in jars if jar.name.startswith("transport-netty4-"))
    with zipfile.ZipFile(module) as opened:
        described = opened.read("META-INF/es-plugins/transport-netty4/plugin-descriptor.properties").decode()
    # Here the server is on the class path, so this plugin cannot be loaded as a Java module.
    lines = [line for line in described.splitlines() if not line.startswith("modulename")]
    (folder / "plugin-descriptor.properties").write_text("\n".join(lines))


class SearchServer:
    """One node with its own data; `with SearchServer() as server:` starts it and deletes everything at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="streamdetect-search-"))
        self._ports = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self._discard)

    def __enter__(self) -> Self:
        jars = _jars()
        network = [jar for jar in jars if "netty" in jar.name]
        home = self.folder / "home"
        for name in ("config", "plugins", "lib"):
            (home / name).mkdir(parents=True)
        _install_network(home, network)
        launcher = self.folder / "Launcher.java"
        launcher.write_text(LAUNCHER)
        path = os.pathsep.join(str(jar) for jar in jars if jar not in network)
        options = [*JAVA_OPTIONS, f"-Des.nativelibs.path={self.folder}", "-cp", path]
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["java", *options, str(launcher), str(home), *map(str, self._ports)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready(self._process)
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request; returns the status and the decoded response. A list is sent as NDJSON, as `_bulk` requires."""
        lines = body if isinstance(body, list) else [body]
        data = None if body is None else "".join(json.dumps(line) + "\n" for line in lines).encode()
        content_type = "application/x-ndjson" if isinstance(body, list) else "application/json"
        url = f"http://127.0.0.1:{self._ports[0]}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": content_type}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/_cluster/health?wait_for_status=yellow&timeout=10s")[0] == 200:
                    return
            time.sleep(0.1)
        output = (self.folder / "server.log").read_text(errors="replace")
        raise RuntimeError(f"Elasticsearch did not start:\n{output[-6000:]}")

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        atexit.unregister(self._discard)
        shutil.rmtree(self.folder, ignore_errors=True)


def started() -> Iterator[SearchServer]:
    """The generator of a fixture; skips the test where the launcher cannot be compiled."""
    need("java", "javac")
    if java() != shutil.which("java"):
        skip_or_fail("the installed Java is older than 17")
    with SearchServer() as server:
        yield server
