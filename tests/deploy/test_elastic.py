"""The shipped files for Elastic: templates against a real Elasticsearch, the rest by grammar and option names."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from elastic_options import BEATS, LOGSTASH
from logstash import Parser, Plugin
from search_server import SearchServer, started

from paths import ROOT

ELASTIC = ROOT / "configs" / "elastic"
SAMPLE = ROOT / "streamdetect" / "samples" / "day.jsonl.zst"
TEMPLATE: dict[str, Any] = json.loads((ELASTIC / "index-template.json").read_text(encoding="utf-8"))
RULE: dict[str, Any] = json.loads((ELASTIC / "promotion-rule.ndjson").read_text(encoding="utf-8"))
STREAM = "logs-streamdetect.alert-default"
ADDED = {"event.ingested", "destination.domain"}
"""Mapped, but not in the alerts of the sample: Logstash adds the first; events with a domain have the second."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def alerts() -> list[Json]:
    """The alerts of the sample day, from the real command."""
    command = [sys.executable, "-m", "streamdetect", "replay", str(SAMPLE)]
    output = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in output.splitlines()]


def mapped(properties: Json, before: str = "") -> dict[str, str]:
    """The type of each mapped field; a disabled object is one field."""
    found: dict[str, str] = {}
    for name, definition in properties.items():
        if "properties" in definition:
            found |= mapped(definition["properties"], f"{before}{name}.")
        else:
            found[before + name] = "disabled" if definition.get("enabled") is False else definition["type"]
    return found


def values(document: Json, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from values(value, f"{before}{name}.")
        else:
            yield before + name, value


FIELDS = mapped(TEMPLATE["template"]["mappings"]["properties"])
FITS: dict[str, tuple[type, ...]] = {
    "keyword": (str,),
    "text": (str,),
    "ip": (str,),
    "date": (str, int),
    "long": (int,),
    "float": (int, float),
}


def fits(kind: str, value: Any) -> bool:
    """Whether a JSON value, or each item of a list, is valid for a field of that type."""
    if kind == "disabled" or value is None:
        return True
    return all(isinstance(item, FITS[kind]) for item in (value if isinstance(value, list) else [value]))


# -- the index template


def test_every_field_of_an_alert_is_mapped(alerts: list[Json]) -> None:
    """Exactly these fields are mapped, so a field added to alerts must be added to the template."""
    found = {name for alert in alerts for name, _ in values(alert)}
    assert found - FIELDS.keys() == set()
    assert FIELDS.keys() - found == ADDED


def test_every_value_of_an_alert_fits_its_type(alerts: list[Json]) -> None:
    """Elasticsearch would accept a number in a text field, then search it as text."""
    pairs = [(name, value) for alert in alerts for name, value in values(alert)]
    assert [pair for pair in pairs if not fits(FIELDS[pair[0]], pair[1])] == []
    assert not fits("long", "47")
    assert not fits("keyword", ["a", 1])


def test_types_match_ecs() -> None:
    """For fields that other queries and rules rely on (ECS 8.17 field reference)."""
    ecs = {
        "event.duration": "long",
        "event.severity": "long",
        "event.risk_score": "float",
        "destination.ip": "ip",
    }
    ecs |= {"related.ip": "ip", "process.pid": "long", "destination.port": "long", "event.kind": "keyword"}
    assert {name: FIELDS[name] for name in ecs} == ecs


@pytest.fixture(scope="module")
def server() -> Iterator[SearchServer]:
    """A real Elasticsearch with the template installed."""
    for node in started():
        status, response = node.call("PUT", "/_index_template/streamdetect-alerts", TEMPLATE)
        assert (status, response) == (200, {"acknowledged": True})
        yield node


def create(server: SearchServer, stream: str, *documents: Json) -> list[Json]:
    """Bulk create under event.id, as the shipped pipelines do; returns one result per document."""
    actions = [{"create": {"_index": stream, "_id": document["event"]["id"]}} for document in documents]
    body = [line for pair in zip(actions, documents, strict=True) for line in pair]
    status, response = server.call("POST", "/_bulk?refresh=true", body)
    assert status == 200
    return [item["create"] for item in response["items"]]


def count(server: SearchServer, stream: str, query: Json) -> int:
    found: int = server.call("POST", f"/{stream}/_count", {"query": query})[1]["count"]
    return found


def test_elasticsearch_stores_each_alert_once(server: SearchServer, alerts: list[Json]) -> None:
    """The template creates a data stream; sending all alerts again returns 409 for each."""
    stream = "logs-streamdetect.alert-twice"
    first, second = create(server, stream, *alerts), create(server, stream, *alerts)
    assert [result["status"] for result in first] == [201] * len(alerts)
    assert all(result["_index"].startswith(f".ds-{stream}-") for result in first)
    assert [result["status"] for result in second] == [409] * len(alerts)
    assert {result["error"]["type"] for result in second} == {"version_conflict_engine_exception"}
    assert count(server, stream, {"match_all": {}}) == len(alerts) > 1


def test_after_a_rollover_an_id_can_be_created_again(server: SearchServer, alerts: list[Json]) -> None:
    """The limit in docs/elastic.md: ids are unique within a backing index, not within the stream."""
    stream = "logs-streamdetect.alert-rolled"
    create(server, stream, alerts[0])
    status, response = server.call("POST", f"/{stream}/_rollover")
    assert (status, response["rolled_over"]) == (200, True)
    assert [result["status"] for result in create(server, stream, alerts[0])] == [201]


def test_alerts_are_searched_by_type(server: SearchServer, alerts: list[Json]) -> None:
    """Networks, ranges and dates can be queried; pane_counts is stored but not indexed."""
    stream = "logs-streamdetect.alert-searched"
    create(server, stream, *alerts)
    (address,) = {alert["destination"]["ip"] for alert in alerts}
    total = max(alert["streamdetect"]["figures"]["count_connections"] for alert in alerts)
    assert count(server, stream, {"term": {"destination.ip": f"{address}/16"}}) == len(alerts)
    assert count(server, stream, {"range": {"streamdetect.figures.count_connections": {"gte": total}}}) == 1
    assert count(server, stream, {"range": {"streamdetect.figures.first_seen_ms": {"gte": "2026-03-02"}}})
    assert count(server, stream, {"match": {"message": "CHROME.EXE"}}) == len(alerts)
    assert count(server, stream, {"exists": {"field": "streamdetect.pane_counts"}}) == 0
    stored = server.call("GET", f"/{stream}/_search?size=10")[1]["hits"]["hits"]
    by_id = {alert["event"]["id"]: alert for alert in alerts}
    assert {hit["_id"]: hit["_source"] for hit in stored} == by_id


def test_unmapped_fields_are_stored_but_not_mapped(server: SearchServer, alerts: list[Json]) -> None:
    """Fields added by a shipper do not extend the mapping; a value of the wrong type is rejected."""
    stream = "logs-streamdetect.alert-others"
    unmapped, mistyped = copy.deepcopy(alerts[0]), copy.deepcopy(alerts[1])
    unmapped["agent"] = {"name": "shipper"}
    mistyped["destination"]["ip"] = "somewhere"
    created, rejected = create(server, stream, unmapped, mistyped)
    assert (created["status"], rejected["status"]) == (201, 400)
    assert rejected["error"]["type"] == "document_parsing_exception"
    assert count(server, stream, {"term": {"agent.name": "shipper"}}) == 0
    assert (
        server.call("GET", f"/{stream}/_search")[1]["hits"]["hits"][0]["_source"]["agent"]
        == unmapped["agent"]
    )
    ((_, index),) = server.call("GET", f"/{stream}/_mapping")[1].items()
    assert mapped(index["mappings"]["properties"]) == FIELDS


# -- the promotion rule


def test_the_promotion_rule_matches_opened_alerts(server: SearchServer, alerts: list[Json]) -> None:
    """Its KQL query, run as a Lucene query (AND in capitals), finds the alert that opened and none of the updates."""
    stream = "logs-streamdetect.alert-ruled"
    create(server, stream, *alerts)
    query = {"query_string": {"query": RULE["query"].replace(" and ", " AND ").replace(": ", ":")}}
    opened = [alert for alert in alerts if alert["event"]["action"] == "opened"]
    assert count(server, stream, query) == len(opened) < len(alerts)


def test_the_promotion_rule_uses_mapped_fields() -> None:
    """Overrides, highlighted fields and the query use mapped fields; the index pattern is the template's."""
    named = {
        RULE["rule_name_override"],
        RULE["timestamp_override"],
        *RULE["investigation_fields"]["field_names"],
    }
    named |= {mapping["field"] for mapping in RULE["severity_mapping"] + RULE["risk_score_mapping"]}
    named |= set(re.findall(r"([\w.]+):", RULE["query"]))
    assert named - FIELDS.keys() == set()
    assert RULE["index"] == TEMPLATE["index_patterns"]
    assert [mapping["value"] for mapping in RULE["severity_mapping"]] == ["21", "47", "73", "99"]


def test_the_promotion_rule_has_the_fields_an_import_requires() -> None:
    """One line, with rule_id, name, description, type, risk score and severity; disabled by default."""
    text = (ELASTIC / "promotion-rule.ndjson").read_text(encoding="utf-8")
    assert text.count("\n") == 1
    assert {"rule_id", "name", "description", "type", "risk_score", "severity", "query"} <= RULE.keys()
    assert (RULE["type"], RULE["language"], RULE["enabled"]) == ("query", "kuery", False)


# -- Logstash


def read(name: str) -> list[Plugin]:
    return Parser((ELASTIC / "logstash" / name).read_text(encoding="utf-8")).parse()


def unknown_settings(plugin: Plugin) -> list[str]:
    """Settings that are in the documentation of neither the plugin nor its codec."""
    known = LOGSTASH[f"{plugin.kind} {plugin.name}"]
    found = [f"{plugin.name}.{name}" for name in plugin.settings if name not in known]
    nested = [value for value in plugin.settings.values() if isinstance(value, Plugin)]
    return found + [name for inner in nested for name in unknown_settings(inner)]


@pytest.mark.parametrize("name", ["alerts-to-elasticsearch.conf", "to-kafka.conf"])
def test_logstash_settings_are_documented(name: str) -> None:
    """Including the lines for TLS and logins, which are commented out in the file."""
    text = (ELASTIC / "logstash" / name).read_text(encoding="utf-8")
    secured = re.sub(r"^( *)# (\w+ => )", r"\1\2", text, flags=re.MULTILINE)
    assert secured.count("\n") == text.count("\n")
    plain, full = Parser(text).parse(), Parser(secured).parse()
    assert sum(len(plugin.settings) for plugin in full) >= sum(len(plugin.settings) for plugin in plain) + 5
    assert [name for plugin in full for name in unknown_settings(plugin)] == []


@pytest.mark.parametrize(
    "text",
    [
        "input { kafka { topics => ['a' 'b'] } }",
        "input { kafka { topics = 'a' } }",
        "input { kafka { topics => 'a' }",
        "output { if { stdout { } } }",
        "output { else { stdout { } } }",
        "out { stdout { } }",
        "output { stdout { codec => 'a' codec => 'b' } }",
        "",
    ],
)
def test_the_parser_is_strict(text: str) -> None:
    """None of these is a valid configuration."""
    with pytest.raises(ValueError, match="line 1: expected"):
        Parser(text).parse()


def test_an_undocumented_setting_is_found() -> None:
    """In a codec too."""
    (plugin,) = Parser("output { kafka { topic => 'a' codec => json { x1 => 2 } } }").parse()
    assert unknown_settings(plugin) == ["kafka.topic", "json.x1"]


def test_logstash_writes_alerts_once() -> None:
    """Reads committed alerts only, unchanged; creates under event.id; indexes nothing without an id."""
    plugins = {f"{plugin.kind} {plugin.name}": plugin for plugin in read("alerts-to-elasticsearch.conf")}
    source, target = plugins["input kafka"].settings, plugins["output elasticsearch"].settings
    assert source["isolation_level"] == "read_committed"
    assert source["codec"] == Plugin("codec", "json", {"ecs_compatibility": "disabled"})
    assert (target["action"], target["document_id"]) == ("create", "%{[event][id]}")
    assert target["index"].replace("${STREAMDETECT_NAMESPACE:default}", "default") == STREAM
    # The plugin rejects document_id together with data_stream => true.
    assert target["data_stream"] == "false"
    assert plugins["output elasticsearch"].conditions == ("if [event][id]",)


def test_logstash_writes_events_as_json() -> None:
    """JSON codec (the plain codec would produce dead letters), keyed, acknowledged by all replicas."""
    (target,) = (plugin.settings for plugin in read("to-kafka.conf") if plugin.kind == "output")
    assert (target["codec"], target["acks"]) == ("json", "all")
    assert target["message_key"] == "%{[@metadata][endpoint]}"


# -- Beats and Elastic Agent

BEATS_FILES = sorted(ELASTIC.glob("*/*.yml"))


def flat(document: Json, before: str = "") -> Json:
    """Nested and dotted names are equivalent in Beats."""
    found: Json = {}
    for name, value in document.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def sections(document: Json) -> Iterator[tuple[str, Json]]:
    """(section name, its options) of each section of a file that has a list of allowed options."""
    for name in ("output.kafka", "output.elasticsearch"):
        if name in document:
            yield name, flat(document[name])
    for output in document.get("outputs", {}).values():
        yield "outputs.default", flat(output)
    for source in document.get("filebeat.inputs", ()):
        yield f"input {source['type']}", flat(source)
        yield from (pair for parser in source.get("parsers", ()) for pair in parser.items())
    for log in document.get("winlogbeat.event_logs", ()):
        yield "winlogbeat.event_logs", flat(log)
    for processor in document.get("processors", ()):
        yield from ((name, flat(options)) for name, options in processor.items())


def unknown_options(document: Json) -> list[str]:
    return [f"{name}: {key}" for name, options in sections(document) for key in options.keys() - BEATS[name]]


def with_logins(path: Path) -> Json:
    """A file including its lines for TLS and logins, which are commented out."""
    text = path.read_text(encoding="utf-8")
    logins = r"^( *)# ((?:username|password|sasl\.mechanism|ssl\.\w+|api_key): )"
    document: Json = yaml.safe_load(re.sub(logins, r"\1\2", text, flags=re.MULTILINE))
    return document


@pytest.mark.parametrize("path", BEATS_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_beats_options_are_documented(path: Path) -> None:
    """Options of inputs, parsers, processors and outputs, including the lines for TLS and logins."""
    document = with_logins(path)
    options = {key for _, section in sections(document) for key in section}
    assert {"ssl.certificate_authorities", "hosts"} <= options
    assert unknown_options(document) == []


def test_an_undocumented_option_is_found() -> None:
    """In an output, an input and a processor."""
    document = {
        "output.kafka": {"host": ["a"]},
        "filebeat.inputs": [{"type": "kafka", "isolation": "x"}],
        "processors": [{"drop_fields": {"field": ["a"]}}],
    }
    assert unknown_options(document) == ["output.kafka: host", "input kafka: isolation", "drop_fields: field"]


@pytest.mark.parametrize("name", ["filebeat", "winlogbeat", "elastic-agent"])
def test_beats_keep_an_endpoint_in_one_partition(name: str) -> None:
    """Hashes the key field; acknowledged by all replicas; a protocol version that Kafka 4 supports."""
    (path,) = (path for path in BEATS_FILES if path.parent.name == name and "to-elastic" not in path.name)
    (output,) = (
        options for name, options in sections(yaml.safe_load(path.read_text())) if name.startswith("output")
    )
    assert output["key"] == f"%{{[{output['partition.hash.hash'][0]}]}}"
    assert output["required_acks"] == -1
    assert tuple(map(int, output["version"].split("."))) >= (2, 1)
    assert output["max_message_bytes"] <= 1_048_576


def test_filebeat_writes_alerts_once() -> None:
    """Reads committed alerts only; event.id is also the document id, which implies op create."""
    document = yaml.safe_load(
        (ELASTIC / "filebeat" / "alerts-to-elasticsearch.yml").read_text(encoding="utf-8")
    )
    (source,) = document["filebeat.inputs"]
    assert source["isolation_level"] == "read_committed"
    identified, whole, dropped = (next(iter(processor.values())) for processor in document["processors"])
    assert identified["document_id"] == "event.id"
    assert identified["target"] in dropped["fields"]
    assert (whole["target"], whole["overwrite_keys"], "document_id" in whole) == ("", True, False)
    assert document["output.elasticsearch"]["index"] == STREAM


def test_every_shipped_file_is_documented() -> None:
    """Listed in the table of docs/elastic.md with what it was tested with."""
    text = (ROOT / "docs" / "elastic.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    documented = {row.partition("](../")[2].partition(")")[0] for row in rows if row.count("|") == 4}
    folders = [ROOT / "configs" / name for name in ("elastic", "rsyslog", "kcat")]
    files = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.*")}
    assert documented == files
