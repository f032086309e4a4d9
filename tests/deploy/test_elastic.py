"""The shipped files for Elastic's programs: templates in a real Elasticsearch, the rest by grammar and option names."""

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
from logstash import Plugin, Reader
from search_server import SearchServer, started

from paths import ROOT

ELASTIC = ROOT / "configs" / "elastic"
SAMPLE = ROOT / "streamdetect" / "samples" / "day.jsonl.zst"
TEMPLATE: dict[str, Any] = json.loads((ELASTIC / "index-template.json").read_text(encoding="utf-8"))
RULE: dict[str, Any] = json.loads((ELASTIC / "promotion-rule.ndjson").read_text(encoding="utf-8"))
STREAM = "logs-streamdetect.alert-default"
ADDED = {"event.ingested", "destination.domain"}
"""Mapped, and not in the alerts of the sample: Logstash adds the first, events with a domain the second."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def alerts() -> list[Json]:
    """Of the sample day, through the real command."""
    command = [sys.executable, "-m", "streamdetect", "replay", str(SAMPLE)]
    told = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in told.splitlines()]


def mapped(properties: Json, before: str = "") -> dict[str, str]:
    """Type of each field that a mapping names; a disabled object is one field."""
    found: dict[str, str] = {}
    for name, told in properties.items():
        if "properties" in told:
            found |= mapped(told["properties"], f"{before}{name}.")
        else:
            found[before + name] = "disabled" if told.get("enabled") is False else told["type"]
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
    """Whether a JSON value, or each of a list, may stand in a field of that type."""
    if kind == "disabled" or value is None:
        return True
    return all(isinstance(item, FITS[kind]) for item in (value if isinstance(value, list) else [value]))


# -- the index template


def test_every_field_of_an_alert_is_mapped(alerts: list[Json]) -> None:
    """And nothing else, so that a field added to alerts is added to the template."""
    found = {name for alert in alerts for name, _ in values(alert)}
    assert found - FIELDS.keys() == set()
    assert FIELDS.keys() - found == ADDED


def test_every_value_of_an_alert_fits_its_type(alerts: list[Json]) -> None:
    """A number where a text is mapped would be taken by Elasticsearch, and then be searched as a text."""
    told = [(name, value) for alert in alerts for name, value in values(alert)]
    assert [pair for pair in told if not fits(FIELDS[pair[0]], pair[1])] == []
    assert not fits("long", "47")
    assert not fits("keyword", ["a", 1])


def test_types_are_those_of_ecs() -> None:
    """Of the fields that queries and rules of others rely on (ECS 8.17, field reference)."""
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
    """A real Elasticsearch that has taken the template."""
    for node in started():
        status, answer = node.call("PUT", "/_index_template/streamdetect-alerts", TEMPLATE)
        assert (status, answer) == (200, {"acknowledged": True})
        yield node


def create(server: SearchServer, stream: str, *documents: Json) -> list[Json]:
    """Write with op create under event.id, as the shipped pipelines do; one answer for each."""
    actions = [{"create": {"_index": stream, "_id": document["event"]["id"]}} for document in documents]
    body = [line for pair in zip(actions, documents, strict=True) for line in pair]
    status, answer = server.call("POST", "/_bulk?refresh=true", body)
    assert status == 200
    return [item["create"] for item in answer["items"]]


def count(server: SearchServer, stream: str, query: Json) -> int:
    found: int = server.call("POST", f"/{stream}/_count", {"query": query})[1]["count"]
    return found


def test_elasticsearch_keeps_each_alert_once(server: SearchServer, alerts: list[Json]) -> None:
    """The template makes a data stream; a second send of all alerts is answered with 409, all of them."""
    stream = "logs-streamdetect.alert-twice"
    first, second = create(server, stream, *alerts), create(server, stream, *alerts)
    assert [told["status"] for told in first] == [201] * len(alerts)
    assert all(told["_index"].startswith(f".ds-{stream}-") for told in first)
    assert [told["status"] for told in second] == [409] * len(alerts)
    assert {told["error"]["type"] for told in second} == {"version_conflict_engine_exception"}
    assert count(server, stream, {"match_all": {}}) == len(alerts) > 1


def test_after_a_rollover_an_id_is_new_again(server: SearchServer, alerts: list[Json]) -> None:
    """The limit that docs/elastic.md tells: ids are unique in a backing index, not in the stream."""
    stream = "logs-streamdetect.alert-rolled"
    create(server, stream, alerts[0])
    status, answer = server.call("POST", f"/{stream}/_rollover")
    assert (status, answer["rolled_over"]) == (200, True)
    assert [told["status"] for told in create(server, stream, alerts[0])] == [201]


def test_alerts_are_searched_by_type(server: SearchServer, alerts: list[Json]) -> None:
    """Networks, ranges and dates work; the panes are kept, and not indexed."""
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


def test_fields_of_others_are_kept_and_not_mapped(server: SearchServer, alerts: list[Json]) -> None:
    """What a shipper adds does not grow the mapping; what does not fit its type is refused."""
    stream = "logs-streamdetect.alert-others"
    other, wrong = copy.deepcopy(alerts[0]), copy.deepcopy(alerts[1])
    other["agent"] = {"name": "shipper"}
    wrong["destination"]["ip"] = "somewhere"
    taken, refused = create(server, stream, other, wrong)
    assert (taken["status"], refused["status"]) == (201, 400)
    assert refused["error"]["type"] == "document_parsing_exception"
    assert count(server, stream, {"term": {"agent.name": "shipper"}}) == 0
    assert (
        server.call("GET", f"/{stream}/_search")[1]["hits"]["hits"][0]["_source"]["agent"] == other["agent"]
    )
    ((_, told),) = server.call("GET", f"/{stream}/_mapping")[1].items()
    assert mapped(told["mappings"]["properties"]) == FIELDS


# -- the promotion rule


def test_the_rule_finds_what_was_opened(server: SearchServer, alerts: list[Json]) -> None:
    """Its query, in Elasticsearch: the alert that opened, none of the updates. KQL's words are Lucene's in capitals."""
    stream = "logs-streamdetect.alert-ruled"
    create(server, stream, *alerts)
    query = {"query_string": {"query": RULE["query"].replace(" and ", " AND ").replace(": ", ":")}}
    opened = [alert for alert in alerts if alert["event"]["action"] == "opened"]
    assert count(server, stream, query) == len(opened) < len(alerts)


def test_the_rule_reads_fields_that_there_are() -> None:
    """Overrides, highlighted fields and the query name mapped fields; the index pattern is the template's."""
    named = {
        RULE["rule_name_override"],
        RULE["timestamp_override"],
        *RULE["investigation_fields"]["field_names"],
    }
    named |= {told["field"] for told in RULE["severity_mapping"] + RULE["risk_score_mapping"]}
    named |= set(re.findall(r"([\w.]+):", RULE["query"]))
    assert named - FIELDS.keys() == set()
    assert RULE["index"] == TEMPLATE["index_patterns"]
    assert [told["value"] for told in RULE["severity_mapping"]] == ["21", "47", "73", "99"]


def test_the_rule_has_what_an_import_asks_for() -> None:
    """One line; rule_id, name, description, type, risk score and severity are required; it is not on by itself."""
    text = (ELASTIC / "promotion-rule.ndjson").read_text(encoding="utf-8")
    assert text.count("\n") == 1
    assert {"rule_id", "name", "description", "type", "risk_score", "severity", "query"} <= RULE.keys()
    assert (RULE["type"], RULE["language"], RULE["enabled"]) == ("query", "kuery", False)


# -- Logstash


def read(name: str) -> list[Plugin]:
    return Reader((ELASTIC / "logstash" / name).read_text(encoding="utf-8")).read()


def unknown_settings(plugin: Plugin) -> list[str]:
    """Settings that the documents of the plugin, or of its codec, do not have."""
    known = LOGSTASH[f"{plugin.kind} {plugin.name}"]
    found = [f"{plugin.name}.{name}" for name in plugin.settings if name not in known]
    nested = [value for value in plugin.settings.values() if isinstance(value, Plugin)]
    return found + [name for inner in nested for name in unknown_settings(inner)]


@pytest.mark.parametrize("name", ["alerts-to-elasticsearch.conf", "to-kafka.conf"])
def test_logstash_settings_are_documented(name: str) -> None:
    """With the lines for TLS and logins too, which are comments in the file."""
    text = (ELASTIC / "logstash" / name).read_text(encoding="utf-8")
    secured = re.sub(r"^( *)# (\w+ => )", r"\1\2", text, flags=re.MULTILINE)
    assert secured.count("\n") == text.count("\n")
    plain, full = Reader(text).read(), Reader(secured).read()
    assert sum(len(plugin.settings) for plugin in full) >= sum(len(plugin.settings) for plugin in plain) + 5
    assert [told for plugin in full for told in unknown_settings(plugin)] == []


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
def test_the_reader_is_strict(text: str) -> None:
    """Each of these is no configuration."""
    with pytest.raises(ValueError, match="line 1: expected"):
        Reader(text).read()


def test_an_invented_setting_is_found() -> None:
    """Also in a codec."""
    (plugin,) = Reader("output { kafka { topic => 'a' codec => json { x1 => 2 } } }").read()
    assert unknown_settings(plugin) == ["kafka.topic", "json.x1"]


def test_logstash_writes_alerts_once() -> None:
    """Committed alerts only, as they are; the id is event.id, op create; nothing without an id is indexed."""
    plugins = {f"{plugin.kind} {plugin.name}": plugin for plugin in read("alerts-to-elasticsearch.conf")}
    source, target = plugins["input kafka"].settings, plugins["output elasticsearch"].settings
    assert source["isolation_level"] == "read_committed"
    assert source["codec"] == Plugin("codec", "json", {"ecs_compatibility": "disabled"})
    assert (target["action"], target["document_id"]) == ("create", "%{[event][id]}")
    assert target["index"].replace("${STREAMDETECT_NAMESPACE:default}", "default") == STREAM
    # The plugin takes no document_id together with data_stream => true.
    assert target["data_stream"] == "false"
    assert plugins["output elasticsearch"].conditions == ("if [event][id]",)


def test_logstash_writes_events_as_json() -> None:
    """Not with the plain codec, which makes dead letters; keyed, and kept by every replica."""
    (target,) = (plugin.settings for plugin in read("to-kafka.conf") if plugin.kind == "output")
    assert (target["codec"], target["acks"]) == ("json", "all")
    assert target["message_key"] == "%{[@metadata][endpoint]}"


# -- Beats and Elastic Agent

BEATS_FILES = sorted(ELASTIC.glob("*/*.yml"))


def flat(document: Json, before: str = "") -> Json:
    """Nested or dotted, Beats mean the same."""
    found: Json = {}
    for name, value in document.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def blocks(document: Json) -> Iterator[tuple[str, Json]]:
    """Each part of a file that has a list of options: its name there and its options."""
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
    return [f"{name}: {key}" for name, options in blocks(document) for key in options.keys() - BEATS[name]]


def with_logins(path: Path) -> Json:
    """A file with its lines for TLS and logins, which are comments."""
    text = path.read_text(encoding="utf-8")
    logins = r"^( *)# ((?:username|password|sasl\.mechanism|ssl\.\w+|api_key): )"
    document: Json = yaml.safe_load(re.sub(logins, r"\1\2", text, flags=re.MULTILINE))
    return document


@pytest.mark.parametrize("path", BEATS_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_beats_options_are_documented(path: Path) -> None:
    """Of inputs, parsers, processors and outputs; with the lines for TLS and logins too."""
    document = with_logins(path)
    options = {key for _, told in blocks(document) for key in told}
    assert {"ssl.certificate_authorities", "hosts"} <= options
    assert unknown_options(document) == []


def test_an_invented_option_is_found() -> None:
    """In an output, an input and a processor."""
    document = {
        "output.kafka": {"host": ["a"]},
        "filebeat.inputs": [{"type": "kafka", "isolation": "x"}],
        "processors": [{"drop_fields": {"field": ["a"]}}],
    }
    assert unknown_options(document) == ["output.kafka: host", "input kafka: isolation", "drop_fields: field"]


@pytest.mark.parametrize("name", ["filebeat", "winlogbeat", "elastic-agent"])
def test_beats_keep_an_endpoint_in_one_partition(name: str) -> None:
    """Hash of the field that is the key; kept by every replica; a protocol that Kafka 4 still speaks."""
    (path,) = (path for path in BEATS_FILES if path.parent.name == name and "to-elastic" not in path.name)
    (told,) = (told for block, told in blocks(yaml.safe_load(path.read_text())) if block.startswith("output"))
    assert told["key"] == f"%{{[{told['partition.hash.hash'][0]}]}}"
    assert told["required_acks"] == -1
    assert tuple(map(int, told["version"].split("."))) >= (2, 1)
    assert told["max_message_bytes"] <= 1_048_576


def test_filebeat_writes_alerts_once() -> None:
    """Committed alerts only; event.id becomes the id, which makes the op create, and stays in the document."""
    document = yaml.safe_load(
        (ELASTIC / "filebeat" / "alerts-to-elasticsearch.yml").read_text(encoding="utf-8")
    )
    (source,) = document["filebeat.inputs"]
    assert source["isolation_level"] == "read_committed"
    identified, whole, dropped = (next(iter(told.values())) for told in document["processors"])
    assert identified["document_id"] == "event.id"
    assert identified["target"] in dropped["fields"]
    assert (whole["target"], whole["overwrite_keys"], "document_id" in whole) == ("", True, False)
    assert document["output.elasticsearch"]["index"] == STREAM


def test_every_shipped_file_is_told_of() -> None:
    """In the table of docs/elastic.md, with what it was tried with."""
    text = (ROOT / "docs" / "elastic.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    told = {row.partition("](../")[2].partition(")")[0] for row in rows if row.count("|") == 4}
    folders = [ROOT / "configs" / name for name in ("elastic", "rsyslog", "kcat")]
    files = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.*")}
    assert told == files
