"""The real image and compose file: built by a private engine, run without privileges, stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # it has no types at all
from packaging.requirements import Requirement
from packaging.version import Version

import streamdetect
from broker import Broker
from engine import KAFKA_IMAGE, Engine, compose
from paths import ROOT, SAMPLE
from streamdetect.config import load_settings
from tools import find, need

MakeTopic = Callable[..., str]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
PROFILES = [[], ["--profile", "monitoring"], ["--profile", "elastic"]]
IMAGE = "streamdetect:test"
REVISION = "0123abc"
RESTRICTED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", "512m", "--pids-limit", "64"),
)
WAIT = 90.0

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A private engine with the substitute base image and the real image."""
    with Engine() as started:
        started.make_python()
        build = ["build", "--network", "host", "-f", str(DOCKER / "Dockerfile"), "-t", IMAGE]
        build += ["--build-arg", f"VERSION={streamdetect.__version__}", "--build-arg", f"REVISION={REVISION}"]
        started.docker(*build, str(ROOT), seconds=240)
        yield started


def wait_for(done: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT
    while not done():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.3)


def inspect(engine: Engine, what: str) -> Any:
    return json.loads(engine.docker("inspect", what))[0]


def health(engine: Engine, container: str) -> Any:
    return inspect(engine, container)["State"]["Health"]


def run(engine: Engine, *arguments: str, options: tuple[str, ...] = (), check: bool = True) -> Any:
    """Run a container to its end, without network and privileges."""
    words = ["/usr/bin/docker", "run", "--rm", "--network", "none", *RESTRICTED, *options, IMAGE, *arguments]
    return engine.tool(*words, check=check)


def python(engine: Engine, code: str) -> str:
    """Run Python code in the image as the image's user; returns its output."""
    return str(run(engine, "-c", code, options=("--entrypoint", "python")).stdout)


# -- the files, without an engine


def locked(name: str) -> dict[str, Version]:
    """Project -> version of every entry of a lock file."""
    lines = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (DOCKER / name).read_text(), re.MULTILINE)
    return {project: Version(version) for project, version in lines}


@pytest.mark.parametrize(
    ("lock", "table", "key"),
    [("requirements.lock", "project", "dependencies"), ("build.lock", "build-system", "requires")],
)
def test_the_lock_satisfies_pyproject(lock: str, table: str, key: str) -> None:
    """Each dependency is locked to a version in its range: a raised range needs `make lock`."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())[table][key]
    found = locked(lock)
    assert wanted
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in found, f"{lock} lacks {name}"
        assert found[name] in requirement.specifier, f"{lock} has {name} {found[name]}, not {requirement}"


@pytest.mark.parametrize("lock", ["requirements.lock", "build.lock"])
def test_every_locked_entry_has_hashes(lock: str) -> None:
    """Only artifacts with a known hash are installed."""
    text = (DOCKER / lock).read_text()
    entries = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked(lock)) > 0
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_dockerfile_passes_hadolint() -> None:
    """Without warnings."""
    need("hadolint")
    done = subprocess.run(
        [str(find("hadolint")), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_yaml_files_pass_yamllint() -> None:
    """All YAML files of the compose setup."""
    need("yamllint")
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"
    done = subprocess.run(
        [str(find("yamllint")), "--strict", "-d", rules, DOCKER], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_conforms_to_the_specification() -> None:
    """It is valid by the published schema."""
    need("check-jsonschema")
    done = subprocess.run(
        [str(find("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def compose_config(*arguments: str) -> Any:
    """The compose file as compose resolves it."""
    need("docker-compose")
    done = subprocess.run(
        [compose(), "-f", COMPOSE, *arguments, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda words: words[-1] if words else "default")
def test_compose_services_are_restricted(profile: list[str]) -> None:
    """Tags are pinned, ports bind to localhost, nothing gains privileges, and our services have no capabilities."""
    services = compose_config(*profile)["services"]
    assert {"kafka", "topics", "streamdetect", "generator", "viewer"} <= set(services)
    for name, service in services.items():
        assert re.fullmatch(r"\S+:(dev|v?[0-9]+\.[0-9]+\.[0-9]+)", service["image"]), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
    for name in ("streamdetect", "generator"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda words: words[-1] if words else "default")
def test_compose_mounts_what_exists(profile: list[str]) -> None:
    """The engine would silently create a directory in place of a missing file."""
    for service in compose_config(*profile)["services"].values():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), volume["source"]


def test_the_substitute_has_the_name_of_the_real_image() -> None:
    """The compose file uses the same Kafka version as the tests."""
    assert compose_config()["services"]["kafka"]["image"] == KAFKA_IMAGE


def test_the_configuration_is_valid() -> None:
    """The file that compose mounts has every setting that `run` requires."""
    settings = load_settings(DOCKER / "streamdetect.yaml", environ={}, required_for="run")
    assert str(settings.checkpoint.path).startswith("/var/lib/streamdetect/")


# -- the image


def test_user_and_writable_directories(engine: Engine) -> None:
    """Not root; only the volume and /tmp are writable."""
    assert inspect(engine, IMAGE)["Config"]["User"] == "10001:10001"
    code = (
        "import os\n"
        "print(os.getuid(), os.getgid())\n"
        "places = '/ /etc /opt/streamdetect /usr/local/lib /var/lib /var/lib/streamdetect /tmp'\n"
        "for place in places.split():\n"
        "    try:\n"
        "        open(place + '/probe', 'w').close()\n"
        "        print(place)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    assert python(engine, code).splitlines() == ["10001 10001", "/var/lib/streamdetect", "/tmp"]


def test_image_metadata(engine: Engine) -> None:
    """Labels, stop signal, volume and health check; none of them needs a shell."""
    config = inspect(engine, IMAGE)["Config"]
    assert config["Labels"]["org.opencontainers.image.version"] == streamdetect.__version__
    assert config["Labels"]["org.opencontainers.image.revision"] == REVISION
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/var/lib/streamdetect"]
    assert config["Entrypoint"] == ["streamdetect"]
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_no_installer_is_left(engine: Engine) -> None:
    """No pip and no build backend; the installed packages are those of the lock."""
    code = (
        "import importlib.metadata as m\n"
        "print(*sorted(f'{d.name.lower().replace(\"_\", \"-\")}=={d.version}' for d in m.distributions()), sep='\\n')"
    )
    wanted = {f"{name}=={version}" for name, version in locked("requirements.lock").items()}
    assert set(python(engine, code).split()) == {*wanted, f"streamdetect=={streamdetect.__version__}"}


def test_help(engine: Engine) -> None:
    """The entry point is the command."""
    assert "replay" in run(engine, "--help").stdout


def test_replay_of_a_mounted_file(engine: Engine) -> None:
    """Without network, the output equals that of a local run, byte for byte."""
    options = ("-v", f"{SAMPLE}:/data/day.jsonl.zst:ro")
    inside = run(engine, "replay", "-q", "/data/day.jsonl.zst", options=options)
    here = subprocess.run(
        [str(find("streamdetect")), "replay", "-q", SAMPLE], capture_output=True, text=True, check=True
    )
    assert inside.stdout == here.stdout
    assert json.loads(inside.stdout.splitlines()[0])["event"]["action"] == "opened"


def test_a_live_run_becomes_healthy_alerts_and_stops(
    engine: Engine, broker: Broker, make_topic: MakeTopic, tmp_path: Path
) -> None:
    """With a real broker: it becomes healthy, alerts on the output of `generate`, and exits with 0 on SIGTERM."""
    events, alerts = make_topic(partitions=2, retention_ms="-1"), make_topic(retention_ms="-1")
    config = tmp_path / "streamdetect.yaml"
    kafka = {"bootstrap_servers": [broker.bootstrap], "topics": [events], "group_id": uuid.uuid4().hex}
    port = 21_000 + os.getpid() % 9_000
    document = {"kafka": kafka, "alerts": {"topic": alerts}, "dead_letters": {"sink": "none"}}
    config.write_text(yaml.safe_dump(document))
    config.chmod(0o644)
    mount = ("--network", "host", *RESTRICTED, "-v", f"{config}:/etc/streamdetect/streamdetect.yaml:ro")
    environment = ("-e", f"STREAMDETECT__HTTP__PORT={port}", "-e", "STREAMDETECT__HTTP__HOST=127.0.0.1")
    engine.docker("run", "-d", "--name", "live", "--health-interval=1s", *mount, *environment, IMAGE)
    try:
        destination = ["--topic", events, "--config", "/etc/streamdetect/streamdetect.yaml"]
        plan = ["--hosts", "5", "--hours", "6", "--beacon", "20s,2s"]
        engine.docker("run", "--rm", *mount, IMAGE, "generate", *plan, *destination)
        wait_for(
            lambda: count(broker, alerts) > 0, lambda: engine.tool("/usr/bin/docker", "logs", "live").stderr
        )
        wait_for(lambda: health(engine, "live")["Status"] == "healthy", lambda: str(health(engine, "live")))
        started = time.monotonic()
        engine.docker("stop", "--time", "40", "live")
        assert time.monotonic() - started < 30
        assert inspect(engine, "live")["State"]["ExitCode"] == 0
    finally:
        engine.docker("rm", "-f", "-v", "live", check=False)


def count(broker: Broker, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    try:
        partition = TopicPartition(topic, 0)
        return int(consumer.end_offsets([partition])[partition])
    finally:
        consumer.close()


def test_the_health_check_fails_without_a_run(engine: Engine) -> None:
    """One line when nothing answers on the port."""
    options = ("--entrypoint", "/opt/streamdetect/bin/python")
    probe = run(engine, "-I", "/opt/streamdetect/healthcheck.py", options=options, check=False)
    assert probe.returncode == 1
    assert probe.stderr.startswith("no answer on port 9464")


# -- the whole demonstration


def test_compose_up_shows_an_alert(engine: Engine) -> None:
    """The default profile, unchanged: broker, topics, events, detection, and the alert in the viewer's log."""
    engine.make_kafka()
    variables = {"STREAMDETECT_IMAGE": IMAGE, "KAFKA_PORT": "19094", "STREAMDETECT_PORT": "19464"}
    words = [*(f"{name}={value}" for name, value in variables.items()), compose(), "-f", str(COMPOSE)]
    started = time.monotonic()
    try:
        engine.tool("env", *words, "up", "-d", "--pull", "never", "--no-build", seconds=150)

        def logs(*names: str) -> str:
            return engine.tool("env", *words, "logs", "--no-color", *names).stdout

        wait_for(lambda: '"action":"opened"' in logs("viewer"), logs)
        assert time.monotonic() - started < 90, "a minute is promised, on a machine that does nothing else"
    finally:
        engine.tool("env", *words, "down", "--volumes", "--timeout", "5", check=False)
