"""Configuration: defaults, every kind of error, overrides, secrets, and the forms shown to users."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from streamdetect.config import (
    RequiredFor,
    RuleException,
    RuleSettings,
    Settings,
    TimeSettings,
    doubts,
    format_duration,
    json_schema,
    load_settings,
    parse_duration_ms,
    parse_time_ms,
    show,
)
from streamdetect.errors import ConfigError

SECRET = "hunter2-hunter2"
Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(yaml_text, sets=, environ=, required_for=)`, isolated from the environment of the test run."""

    def load_text(
        text: str = "",
        sets: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        profile: str | None = None,
        required_for: RequiredFor | None = None,
    ) -> Settings:
        path = tmp_path / "streamdetect.yaml"
        path.write_text(text, encoding="utf-8")
        return load_settings(path, sets, environ or {}, profile, required_for)

    return load_text


def problems(load: Load, text: str = "", **options: Any) -> list[str]:
    """The problems of an invalid configuration."""
    with pytest.raises(ConfigError) as raised:
        load(text, **options)
    assert all(problem in str(raised.value) for problem in raised.value.problems)
    return raised.value.problems


def test_defaults_are_those_of_the_hunt() -> None:
    """Without a file, the only rule is the hunt: 120 an hour, 4 hours, one host, one process, 26 networks."""
    (rule,) = Settings().rules
    assert (rule.min_connections_per_hour, rule.min_duration_hours, rule.max_hosts, rule.max_processes) == (
        120,
        4,
        1,
        1,
    )
    versions = [ipaddress.ip_network(network).version for network in rule.networks()]
    assert (versions.count(4), versions.count(6)) == (23, 3)
    assert rule.id == "ed254a22-e7bb-4a36-9291-196b77762dd8"
    assert Settings().time == TimeSettings(
        interval_ms=300_000,
        lookback_ms=86_400_000,
        lateness_ms=120_000,
        idle_timeout_ms=60_000,
        max_future_skew_ms=600_000,
        max_future_jump_ms=3_600_000,
    )


def test_empty_files_and_sections_mean_defaults(load: Load) -> None:
    """A file or section in which everything is commented out changes nothing."""
    assert load("") == load("kafka:\n  # topics: [a]\ntime:\n") == Settings()


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("24h", 86_400_000), ("7d", 604_800_000), ("0s", 0)],
)
def test_durations_are_parsed_and_formatted(text: str, duration_ms: int) -> None:
    """Every unit is parsed to milliseconds and formatted back to the same text."""
    assert parse_duration_ms(text) == duration_ms
    assert format_duration(duration_ms) == text


@pytest.mark.parametrize("text", ["5", "5 m", "1.5h", "-1s", "m", "5M", "\u0665m", "", "1h30m"])
def test_other_texts_are_not_durations(text: str) -> None:
    """Anything but a whole number with one known unit is rejected with an example in the message."""
    with pytest.raises(ValueError, match="30s"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01T00:00:01Z", 1_000),
        ("1970-01-01 00:00:01.5", 1_500),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-02", 86_400_000),
    ],
)
def test_times_default_to_utc(text: str, time_ms: int) -> None:
    """ISO times are parsed to milliseconds; without a zone they are UTC."""
    assert parse_time_ms(text) == time_ms


INVALID = [
    ("time: {interval: 5}", "time.interval: 5 has no unit; write 5s, 5m or 5ms"),
    ("time: {interval: 500ms, lookback: 1h}", "time.interval: is too small; write at least 1s"),
    ("time: {interval: 31d, lookback: 62d}", "time.interval: is too large; write at most 30d"),
    ("time: {interval: 7m}", "time.lookback: 24h is not a multiple of interval 7m; write for example 1442m"),
    ("time: {lookback: 0s}", "time.lookback: is too small; write at least 1s"),
    ("time: {lateness: soon}", "time.lateness: is not a duration; write"),
    ("time: {lateness: 9999999d}", "time.lateness: is too large; write at most 3650d"),
    ("time: {max_future_jump: 0s}", "time.max_future_jump: is too small; write at least 1s"),
    ("checkpoint: {interval: 0s}", "checkpoint.interval: is too small; write at least 1s"),
    ("rules: [{renotify: 0s}]", "rules.0.renotify: is too small; write at least 1ms"),
    ("rules: [{severity: 0}]", "rules.0.severity: 0 is too small; write at least 1"),
    ("rules: [{severity: 101}]", "rules.0.severity: 101 is too large; write at most 100"),
    ("rules: [{min_connections_per_hour: 0}]", "rules.0.min_connections_per_hour: 0 is too small"),
    ("rules: [{min_duration_hours: -1}]", "rules.0.min_duration_hours: -1 is too small; write at least 0"),
    ("rules: [{min_duration_hours: 1.5}]", "rules.0.min_duration_hours: 1.5 is not a whole number"),
    ("rules: [{max_hosts: 0}]", "rules.0.max_hosts: 0 is too small; write at least 1"),
    ("rules: [{max_processes: 101}]", "rules.0.max_processes: 101 is too large; write at most 100"),
    (
        "rules: [{excluded_ports: [53, 65536]}]",
        "rules.0.excluded_ports.1: 65536 is too large; write at most 65535",
    ),
    (
        "rules: [{enabled: perhaps}]",
        "rules.0.enabled: 'perhaps' is neither true nor false; write one of them",
    ),
    ("rules: [{id: ''}]", "rules.0.id: is empty; write a text, or leave the setting out"),
    ("rules: [{processes: []}]", "rules.0.processes: is empty; name at least one, or leave the setting out"),
    ("rules: [{processes: chrome.exe}]", "rules.0.processes: is not a list; write it like [a, b]"),
    ("rules: [{id: a}, {id: a}]", "rules.1.id: 'a' is the id of an earlier rule; give each rule its own"),
    ("rules: [{}, {}]", "rules.1.id: 'ed254a22-e7bb-4a36-9291-196b77762dd8' is the id of an earlier rule"),
    (
        "rules: [{excluded_networks: [10.1.2.3/8]}]",
        "rules.0.excluded_networks.0: '10.1.2.3/8' has bits set after its prefix; write 10.0.0.0/8 or 10.1.2.3",
    ),
    (
        "rules: [{extra_excluded_networks: [x]}]",
        "rules.0.extra_excluded_networks.0: 'x' is neither a network",
    ),
    (
        "rules: [{exceptions: [{}]}]",
        "rules.0.exceptions.0: matches every event; name a destination, process or",
    ),
    (
        "rules: [{exceptions: [{destination: 10.0.0.999}]}]",
        "rules.0.exceptions.0.destination: '10.0.0.999' is",
    ),
    ("kafka: {topics: [a], topic_pattern: b}", "kafka.topic_pattern: is set together with topics; set one"),
    ("kafka: {topic_pattern: '['}", "kafka.topic_pattern: is not a regular expression"),
    (
        "kafka: {topics: [a b]}",
        "kafka.topics.0: 'a b' is not a topic name; use 1 to 249 of a-z A-Z 0-9 . _ -",
    ),
    ("kafka: {topics: [a, a]}", "kafka.topics: names a topic twice; name each once"),
    ("kafka: {topics: [1]}", "kafka.topics.0: 1 is not text; put it in quotes"),
    ("kafka: {bootstrap_servers: [localhost]}", "kafka.bootstrap_servers.0: is not host:port; write it like"),
    ("kafka: {bootstrap_servers: []}", "kafka.bootstrap_servers: is empty; name at least one"),
    (
        "kafka: {start: yesterday}",
        "kafka.start: 'yesterday' is not a valid start; write earliest, latest or a",
    ),
    (
        "kafka: {security_protocol: SASL_SSL}",
        "kafka.sasl_mechanism: is missing, but security_protocol is SASL_SSL",
    ),
    ("kafka: {sasl_mechanism: PLAIN}", "kafka.username: is missing, but PLAIN needs a username; set it"),
    (
        "kafka: {username: a}",
        "kafka.password: is missing, but username is set; set password or password_file",
    ),
    (
        "kafka: {password: a}",
        "kafka.password: or password_file is set without username; set both, or neither",
    ),
    (
        "kafka: {username: a, password: b, password_file: c}",
        "kafka.password: is set together with password_file",
    ),
    ("kafka: {cert_file: a}", "kafka.key_file: and cert_file belong together; set both, or neither"),
    (
        "kafka: {security_protocol: TLS}",
        "kafka.security_protocol: 'TLS' is not known; write 'PLAINTEXT', 'SSL'",
    ),
    ("kafka: {topics: [streamdetect.alerts]}", "alerts.topic: 'streamdetect.alerts' is among kafka.topics"),
    (
        "kafka: {topics: [streamdetect.dead-letters]}",
        "dead_letters.topic: 'streamdetect.dead-letters' is among",
    ),
    ("alerts: {sink: file}", "alerts.path: is missing, but sink is file; name the file to write to"),
    (
        "dead_letters: {sink: stdout}",
        "dead_letters.sink: 'stdout' is not known; write 'kafka', 'file' or 'none'",
    ),
    ("http: {port: 70000}", "http.port: 70000 is too large; write at most 65535"),
    ("limits: {max_keys: many}", "limits.max_keys: 'many' is not a whole number; write one without quotes"),
    (
        "limits: 5",
        "limits: must be a group of settings; write `name: value` lines under it: max_keys, max_record_",
    ),
    ("profile: Strict", "profile: 'Strict' is not known; write 'strict' or 'resilient'"),
    ("- a", "file: contains no settings; write `name: value` lines, with profile, kafka, time, rules"),
]


@pytest.mark.parametrize(("text", "problem"), INVALID, ids=[text for text, _ in INVALID])
def test_each_problem_names_its_fix(load: Load, text: str, problem: str) -> None:
    """One problem gives one line: path, what is wrong, what to write instead."""
    (message,) = problems(load, text)
    assert message.startswith(problem)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("kafka: {topcs: [a]}", "kafka.topcs: is not a setting; did you mean kafka.topics? (line 1)"),
        ("kafka: {group-id: a}", "kafka.group-id: is not a setting; did you mean kafka.group_id? (line 1)"),
        ("topics: [a]", "topics: is not a setting; did you mean kafka.topics? (line 1)"),
        (
            "time: {interval_ms: 5m}",
            "time.interval_ms: is not a setting; did you mean time.interval? (line 1)",
        ),
        (
            "rules: [{sevrity: 1}]",
            "rules.0.sevrity: is not a setting; did you mean rules.0.severity? (line 1)",
        ),
        ("zzz: 1", "zzz: is not a setting; see `streamdetect config show` for all of them (line 1)"),
    ],
)
def test_unknown_names_suggest_the_closest_setting(load: Load, text: str, suggestion: str) -> None:
    """A misspelt or misplaced setting is an error that suggests the intended one."""
    assert problems(load, text) == [suggestion]


def test_all_problems_are_in_one_error(load: Load) -> None:
    """Problems in several sections, a rule id and the overrides are in one list, with their locations."""
    text = "time:\n  interval: 5\nrules:\n  - id: a\n  - id: a\n    severity: 500\nhttp: {prot: 1}\n"
    found = problems(load, text, sets=["kafka.topics=[", "nothing"], environ={"STREAMDETECT__X": "1"})
    places = [(problem.partition(":")[0], problem.rpartition(" (")[2].rstrip(")")) for problem in found]
    assert sorted(places) == [
        ("--set number 2", found[2].rpartition(" (")[2].rstrip(")")),
        ("http.prot", "line 7"),
        ("kafka.topics", "--set number 1"),
        ("rules.1.id", "line 5"),
        ("rules.1.severity", "line 6"),
        ("time.interval", "line 2"),
        ("x", "STREAMDETECT__X"),
    ]


def test_duplicate_keys_are_errors_with_lines(load: Load) -> None:
    """YAML would silently use the last of two equal keys; the error names both lines."""
    assert problems(load, "kafka:\n  topics: [a]\n  group_id: b\n  topics: [c]\n") == [
        "line 4: 'topics' is set twice (first in line 2); keep one"
    ]


def test_anchors_and_merges_work(load: Load) -> None:
    """Rules can share settings with YAML anchors; a recursive anchor is an error."""
    settings = load("rules:\n  - &base {id: a, max_hosts: 3}\n  - {<<: *base, id: b}\n")
    assert [(rule.id, rule.max_hosts) for rule in settings.rules] == [("a", 3), ("b", 3)]
    assert problems(load, "time: &self\n  interval: *self\n")


def test_plain_scalars_follow_yaml_1_2(load: Load) -> None:
    """A time stays text, and so do the base-60 numbers and most booleans of YAML 1.1."""
    settings = load(
        "kafka: {start: 2026-03-02T04:00:00Z, group_id: no}\nrules: [{name: 12:30, enabled: yes}]"
    )
    assert settings.kafka.start_ms() == 1_772_424_000_000
    assert settings.kafka.group_id == "no"
    assert (settings.rules[0].name, settings.rules[0].enabled) == ("12:30", True)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a: \x07", b"a: [", b"a: b: c", b"!!python/name:os.system x"]
)
def test_files_that_are_not_yaml_are_rejected(tmp_path: Path, content: bytes) -> None:
    """Bytes that are not text and text that is not safe YAML are rejected."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_settings(path, environ={})


def test_an_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    """The error names the missing file and the cause."""
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read \(No such file or directory\)"):
        load_settings(tmp_path / "none.yaml", environ={})


def test_override_precedence(load: Load) -> None:
    """The environment overrides the file, --set the environment, --profile everything."""
    text = "kafka: {group_id: file}\nprofile: resilient\nlog: {level: debug}"
    environ = {"STREAMDETECT__KAFKA__GROUP_ID": "environment", "STREAMDETECT__HTTP__PORT": "1", "OTHER": "x"}
    settings = load(text, ["kafka.group_id=set", "profile=resilient"], environ, "strict")
    assert (settings.kafka.group_id, settings.http.port, settings.profile) == ("set", 1, "strict")
    assert settings.log.level == "debug"


def test_overrides_address_list_entries(load: Load) -> None:
    """An index selects an entry, also of the default rule; the next index appends; whole lists are replaced."""
    settings = load(
        "",
        ["rules.0.min_duration_hours=2", "rules.0.excluded_networks.0=10.0.0.0/9", "rules.1={id: b}"],
        {
            f"STREAMDETECT__KAFKA__TOPICS__{index}": f"t{index}"
            for index in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)
        },
    )
    assert settings.rules[0].min_duration_hours == 2
    assert settings.rules[0].networks()[:2] == ["10.0.0.0/9", "127.0.0.0/8"]
    assert settings.rules[1].id == "b"
    assert settings.kafka.topics == tuple(f"t{index}" for index in range(11))
    assert load("", ["kafka.topics=[a, b]"]).kafka.topics == ("a", "b")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "rules.severity=1",
            "rules: is a list; name the entry by its index, like rules.0.severity (--set number 1)",
        ),
        ("rules.7.severity=1", "rules: has 1 entries; the next one is rules.1 (--set number 1)"),
        ("kafka.topic=a", "kafka.topic: is not a setting; did you mean kafka.topics? (--set number 1)"),
        ("kafka.topics=a", "kafka.topics: is not a list; write it like [a, b] (--set number 1)"),
        ("time.interval=300", "time.interval: 300 has no unit; write 300s, 300m or 300ms (--set number 1)"),
        ("kafka", '--set number 1: has no "="; write --set path.to.key=value'),
        ("=a", "is not a setting; "),
        (
            "rules.0.extra_excluded_networks=[::1]",
            "rules.0.extra_excluded_networks: the value is not valid YAML",
        ),
    ],
)
def test_invalid_overrides_are_reported(load: Load, override: str, problem: str) -> None:
    """The error names the --set option and how to write it."""
    (message,) = problems(load, "", sets=[override])
    assert problem in message


def test_text_settings_are_not_parsed_as_yaml(load: Load) -> None:
    """The override of a text setting need not be YAML: a password may contain #, = or look like a number."""
    for password in ("12345", "a #b", "a=b: c", "*x", "true"):
        settings = load("kafka: {username: u}", ["kafka.password=" + password])
        assert settings.kafka.password is not None
        assert settings.kafka.password.get_secret_value() == password
    assert load("", ["kafka.group_id='007'"]).kafka.group_id == "007"
    assert load("kafka: {ca_file: x}", ["kafka.ca_file=null"]).kafka.ca_file is None


def test_client_options_pass_through(load: Load) -> None:
    """Options under kafka.client are passed on unchanged, including names with dots."""
    settings = load("kafka: {client: {max_poll_records: 5}}", ["kafka.client.a.b=true"])
    assert settings.kafka.client == {"max_poll_records": 5, "a.b": True}


def test_run_needs_topics(load: Load) -> None:
    """Topics, or a pattern for them, are required only where Kafka is read."""
    assert problems(load, "", required_for="run")[0].startswith(
        "kafka.topics: is missing, and run requires it"
    )
    assert problems(load, "", required_for="kafka-replay")
    load("", required_for="replay")
    load("kafka: {topics: [a]}", required_for="run")
    load("kafka: {topic_pattern: a.*}", required_for="run")


LEAKS = [
    f"kafka: {{password: [{SECRET}]}}",
    f"kafka: {{password: {{a: {SECRET}}}}}",
    f"kafka: {{passwrod: {SECRET}}}",
    f"password: {SECRET}",
    f"kafka: {{password: {SECRET}}}",
    f"kafka: {{password: {SECRET}, username: u, password_file: f}}",
    f"kafka:\n  password: '{SECRET}",
    f"kafka:\n  password: *{SECRET}",
    f"kafka:\n  password: !{SECRET} x",
    f"kafka:\n  password: %{SECRET}",
    f"kafka:\n  password: [{SECRET}\n",
    f'kafka:\n  password: "\\{SECRET}"',
    f"kafka: {SECRET}",
    f"kafka: {{client: {SECRET}}}",
    f"kafka: {{bootstrap_servers: ['u:{SECRET}@host:9092']}}",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_error_shows_a_secret(load: Load, text: str) -> None:
    """No message repeats a password, however it is misplaced or misspelt."""
    assert SECRET not in "\n".join(problems(load, text))


@pytest.mark.parametrize(
    "override", [f"kafka.password {SECRET}", f"kafka.passwort={SECRET}", f"kafka.password.x={SECRET}", SECRET]
)
def test_no_invalid_override_shows_a_secret(load: Load, override: str) -> None:
    """The same for --set and the environment."""
    assert SECRET not in "\n".join(problems(load, "", sets=[override]))
    name, _, value = override.partition("=")
    environ = {f"STREAMDETECT__{name.upper().replace('.', '__')}": value}
    if value:
        assert SECRET not in "\n".join(problems(load, "", environ=environ))


def test_show_masks_secrets(load: Load) -> None:
    """Neither `config show` nor the repr of a setting contains a password."""
    text = f"kafka: {{username: u, password: {SECRET}, client: {{ssl_password: {SECRET}, retries: 3}}}}"
    settings = load(text)
    shown = yaml.safe_load(show(settings))
    assert (shown["kafka"]["password"], shown["kafka"]["client"]) == (
        "********",
        {"ssl_password": "********", "retries": 3},
    )
    assert SECRET not in show(settings)
    assert SECRET not in repr(settings.kafka.password)


EVERYTHING = """
profile: strict
kafka: {topics: ['12', b], start: 2026-03-02T00:00:00Z, client: {a: [1, null], b: 'yes'}}
time: {interval: 1m, lookback: 2h, lateness: 0s}
rules:
  - {id: 'null', processes: [a], exceptions: [{destination: 10.0.0.0/8}, {process: 'on', host: '12:30'}]}
  - {id: b, enabled: false, renotify: 1500ms, extra_excluded_networks: ['FC00::/7', '::FFFF:10.0.0.0/104']}
alerts: {sink: stdout}
dead_letters: {sink: none}
"""


@pytest.mark.parametrize("text", ["", EVERYTHING])
def test_shown_settings_load_and_match_the_schema(load: Load, text: str) -> None:
    """The output of `config show` loads to the same settings and is valid under the JSON Schema."""
    settings = load(text)
    assert load(show(settings)) == settings
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(show(settings)))


def test_schema_describes_every_setting() -> None:
    """Each setting has a description and a default; durations also have a pattern and bounds."""
    schema = json_schema()
    for name, section in schema["$defs"].items():
        for setting, definition in section["properties"].items():
            assert definition.get("description"), f"{name}.{setting}"
            assert "default" in definition, f"{name}.{setting}"
        assert section["additionalProperties"] is False
    interval = schema["$defs"]["TimeSettings"]["properties"]["interval"]
    assert (interval["default"], interval["x-minimum"]) == ("5m", "1s")
    assert re.fullmatch(interval["pattern"], "500ms")


def test_networks_are_normalised(load: Load) -> None:
    """Mapped addresses become IPv4, hexadecimal lower case; an entry without a prefix stays a single address."""
    networks = "['FE80::/10', '::ffff:10.1.2.3', '::FFFF:a00:0/104']"
    text = f"rules: [{{excluded_networks: {networks}, extra_excluded_networks: [192.0.2.1]}}]"
    assert load(text).rules[0].networks() == ["fe80::/10", "10.1.2.3", "10.0.0.0/8", "192.0.2.1"]


def test_exceptions_accept_names_addresses_and_networks() -> None:
    """A destination may be a name; text that looks like an address must be valid."""
    for destination in ("updates.example.org", "10.0.0.0/8", "10.0.0.1", "::1"):
        assert RuleException(destination=destination).destination == destination
    with pytest.raises(ValidationError):
        RuleException(destination="10.0.0.1/8")


CHANGES = [
    ("profile=strict", True),
    ("time.lookback=48h", True),
    ("rules.0.min_duration_hours=5", True),
    ("rules.0.extra_excluded_networks=['fc00::/7']", True),
    ("rules.0.exceptions=[{host: a}]", True),
    ("rules.0.id=other", True),
    ("rules.0.enabled=false", True),
    ("rules.0.name=other", False),
    ("rules.0.severity=73", False),
    ("rules.0.processes=[svchost.exe, firefox.exe, iexplore.exe, msedge.exe, chrome.exe]", False),
    ("rules.1={id: b, enabled: false}", False),
    ("kafka.group_id=x", False),
    ("checkpoint.interval=1m", False),
]


@pytest.mark.parametrize(("override", "changes"), CHANGES)
def test_detection_settings_are_those_that_change_detection(load: Load, override: str, changes: bool) -> None:
    """Profile, time and enabled rules change detection; names, severity, order and the rest do not."""
    before, after = Settings().detection(), load("", [override]).detection()
    assert (before != after) is changes


def test_settings_are_immutable() -> None:
    """Settings cannot be assigned, nor created with unknown names."""
    with pytest.raises(ValidationError):
        Settings().profile = "strict"
    with pytest.raises(ValidationError):
        RuleSettings(min_hours=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("override", "doubt"),
    [
        (
            "rules.0.min_duration_hours=25",
            "rules.0.min_duration_hours: 25 hours never fit into time.lookback 24h",
        ),
        ("rules.0.enabled=false", "rules: no rule is enabled"),
        ("kafka.ca_file=/none/ca.pem", "kafka.ca_file: /none/ca.pem does not exist"),
    ],
)
def test_doubts_are_reported(load: Load, override: str, doubt: str) -> None:
    """Valid but probably unintended settings; 24 hours fit into a lookback of 24 h, since 23.5 h round up."""
    settings = load("kafka: {topics: [a]}", [override])
    assert [text for text in doubts(settings) if text.startswith(doubt)]
    assert doubts(load("kafka: {topics: [a]}", ["rules.0.min_duration_hours=24"])) == []
