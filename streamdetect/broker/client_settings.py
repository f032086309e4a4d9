"""Translates `kafka:` of the configuration to keyword arguments of a kafka-python client, or to librdkafka settings.

An invalid setting raises ConfigError here, once and at once: the client itself would retry with it, without naming it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer, KafkaProducer  # type: ignore[import-untyped]  # it has no types at all
from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]

from streamdetect.broker.similar_names import similar_names
from streamdetect.errors import ConfigError

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

BOOTSTRAP_TIMEOUT_MS = 15_000
"""How long a start retries, unless `kafka.client.bootstrap_timeout_ms` is set."""

_SECRET_SETTINGS = ("sasl_plain_password", "ssl_password")

_LIBRDKAFKA = {
    "client_id": "client.id",
    "isolation_level": "isolation.level",
    "check_crcs": "check.crcs",
    "fetch_max_wait_ms": "fetch.wait.max.ms",
    "fetch_max_bytes": "fetch.max.bytes",
    "max_partition_fetch_bytes": "max.partition.fetch.bytes",
    "metadata_max_age_ms": "topic.metadata.refresh.interval.ms",
    "reconnect_backoff_ms": "reconnect.backoff.ms",
    "reconnect_backoff_max_ms": "reconnect.backoff.max.ms",
    "security_protocol": "security.protocol",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
    "ssl_crlfile": "ssl.crl.location",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
}
"""Settings of kafka-python that librdkafka also has, and their librdkafka names."""

_RECEIVE_BYTES = 100_000_000
"""The largest response that librdkafka accepts by default."""

_TOKEN_SECONDS = 300
"""How long librdkafka uses a token before it requests a new one: the token file may be rotated."""


def client_settings(
    known: Collection[str], settings: KafkaSettings, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for a client that has the settings `known`.

    `kafka.client` overrides everything else. Its settings that only the other client has (a producer's, for a
    consumer) are left out. Raises ConfigError for one that neither has.
    """
    _check_names(settings.client)
    values: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": "streamdetect",
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        # The client's default of 30 s would be added to every outage.
        "reconnect_backoff_max_ms": 1_000,
        "metrics_enabled": False,
        "security_protocol": settings.security_protocol,
        **_tls(settings),
        **_sasl(settings),
        **defaults,
        **settings.client,
    }
    return {name: value for name, value in values.items() if name in known}


def confluent_settings(settings: KafkaSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with which librdkafka behaves as kafka-python does with `values`.

    Settings without a librdkafka counterpart are left out.
    """
    found = {
        name: values[python_name]
        for python_name, name in _LIBRDKAFKA.items()
        if values.get(python_name) not in (None, "")
    }
    found["bootstrap.servers"] = ",".join(values["bootstrap_servers"])
    # librdkafka rejects a fetch limit that exceeds this one.
    found["receive.message.max.bytes"] = max(_RECEIVE_BYTES, values.get("fetch_max_bytes", 0) + 512)
    if not values.get("ssl_check_hostname", True):
        found["ssl.endpoint.identification.algorithm"] = "none"
    if values["security_protocol"].endswith("SSL") and "ssl.ca.location" not in found:
        # Python uses SSL_CERT_FILE; librdkafka only looks in the usual system paths.
        found["ssl.ca.location"] = ssl.get_default_verify_paths().cafile or "probe"
    if values.get("sasl_mechanism") == "OAUTHBEARER":
        found["oauth_cb"] = lambda _: (_password(settings), time.time() + _TOKEN_SECONDS)
    return found


def bootstrap_seconds(settings: KafkaSettings) -> float:
    """How long to wait for the broker's first responses."""
    return float(settings.client.get("bootstrap_timeout_ms", BOOTSTRAP_TIMEOUT_MS)) / 1000


def secrets(settings: KafkaSettings) -> tuple[str, ...]:
    """Texts that must not appear in any message."""
    found = [str(settings.client[name]) for name in _SECRET_SETTINGS if settings.client.get(name)]
    return tuple(text for text in (*found, _password(settings)) if text)


def _check_names(client: Mapping[str, Any]) -> None:
    known = sorted({*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG})
    problems = [
        f"kafka.client.{name} is not a setting of the Kafka client{similar_names(name, known)}."
        for name in client
        if name not in known
    ]
    if problems:
        raise ConfigError("\n".join(problems), problems)


def _tls(settings: KafkaSettings) -> dict[str, Any]:
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return {}
    _check_files(settings)
    files = {
        "ssl_cafile": settings.ca_file,
        "ssl_certfile": settings.cert_file,
        "ssl_keyfile": settings.key_file,
    }
    return {name: str(path) for name, path in files.items() if path is not None}


def _check_files(settings: KafkaSettings) -> None:
    """Loads the files as the client will. The client would log "[SSL] PEM lib" once a second, without a file name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    password = str(settings.client.get("ssl_password", ""))
    if settings.ca_file is not None:
        with _file_errors("kafka.ca_file", settings.ca_file):
            context.load_verify_locations(str(settings.ca_file))
    if settings.cert_file is not None:
        named = f"{settings.cert_file} with kafka.key_file: {settings.key_file}"
        with _file_errors("kafka.cert_file", named):
            key = None if settings.key_file is None else str(settings.key_file)
            context.load_cert_chain(str(settings.cert_file), key, password=password)


@contextmanager
def _file_errors(setting: str, path: object) -> Iterator[None]:
    """Turns an error about a file into a ConfigError that names the setting and the file."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{setting}: {path} cannot be used: {why}.") from None


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if settings.security_protocol not in ("SASL_PLAINTEXT", "SASL_SSL"):
        return {}
    if settings.sasl_mechanism is None:
        raise ConfigError(
            f"kafka.security_protocol is {settings.security_protocol}, so kafka.sasl_mechanism is required: "
            "SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or OAUTHBEARER."
        )
    if settings.sasl_mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": _Token(settings)}
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.username or "",
        "sasl_plain_password": _password(settings),
    }


def _password(settings: KafkaSettings) -> str:
    """The password, from the setting or its file, whose trailing newline is stripped."""
    if settings.password is not None:
        return settings.password.get_secret_value()
    if settings.password_file is None:
        return ""
    with _file_errors("kafka.password_file", settings.password_file):
        return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # the base class has no types
    """OAUTHBEARER: the token is the password. A file is read again for each connection, so that it can be rotated."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    def token(self) -> str:
        return _password(self._settings)
