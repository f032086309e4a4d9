"""The Helm chart: Kubernetes and the program accept what it renders, and it does what docs/kubernetes.md says."""

from __future__ import annotations

import copy
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from paths import ROOT
from streamdetect.config import load_settings
from streamdetect.service.status.state import ALIVE_SECONDS
from tools import find, need

CHART = ROOT / "deploy" / "helm" / "streamdetect"
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")

Document = dict[str, Any]

KAFKA = {"bootstrap_servers": ["kafka-0.kafka:9092", "kafka-1.kafka:9092"], "topics": ["endpoint.events"]}
MINIMAL: Document = {"config": {"kafka": KAFKA}}
DIGEST = "sha256:" + "0123456789abcdef" * 4
SECRETS: Document = {
    "config": {
        "kafka": {
            **KAFKA,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": "streamdetect",
        }
    },
    "kafkaSecret": {
        "existingSecret": "kafka-login",
        "passwordKey": "password",
        "caKey": "ca.crt",
        "certKey": "tls.crt",
        "keyKey": "tls.key",
    },
}
PEER = {"namespaceSelector": {"matchLabels": {"team": "soc"}}}
EVERYTHING: Document = {
    **SECRETS,
    "replicas": 2,
    "image": {"repository": "registry.example/streamdetect", "pullSecrets": [{"name": "registry"}]},
    "config": {**SECRETS["config"], "limits": {"max_keys": 30_000_000}, "checkpoint": {"interval": "1m"}},
    "persistence": {"size": "50Gi", "storageClass": "fast", "annotations": {"backup": "no"}},
    "networkPolicy": {
        "from": [PEER],
        "kafkaTo": [PEER],
        "kafkaPorts": [9093, 9094],
        "extraEgress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "podLabels": {"team": "soc"},
    "podAnnotations": {"note": "x"},
    "priorityClassName": "high",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "soc", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "extraEnv": [{"name": "STREAMDETECT__TIME__LOOKBACK", "value": "12h"}],
    "extraVolumes": [{"name": "out", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "out", "mountPath": "/out"}],
}
CASES: dict[str, Document] = {
    "minimal": MINIMAL,
    "secrets": SECRETS,
    "everything": EVERYTHING,
    "digest": {**MINIMAL, "image": {"digest": DIGEST, "tag": "9.9.9"}},
    "standby": {**MINIMAL, "replicas": 2},
    "shared": {**MINIMAL, "replicas": 2, "persistence": {"existingClaim": "common"}},
    "rebuild": {**MINIMAL, "startOption": "--rebuild"},
    "plain": {
        **MINIMAL,
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
    },
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _helm() -> None:
    need("helm")


def run(program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    path = find(program)
    assert path is not None
    return subprocess.run(
        [path, *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )


def helm(verb: str, values: Document, *more: str) -> subprocess.CompletedProcess[str]:
    """A command such as `helm template` for the release `sd` in the namespace `soc`."""
    name = [] if verb == "lint" else ["sd"]
    return run(
        "helm",
        verb,
        *name,
        str(CHART),
        "--namespace=soc",
        "--values=-",
        *more,
        stdin=yaml.safe_dump(values),
    )


@functools.cache
def text(case: str) -> str:
    done = helm("template", CASES[case])
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(case: str) -> list[Document]:
    return parsed(text(case))


def parsed(manifests: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(manifests) if document is not None]


def only(found: list[Document], kind: str, ending: str = "") -> Document:
    """The only document of a kind whose name is the release's plus `ending`."""
    (one,) = (
        item
        for item in found
        if item["kind"] == kind and item["metadata"]["name"] == f"sd-streamdetect{ending}"
    )
    return one


def stateful_set(case: str) -> Document:
    spec: Document = only(documents(case), "StatefulSet")["spec"]
    return spec


def pod(case: str) -> Document:
    spec: Document = stateful_set(case)["template"]["spec"]
    return spec


def container(case: str) -> Document:
    (one,) = pod(case)["containers"]
    found: Document = one
    return found


def configuration(case: str) -> str:
    data: str = only(documents(case), "ConfigMap")["data"]["streamdetect.yaml"]
    return data


# -- accepted by Helm, Kubernetes and the program


@every_case
def test_helm_lint_passes(case: str) -> None:
    """`helm lint --strict` passes with each set of values and with none."""
    for values in ({}, CASES[case]):
        done = helm("lint", values, "--strict")
        assert done.returncode == 0, done.stdout + done.stderr


@every_case
def test_kubernetes_accepts_the_rendered_documents(case: str, tmp_path: Path) -> None:
    """Every document of a built-in kind is valid in Kubernetes 1.33, without unknown fields."""
    need("kubernetes-validate")
    file = tmp_path / "rendered.yaml"
    custom = {"ServiceMonitor", "PrometheusRule"}
    builtin = [item for item in documents(case) if item["kind"] not in custom]
    file.write_text(yaml.safe_dump_all(builtin), encoding="utf-8")
    done = run("kubernetes-validate", "-k", "1.33", "--strict", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == len(builtin)


@every_case
def test_the_program_accepts_the_config_map(case: str, tmp_path: Path) -> None:
    """The real `streamdetect config check` passes, and every given setting is in the ConfigMap."""
    file = tmp_path / "streamdetect.yaml"
    file.write_text(configuration(case), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "streamdetect", "config", "check", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    settings, given = yaml.safe_load(configuration(case)), CASES[case]["config"]
    assert settings["kafka"].items() >= given["kafka"].items()
    assert settings.get("limits") == given.get("limits")
    assert settings["log"] == DEFAULTS["config"]["log"]


def test_missing_brokers_or_topics_are_an_error() -> None:
    """Values that cannot work are rejected before anything is installed."""
    for kafka in ({}, {"topics": ["a"]}, {"bootstrap_servers": ["kafka:9092"]}):
        done = helm("template", {"config": {"kafka": kafka}})
        assert done.returncode != 0
        assert "Set config.kafka.bootstrap_servers, and config.kafka.topics" in done.stderr


# -- consistent with the image and the program


def test_the_pod_matches_the_dockerfile() -> None:
    """User, port, command line and directories are those of the Dockerfile."""
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    context = pod("minimal")["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == tuple(map(int, user))
    assert context["fsGroup"] == context["runAsGroup"]
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert [item["containerPort"] for item in container("minimal")["ports"]] == [int(port)]
    (command,) = re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert container("minimal")["args"] == json.loads(command)
    (directory,) = re.findall(r"^WORKDIR (/var/.+)$", DOCKERFILE, re.MULTILINE)
    mounts = {item["name"]: item["mountPath"] for item in container("minimal")["volumeMounts"]}
    assert mounts["state"] == directory
    assert command.count(f'"{mounts["config"]}/streamdetect.yaml"') == 1


def test_the_checkpoint_is_in_the_volume() -> None:
    """In a subdirectory, apart from what a file system creates at its root."""
    path = Path(yaml.safe_load(configuration("everything"))["checkpoint"]["path"])
    mounts = {item["name"]: item["mountPath"] for item in container("everything")["volumeMounts"]}
    assert path.parent == Path(mounts["state"])
    (claim,) = stateful_set("everything")["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"


def test_an_existing_claim_is_shared() -> None:
    """An existing claim replaces the volume claim templates."""
    volumes = {item["name"]: item for item in pod("shared")["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"] == {"claimName": "common"}
    assert "volumeClaimTemplates" not in stateful_set("shared")


def test_a_digest_takes_precedence_over_the_tag() -> None:
    """Without either, the image tag is the chart's appVersion."""
    assert container("digest")["image"] == f"streamdetect@{DIGEST}"
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    assert container("minimal")["image"] == f"streamdetect:{version}"


def test_the_chart_has_the_version_of_the_program() -> None:
    """A release raises both."""
    import streamdetect  # noqa: PLC0415

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == streamdetect.__version__


def test_the_program_listens_on_the_port_of_probes_and_services() -> None:
    """Environment settings of the container override the file and set the port of the probes and the Services."""
    env = {item["name"]: item["value"] for item in container("minimal")["env"]}
    settings = load_settings(None, ("kafka.topics=[a]",), environ=env)
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", DEFAULTS["http"]["port"])
    for ending in ("", "-metrics"):
        (port,) = only(documents("minimal"), "Service", ending)["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (settings.http.port, "http")


# -- security


@every_case
def test_the_pod_is_restricted(case: str) -> None:
    """It meets the restricted Pod Security Standard, has a read-only root file system and no token."""
    spec, container_spec = pod(case), container(case)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_spec["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec["volumes"])
    writable = {item["mountPath"] for item in container_spec["volumeMounts"] if not item.get("readOnly")}
    assert writable - {"/out"} == {"/var/lib/streamdetect", "/tmp"}


def test_the_service_account_has_no_token_and_no_rights() -> None:
    """No role is bound to it."""
    found = documents("everything")
    assert only(found, "ServiceAccount")["automountServiceAccountToken"] is False
    assert not any("Role" in item["kind"] for item in found)
    assert pod("everything")["serviceAccountName"] == "sd-streamdetect"
    assert pod("plain")["serviceAccountName"] == "default"


def test_a_secret_is_mounted_and_referenced_by_name() -> None:
    """Its keys become the files that the settings point to; the chart creates no Secret."""
    assert "Secret" not in {item["kind"] for item in documents("secrets")}
    volume = next(item for item in pod("secrets")["volumes"] if item["name"] == "kafka")
    mount = next(item for item in container("secrets")["volumeMounts"] if item["name"] == "kafka")
    files = {f"{mount['mountPath']}/{item['path']}": item["key"] for item in volume["secret"]["items"]}
    kafka = yaml.safe_load(configuration("secrets"))["kafka"]
    named = {name: files[kafka[name]] for name in ("password_file", "ca_file", "cert_file", "key_file")}
    keys = SECRETS["kafkaSecret"]
    assert list(named.values()) == [keys["passwordKey"], keys["caKey"], keys["certKey"], keys["keyKey"]]
    assert len(files) == 4
    assert volume["secret"]["secretName"] == "kafka-login"
    assert volume["secret"]["defaultMode"] & 0o007 == 0
    assert mount["readOnly"] is True


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"kafka": {**KAFKA, "password": "hunter2"}}},
        {"config": {"kafka": {**KAFKA, "client": {"sasl_plain_password": "hunter2"}}}},
        {"config": {"kafka": {**KAFKA, "client": {"ssl_password": "hunter2"}}}},
        {**MINIMAL, "extraEnv": [{"name": "STREAMDETECT__KAFKA__PASSWORD", "value": "hunter2"}]},
    ],
)
def test_a_secret_given_as_a_value_is_rejected(values: Document) -> None:
    """It would end up in a ConfigMap or in the StatefulSet; the error does not show it either."""
    done = helm("template", values)
    assert done.returncode != 0
    assert "hunter2" not in done.stdout + done.stderr


def test_a_secret_in_the_environment_can_be_referenced() -> None:
    """The same variable from a Secret is accepted."""
    source = {"secretKeyRef": {"name": "kafka-login", "key": "password"}}
    env = [{"name": "STREAMDETECT__KAFKA__PASSWORD", "valueFrom": source}]
    done = helm("template", {**MINIMAL, "extraEnv": env})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("secret", [{"passwordKey": "password"}, {"existingSecret": "kafka-login"}])
def test_an_incomplete_secret_is_rejected(secret: Document) -> None:
    """Keys without a Secret would be missing files; a Secret without keys would be mounted in full."""
    done = helm("template", {**MINIMAL, "kafkaSecret": secret})
    assert done.returncode != 0
    assert "existingSecret" in done.stderr


def test_the_network_policy_allows_only_monitoring_dns_and_kafka() -> None:
    """Ingress: the port, from the listed peers. Egress: DNS and the brokers' ports."""
    policy = only(documents("minimal"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {"from": DEFAULTS["networkPolicy"]["from"], "ports": [{"protocol": "TCP", "port": "http"}]}
    ]
    out = [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]]
    assert out == [("UDP", 53), ("TCP", 53), ("TCP", 9092)]
    assert all("to" not in rule for rule in policy["egress"])


def test_the_network_policy_follows_the_values() -> None:
    """Ports and peers of Kafka are replaced, extra egress is appended, and an empty peer list denies all ingress."""
    policy = only(documents("everything"), "NetworkPolicy")["spec"]
    assert policy["ingress"][0]["from"] == [PEER]
    _, kafka, other = policy["egress"]
    assert [port["port"] for port in kafka["ports"]] == [9093, 9094]
    assert kafka["to"] == [PEER]
    assert other == EVERYTHING["networkPolicy"]["extraEgress"][0]
    closed = helm("template", {**MINIMAL, "networkPolicy": {"from": []}})
    assert only(parsed(closed.stdout), "NetworkPolicy")["spec"]["ingress"] == []


# -- availability


def test_the_probes_allow_for_restore_and_rebuild() -> None:
    """Startup may take 30 min, a stalled loop fails liveness after at least 4 min, readiness uses `/readyz`."""
    container_spec = container("minimal")
    startup, liveness, readiness = (
        container_spec[f"{name}Probe"] for name in ("startup", "liveness", "readiness")
    )
    assert startup["httpGet"] == liveness["httpGet"] == {"path": "/healthz", "port": "http"}
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 30 * 60
    assert ALIVE_SECONDS + liveness["failureThreshold"] * liveness["periodSeconds"] >= 4 * 60
    assert readiness["httpGet"] == {"path": "/readyz", "port": "http"}
    assert readiness["failureThreshold"] * readiness["periodSeconds"] <= 60


def test_with_a_standby_readiness_uses_healthz() -> None:
    """Otherwise a rollout would wait for the standby forever, and a drain could never move the owner."""
    assert container("standby")["readinessProbe"]["httpGet"]["path"] == "/healthz"
    chosen = helm("template", {**MINIMAL, "replicas": 2, "probes": {"readiness": {"path": "/readyz"}}})
    (container_spec,) = only(parsed(chosen.stdout), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container_spec["readinessProbe"]["httpGet"]["path"] == "/readyz"
    budget = only(documents("standby"), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_standbys_start_in_parallel_and_prefer_other_nodes() -> None:
    """Anti-affinity is preferred, not required; a single pod has none."""
    assert stateful_set("standby")["podManagementPolicy"] == "Parallel"
    (term,) = pod("standby")["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = stateful_set("standby")["template"]["metadata"]["labels"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "affinity" not in pod("minimal")


def test_the_grace_period_covers_the_final_checkpoint() -> None:
    """20 s without Kafka plus 58 s for a million changed keys beside a busy loop (benchmarks/results.md)."""
    assert pod("minimal")["terminationGracePeriodSeconds"] >= 20 + 58


def test_the_memory_request_covers_max_keys() -> None:
    """The request covers the default `limits.max_keys` at 260 bytes each plus 220 MB; the limit covers twice that."""
    keys = load_settings(None, ("kafka.topics=[a]",), environ={}).limits.max_keys
    needed = keys * 260 + 220_000_000
    memory = {name: given["memory"] for name, given in DEFAULTS["resources"].items()}
    assert all(given.endswith("Gi") for given in memory.values())
    assert int(memory["requests"][:-2]) << 30 >= needed
    assert int(memory["limits"][:-2]) << 30 >= 2 * needed


def test_only_a_changed_setting_restarts_the_pod() -> None:
    """The pod template has a checksum of the settings; a ServiceMonitor does not change it."""

    def template(values: Document) -> Document:
        done = helm("template", values)
        found: Document = only(parsed(done.stdout), "StatefulSet")["spec"]["template"]
        return found

    before = template(MINIMAL)
    changed = template({"config": {"kafka": KAFKA, "time": {"lookback": "12h"}}})
    assert before["metadata"]["annotations"] != changed["metadata"]["annotations"]
    assert before["spec"] == changed["spec"]
    assert template({**MINIMAL, "metrics": {"serviceMonitor": {"enabled": True}}}) == before


def test_a_start_option_is_rejected_with_a_standby() -> None:
    """`--rebuild` is appended to the arguments; with two replicas it would exit with code 6."""
    assert container("rebuild")["args"] == [*container("minimal")["args"], "--rebuild"]
    done = helm("template", {**MINIMAL, "startOption": "--rebuild", "replicas": 2})
    assert done.returncode != 0
    assert "startOption needs replicas 1" in done.stderr


@every_case
def test_selectors_match_the_pod_labels(case: str) -> None:
    """For Services, PodDisruptionBudget, NetworkPolicy and StatefulSet."""
    labels = stateful_set(case)["template"]["metadata"]["labels"].items()
    found = {
        f"{item['kind']} {item['metadata']['name']}": item["spec"]
        for item in documents(case)
        if "spec" in item
    }
    selectors = [
        spec["selector"].get("matchLabels", spec["selector"])
        for name, spec in found.items()
        if "selector" in spec and not name.startswith("ServiceMonitor")
    ]
    selectors += [spec["podSelector"]["matchLabels"] for spec in found.values() if "podSelector" in spec]
    assert len(selectors) == (3 if case == "plain" else 5)
    assert all(selector.items() <= labels for selector in selectors)


def test_prometheus_scrapes_each_pod_once() -> None:
    """The ServiceMonitor selects one of the two Services: the one that includes pods that are not ready."""
    monitor = only(documents("everything"), "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [item for item in documents("everything") if item["kind"] == "Service"]
    selected = [item for item in services if wanted <= item["metadata"]["labels"].items()]
    assert [item["metadata"]["name"] for item in selected] == ["sd-streamdetect-metrics"]
    assert selected[0]["spec"]["publishNotReadyAddresses"] is True
    assert selected[0]["metadata"]["labels"][monitor["jobLabel"]] == "streamdetect"
    assert [item["port"] for item in monitor["endpoints"]] == [selected[0]["spec"]["ports"][0]["name"]]


def test_all_names_fit_with_a_long_release_name() -> None:
    """Pod names and revision labels have at most 63 characters, even with the longest release name."""
    done = run("helm", "template", "r" * 53, str(CHART), "--values=-", stdin=yaml.safe_dump(MINIMAL))
    names = [item["metadata"]["name"] for item in parsed(done.stdout)]
    assert max(len(name) for name in names if not name.endswith("-metrics")) + len("-1234567890") <= 63
    assert max(map(len, names)) <= 63


# -- alerts


def test_the_rules_are_those_of_prometheus() -> None:
    """The chart contains a copy of deploy/prometheus/rules.yaml and does not render any `{{ }}` in it."""
    original = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    assert (CHART / "files" / "rules.yaml").read_text(encoding="utf-8") == original
    rendered = only(documents("everything"), "PrometheusRule")
    assert rendered["spec"] == yaml.safe_load(original)
    assert rendered["metadata"]["labels"]["release"] == "prometheus"


SERIES = 'namespace="soc", pod="sd-streamdetect-0", container="streamdetect"'
ENDED = f"kube_pod_container_status_last_terminated_exitcode{{{SERIES}}}"
ENDED_AT = f"kube_pod_container_status_last_terminated_timestamp{{{SERIES}}}"


def ending(code: int, times: str, at: str, firing: tuple[str, ...]) -> Document:
    """A promtool case: the exit code, when it ended (one sample a minute), the alerts that fire at `at`."""
    return {
        "interval": "1m",
        "input_series": [{"series": ENDED, "values": f"{code}x90"}, {"series": ENDED_AT, "values": times}],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": int(alert in firing)}],
            }
            for alert in ("StreamdetectFenced", "StreamdetectKeepsEnding")
        ],
    }


def test_alerts_on_exit_codes(tmp_path: Path) -> None:
    """Fenced fires for an hour; another code fires only when it recurs, and a clean stop never does."""
    need("promtool")
    spec = only(documents("everything"), "PrometheusRule", "-kubernetes")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    recurring, once = "0+60x90", "0x90"
    cases = [
        ending(6, once, "30m", ("StreamdetectFenced",)),
        ending(6, once, "61m", ()),
        ending(5, recurring, "10m", ()),
        ending(5, recurring, "20m", ("StreamdetectKeepsEnding",)),
        ending(5, once, "20m", ()),
        ending(0, recurring, "20m", ()),
    ]
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    done = run("promtool", "test", "rules", str(tmp_path / "tests.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_on_exit_codes_can_be_disabled() -> None:
    """For clusters without kube-state-metrics."""
    rule = {"enabled": True, "kubernetesAlerts": False}
    done = helm("template", {**MINIMAL, "metrics": {"prometheusRule": rule}})
    kinds = [item["kind"] for item in parsed(done.stdout)]
    assert kinds.count("PrometheusRule") == 1


# -- values


def closed(values: Document, outer: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Path of every mapping of values.yaml whose names the chart defines."""
    kubernetes = {"config", "resources", "podSecurityContext", "securityContext", "updateStrategy"}
    yield outer
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in kubernetes:
            yield from closed(value, (*outer, name))


@pytest.mark.parametrize("path", list(closed(DEFAULTS)), ids=".".join)
def test_an_unknown_value_is_rejected(path: tuple[str, ...]) -> None:
    """At every level that the chart defines."""
    values = copy.deepcopy(MINIMAL)
    at = values
    for name in path:
        at = at.setdefault(name, {})
    at["replica"] = 1
    done = helm("template", values)
    assert done.returncode != 0
    assert "replica" in done.stderr


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicas", -1),
        ("replicas", "two"),
        ("image.digest", "sha256:abc"),
        ("image.pullPolicy", "Sometimes"),
        ("config.http", {"port": 9000}),
        ("config.checkpoint", {"path": "/tmp"}),
        ("config.kafka.bootstrap_servers", ["kafka"]),
        ("config.kafka.password_file", "/etc/passwd"),
        ("startOption", "--rebuild-all"),
        ("http.port", 80),
        ("persistence.size", "five"),
        ("persistence.accessModes", []),
        ("probes.readiness.path", "/metrics"),
        ("probes.startup.failureThreshold", 0),
        ("terminationGracePeriodSeconds", 5),
        ("networkPolicy.kafkaPorts", ["kafka"]),
        ("metrics.serviceMonitor.interval", "often"),
    ],
)
def test_an_invalid_value_is_rejected(path: str, value: object) -> None:
    """The schema error names the value before anything is installed."""
    values = copy.deepcopy(MINIMAL)
    *outer, last = path.split(".")
    at = values
    for name in outer:
        at = at.setdefault(name, {})
    at[last] = value
    done = helm("template", values)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert last in done.stderr


def test_the_schema_covers_all_values() -> None:
    """Schema and values.yaml have the same top-level names; `global` is Helm's own."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"].keys() - {"global"} == DEFAULTS.keys()


def test_every_value_is_documented() -> None:
    """docs/kubernetes.md names each top-level value and no value that does not exist."""
    documented = re.findall(r"`([a-zA-Z.]+)`", "".join(re.findall(r"^\|([^|]+)\|", GUIDE, re.MULTILINE)))
    known = set(paths(DEFAULTS))
    assert DEFAULTS.keys() - {name.partition(".")[0] for name in documented} == set()
    assert {name for name in documented if name.partition(".")[0] in DEFAULTS} <= known
    assert set(re.findall(r"--set ([\w.]+)=", GUIDE)) <= known


def paths(values: Document, outer: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield outer + name
        if isinstance(value, dict):
            yield from paths(value, f"{outer}{name}.")


def test_the_example_values_of_the_guide_render(tmp_path: Path) -> None:
    """Each YAML block of the guide is a set of values, merged over the first."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)]
    assert len(blocks) >= 2
    first = tmp_path / "first.yaml"
    first.write_text(yaml.safe_dump(blocks[0]), encoding="utf-8")
    for block in blocks:
        done = run(
            "helm",
            "template",
            "sd",
            str(CHART),
            f"--values={first}",
            "--values=-",
            stdin=yaml.safe_dump(block),
        )
        assert done.returncode == 0, done.stderr
