"""The `kafka` settings: cluster, topics, login."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from streamdetect.config.section import Section, Text
from streamdetect.config.units import Duration, duration, parse_time_ms

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:,/\[\]]+):([0-9]{1,5})")
_HIGHEST_PORT = 65_535


def _topic(name: str) -> str:
    if _TOPIC.fullmatch(name) is None or name in {".", ".."}:
        raise ValueError(f"{name!r} is not a topic name; use 1 to 249 of a-z A-Z 0-9 . _ -")
    return name


def _server(server: str) -> str:
    match = _SERVER.fullmatch(server)
    if match is None or not 0 < int(match[2]) <= _HIGHEST_PORT:
        # Not quoted in the message, because some users write user:password@host here.
        raise ValueError("is not host:port; write it like kafka.example.org:9092")
    return server


Topic = Annotated[str, AfterValidator(_topic)]
Server = Annotated[str, AfterValidator(_server)]


class KafkaSettings(Section):
    """The cluster that records are read from and alerts are written to, and how to log in."""

    bootstrap_servers: tuple[Server, ...] = Field(default=("localhost:9092",), min_length=1)
    """Brokers for the first connection, each `host:port`. Required for `run`."""
    topics: tuple[Topic, ...] = ()
    """Topics to read. This or `topic_pattern` is required for `run`."""
    topic_pattern: Text | None = None
    """Read every topic whose whole name matches this regular expression, including topics created later, but
    never those that streamdetect writes to."""
    group_id: Text = "streamdetect"
    """Consumer group under which offsets are committed; also the transactional id."""
    second_instance: Literal["standby", "refuse"] = "standby"
    """What a second instance of the same group does: stand by and take over when the owner has gone, or stop with
    exit code 6."""
    takeover_after_ms: Duration = duration("15s", alias="takeover_after", minimum="3s")
    """Time without a heartbeat of the owner after which a standby takes over; 3s or more."""
    start: Text = "earliest"
    """Where to begin without a checkpoint: `earliest`, `latest`, or an ISO 8601 time (no zone means UTC)."""
    on_lost_offsets: Literal["fail", "earliest", "latest"] = "fail"
    """What to do when retention has deleted the records to continue from: stop with exit code 7, or jump."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Protocol of the brokers: encrypted with `SSL` and `SASL_SSL`, authenticated with `SASL_*`."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """Authentication mechanism. Required with `SASL_PLAINTEXT` and `SASL_SSL`."""
    username: Text | None = None
    """User name. Needs `password` or `password_file`."""
    password_file: Text | None = None
    """File with the password (a trailing newline is ignored), instead of `password`."""
    password: SecretStr | None = Field(default=None, min_length=1)
    """Password. Better: `password_file`, or STREAMDETECT__KAFKA__PASSWORD. Never shown."""
    ca_file: Text | None = None
    """PEM file of trusted certificate authorities; null uses the system's."""
    cert_file: Text | None = None
    """PEM file of the client certificate (mutual TLS). Needs `key_file`."""
    key_file: Text | None = None
    """PEM file of the private key of `cert_file`."""
    reader: Literal["kafka-python", "confluent"] = "kafka-python"
    """Client that fetches records. `confluent` uses less CPU and needs the package confluent-kafka."""
    client: dict[str, Any] = Field(default={})
    """Further settings of the Kafka client (kafka-python), passed through unchanged."""

    @field_validator("topics")
    @classmethod
    def _topics(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(topics)) != len(topics):
            raise ValueError("names a topic twice; name each once")
        return topics

    @field_validator("topic_pattern")
    @classmethod
    def _pattern(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if pattern is None:
            return None
        if info.data.get("topics"):
            raise ValueError("is set together with topics; set one of the two")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"is not a regular expression ({error}); write it like 'endpoint\\..*'"
            ) from None
        return pattern

    @field_validator("start")
    @classmethod
    def _start(cls, start: str) -> str:
        if start not in {"earliest", "latest"}:
            try:
                parse_time_ms(start)
            except ValueError:
                raise ValueError(
                    f"{start!r} is not a valid start; write earliest, latest or a time like 2026-03-02T04:00:00Z"
                ) from None
        return start

    @field_validator("sasl_mechanism")
    @classmethod
    def _mechanism(cls, mechanism: str | None, info: ValidationInfo) -> str | None:
        protocol = info.data.get("security_protocol", "")
        if mechanism is None and protocol.startswith("SASL_"):
            raise ValueError(
                f"is missing, but security_protocol is {protocol}; set it, for example SCRAM-SHA-512"
            )
        return mechanism

    @field_validator("username")
    @classmethod
    def _username(cls, username: str | None, info: ValidationInfo) -> str | None:
        mechanism = info.data.get("sasl_mechanism")
        if username is None and mechanism not in {None, "OAUTHBEARER"}:
            raise ValueError(
                f"is missing, but {mechanism} needs a username; set it, and password or password_file"
            )
        return username

    @field_validator("password")
    @classmethod
    def _password(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        file, username = info.data.get("password_file"), info.data.get("username")
        if password is not None and file is not None:
            raise ValueError("is set together with password_file; set one of the two")
        if username is not None and password is None and file is None and "password_file" in info.data:
            raise ValueError("is missing, but username is set; set password or password_file")
        if username is None and (password or file) is not None and "username" in info.data:
            raise ValueError("or password_file is set without username; set both, or neither")
        return password

    @field_validator("key_file")
    @classmethod
    def _key_file(cls, key_file: str | None, info: ValidationInfo) -> str | None:
        if "cert_file" in info.data and (key_file is None) != (info.data["cert_file"] is None):
            raise ValueError("and cert_file belong together; set both, or neither")
        return key_file

    def start_ms(self) -> int | None:
        """The start time in milliseconds since the epoch, None for `earliest` and `latest`."""
        return None if self.start in {"earliest", "latest"} else parse_time_ms(self.start)
