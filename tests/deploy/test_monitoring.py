"""Alert rules and dashboard: checked by promtool, Grafana's types and a real Prometheus that scrapes a real run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from product import event

from broker import Broker, cache_folder, free_ports, locked
from commands import Message, live, produce, write_run_config
from paths import ROOT
from streamdetect.config import load_settings
from streamdetect.service.status.http import Endpoints
from streamdetect.service.status.state import RunStatus
from tools import find, need, skip_or_fail

MakeTopic = Callable[..., str]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yaml"
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/streamdetect.json").read_text(encoding="utf-8")
)
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

SCHEMA = ("@grafana/schema@12.1.0", "typescript@5.9.3")
"""The types of the Grafana version in docker/compose.yaml."""
CORE_PANELS = {"row", "stat", "timeseries", "state-timeline"}
TSC = ("--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext")
# A JSON file has the values of enums where TypeScript expects their names.
TYPED = """import type { Dashboard } from "@grafana/schema";
type Plain<T> = 0 extends 1 & T ? T : T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export const dashboard: Plain<Dashboard> = """


@dataclass(frozen=True)
class Query:
    """A query of the dashboard; its series must have the labels of `legend`."""

    panel: str
    expr: str
    legend: str = ""

    def substituted(self, job: str, instance: str, group: str) -> str:
        """The query as Grafana sends it with one choice per variable."""
        chosen = {"$job": job, "$instance": instance, "$group": group}
        times = {"$__rate_interval": "1m", "$__range": "5m"}
        text = self.expr
        for name, value in (chosen | times).items():
            text = text.replace(name, value)
        assert "$" not in text, text
        return text


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules)
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]


def variables() -> dict[str, str]:
    """Name and query of each variable that is filled from Prometheus."""
    found = DASHBOARD["templating"]["list"]
    return {item["name"]: item["query"]["query"] for item in found if item["type"] == "query"}


def promtool(*arguments: str, text: str | None = None) -> None:
    """Run promtool; its output is the failure message."""
    need("promtool")
    done = subprocess.run(
        [str(find("promtool")), *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=PROMETHEUS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- rules


def test_the_rules_are_valid() -> None:
    """Promtool parses every expression and template, with all lints."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name)


def test_the_rule_cases_pass() -> None:
    """The cases of rules_test.yaml, including the annotation texts."""
    promtool("test", "rules", "rules_test.yaml")


def test_each_rule_has_a_firing_and_a_silent_case() -> None:
    """Without both, the test above would pass for an alert that is never tested."""
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    queried = [
        (item["alertname"], bool(item["exp_alerts"]))
        for case in cases
        for item in case.get("alert_rule_test", ())
    ]
    for fires in (True, False):
        assert {name for name, expected in queried if expected == fires} == alerts().keys()
    healthy = [
        case for case in cases if any("ALERTS" in item["expr"] for item in case.get("promql_expr_test", ()))
    ]
    assert len(healthy) >= 5


def test_each_alert_has_severity_summary_description_and_runbook() -> None:
    """The description names the instance, and the runbook is a section of docs/operations.md."""
    for name, rule in alerts().items():
        assert name.startswith("Streamdetect")
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert "{{ $labels." in rule["annotations"]["description"] or name == "StreamdetectDown"


def test_alerts_and_runbook_sections_match() -> None:
    """Sections are in the order of the rules; each says what to check, what to do and how urgent it is."""
    _, _, after = OPERATIONS.partition("\n## Alert rules and what to do\n")
    text = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    title, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
    assert "deploy/prometheus/rules.yaml" in title
    assert [section.split("\n", 1)[0] for section in sections] == list(alerts())
    for section in sections:
        for part in ("**Check**", "**Do**", "**Urgency**"):
            assert section.count(part) == 1, section


# -- names


def known_metrics() -> set[str]:
    """The metrics of a scrape, by its TYPE lines."""
    body = Endpoints(RunStatus(load_settings(None))).get("/metrics").body.decode()
    found = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", body, re.MULTILINE):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return found


def metric_names(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:streamdetect|process|python)_\w+", re.sub(r'"[^"]*"', "", expr)))


def test_rules_and_dashboard_use_existing_metrics() -> None:
    """A renamed metric would silence an alert for good."""
    exprs = [rule["expr"] for rule in alerts().values()] + [query.expr for query in queries()]
    exprs += [text.removeprefix("label_values(") for text in variables().values()]
    names = {name for expr in exprs for name in metric_names(expr)}
    assert len(names) > 25
    assert names <= known_metrics()


def test_the_dashboard_shows_every_metric() -> None:
    """Except the offset of the last checkpoint, which the headroom panel covers."""
    shown = {name for query in queries() for name in metric_names(query.expr)}
    shown |= {name for text in variables().values() for name in metric_names(text)}
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in known_metrics()
        if name.startswith("streamdetect_")
    }
    assert ours - {re.sub(r"_bucket$", "", name) for name in shown} == {"streamdetect_checkpoint_offset"}


# -- dashboard


def test_panels_are_complete() -> None:
    """Core panel types only; each has a title, a description, a unit and queries on the datasource variable."""
    ids = Counter(panel["id"] for panel in DASHBOARD["panels"])
    assert set(ids.values()) == {1}
    assert {panel["type"] for panel in DASHBOARD["panels"]} == CORE_PANELS
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [target["datasource"] for target in panel["targets"]] == [source] * len(panel["targets"])
        refs = Counter(target["refId"] for target in panel["targets"])
        assert set(refs.values()) == {1}, panel["title"]


def test_each_selector_uses_the_variables() -> None:
    """A query without job and instance would aggregate unrelated series."""
    for query in queries():
        for name, labels in re.findall(r"\b((?:streamdetect|process)_\w+)(\{[^}]*\})?", query.expr):
            assert 'job=~"$job", instance=~"$instance"' in labels, f"{query.panel}: {name}"


def test_panels_do_not_overlap() -> None:
    """Each cell of the 24-column grid belongs to one panel."""
    cells = Counter(
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(cells.values()) == {1}
    assert max(x for x, _ in cells) == 23


def grafana_types() -> Path:
    """A folder with Grafana's types and a compiler, downloaded once into the cache."""
    need("npm", "node")
    folder = cache_folder() / "grafana-schema"
    with locked(cache_folder() / "grafana-lock"):
        marker = folder / "fetched"
        if not marker.exists() or marker.read_text() != " ".join(SCHEMA):
            folder.mkdir(parents=True, exist_ok=True)
            command = [
                "npm",
                "install",
                "--prefix",
                str(folder),
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                *SCHEMA,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                skip_or_fail(f"npm could not fetch {' '.join(SCHEMA)}: {done.stderr[-500:]}")
            marker.write_text(" ".join(SCHEMA))
    return folder


def type_errors(dashboard: str, folder: Path) -> str:
    """The compiler's output for a dashboard."""
    types = grafana_types()
    (folder / "node_modules").symlink_to(types / "node_modules")
    source = folder / "dashboard.ts"
    source.write_text(TYPED + dashboard, encoding="utf-8")
    command = [
        "node",
        str(types / "node_modules/typescript/bin/tsc"),
        *TSC,
        "--target",
        "es2022",
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=folder)
    return done.stdout


def test_the_dashboard_conforms_to_grafanas_types(tmp_path: Path) -> None:
    """Every field, by Grafana's schema; a wrong value is reported."""
    text = json.dumps(DASHBOARD)
    (tmp_path / "right").mkdir()
    assert type_errors(text, tmp_path / "right") == ""
    (tmp_path / "wrong").mkdir()
    assert "absolut" in type_errors(text.replace('"absolute"', '"absolut"', 1), tmp_path / "wrong")


# -- a real Prometheus


class Server:
    """The HTTP API of a running Prometheus."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._url, self._process, self._log = url, process, log

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def series(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query whose value is a finite number."""
        data = self.get("query", query=expr)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return [item for item in data["result"] if math.isfinite(float(item["value"][1]))]

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Server]:
    """A server that scrapes the target every second and evaluates our rules."""
    need("prometheus")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "streamdetect", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        str(find("prometheus")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=folder)
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.kill()
        process.wait()


@dataclass
class Scraped:
    """A run that reads events, and the Prometheus that scrapes it."""

    server: Server
    target: str
    group: str
    wait_for: Callable[[Callable[[], bool]], None]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.target}/metrics", timeout=10) as response:
            return str(response.read().decode())

    def wait_for_series(self, exprs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
        """Wait until each expression has a series; on a timeout, fail with the names of the missing ones."""
        found: dict[str, list[dict[str, Any]]] = {}

        def step() -> bool:
            found.update(
                {
                    name: series
                    for name in exprs.keys() - found.keys()
                    if (series := self.server.series(exprs[name]))
                }
            )
            return found.keys() == exprs.keys()

        try:
            self.wait_for(step)
        except AssertionError as error:
            raise AssertionError(f"no series: {sorted(exprs.keys() - found.keys())}") from error
        return found


@pytest.fixture(scope="module")
def scraped(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A run fed with current events in two partitions and some dead letters, again at each step of a wait."""
    folder = tmp_path_factory.mktemp("scraped")
    topic = broker.make_topic(partitions=2)
    config = write_run_config(
        folder,
        broker,
        topic,
        alerts={"sink": "file", "path": str(folder / "alerts.jsonl")},
        dead_letters={"sink": "file", "path": str(folder / "dead-letters.jsonl")},
    )
    group = yaml.safe_load(Path(config).read_text())["kafka"]["group_id"]
    (port,) = free_ports(1)
    target = f"127.0.0.1:{port}"
    options = ("--set", f"http.port={port}", "--set", "checkpoint.interval=1s")

    def produce_events() -> None:
        now_ms = time.time_ns() // 1_000_000
        some = [Message(event(now_ms - 100 * number)) for number in range(20)]
        produce(broker, topic, [[*some, Message(b"no json"), Message(b"{}")], some])

    with live(folder, config, *options) as running, prometheus(folder, target) as server:

        def wait_for(done: Callable[[], bool]) -> None:
            def produce_and_check() -> bool:
                produce_events()
                return done()

            running.wait_for(produce_and_check)

        running.wait_for(server.ready)
        yield Scraped(server, target, group, wait_for)


def test_every_dashboard_query_returns_data(scraped: Scraped) -> None:
    """At least one series each, with finite values and the labels that the legend shows."""
    queried = {query.substituted("streamdetect", scraped.target, scraped.group): query for query in queries()}
    found = scraped.wait_for_series({expr: expr for expr in queried})
    for expr, query in queried.items():
        wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        for item in found[expr]:
            assert wanted <= item["metric"].keys(), f"{query.panel}: {expr}"


def test_every_dashboard_variable_has_values(scraped: Scraped) -> None:
    """Each returns the existing value, given the choices before it."""
    scraped.wait_for_series({"owner": "streamdetect_work_owned == 1"})
    expected = {"job": "streamdetect", "group": scraped.group, "instance": scraped.target}
    assert list(variables()) == list(expected)
    for name, text in variables().items():
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", text)
        assert found is not None
        series = Query(name, found[1]).substituted(**expected)
        assert scraped.server.get(f"label/{found[2]}/values", **{"match[]": series}) == [expected[name]]


def test_every_rule_has_its_metrics_and_none_fires(scraped: Scraped) -> None:
    """A healthy run exposes every metric of the rules; Prometheus evaluates each rule without error."""
    names = {name for rule in alerts().values() for name in metric_names(rule["expr"])}
    scraped.wait_for_series({name: f"count({name})" for name in names})

    def evaluated() -> list[dict[str, Any]]:
        groups = scraped.server.get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    scraped.wait_for(lambda: all(rule["health"] != "unknown" for rule in evaluated()))
    assert {rule["name"]: rule["health"] for rule in evaluated()} == dict.fromkeys(alerts(), "ok")
    assert [rule["name"] for rule in evaluated() if rule["state"] == "firing"] == []


def test_promtool_accepts_the_metrics(scraped: Scraped) -> None:
    """Names, help texts and types follow Prometheus' conventions, after records and dead letters were read."""
    scraped.wait_for_series({"dead letters": "sum(streamdetect_dead_letters_total) > 0"})
    text = scraped.metrics()
    assert "\nstreamdetect_watermark_timestamp_seconds " in text
    promtool("check", "metrics", text=text)
