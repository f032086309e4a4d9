"""From `kafka:` of the configuration to the keyword arguments of a kafka-python client, or the settings of librdkafka.

A wrong setting is told here, once and at once: the client itself would try it again and again, and never say
which.
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

from streamdetect.broker.names import nearest
from streamdetect.errors import ConfigError

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

BOOTSTRAP_TIMEOUT_MS = 15_000
"""How long a start keeps trying; `kafka.client.bootstrap_timeout_ms` says otherwise."""

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
"""Settings of kafka-python that librdkafka has too, and their names there."""

_RECEIVE_BYTES = 100_000_000
"""The largest reply that librdkafka takes if not told otherwise."""

_TOKEN_SECONDS = 300
"""How long librdkafka uses a token before it asks again: ours is a file that may have been rotated."""


def client_settings(
    known: Collection[str], settings: KafkaSettings, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for a client that knows the settings `known`.

    What `kafka.client` says wins over everything else. Settings there that only the other client knows (a
    producer's, for a consumer) are left out; what neither knows is an error.
    """
    _check_names(settings.client)
    values: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": "streamdetect",
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        # The client's 30 s would be added to every outage.
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
    """Settings of librdkafka, for a client that does what kafka-python does with `values`.

    What librdkafka has no counterpart of is left out.
    """
    found = {
        theirs: values[ours] for ours, theirs in _LIBRDKAFKA.items() if values.get(ours) not in (None, "")
    }
    found["bootstrap.servers"] = ",".join(values["bootstrap_servers"])
    # It refuses a limit that its buffers would not hold.
    found["receive.message.max.bytes"] = max(_RECEIVE_BYTES, values.get("fetch_max_bytes", 0) + 512)
    if not values.get("ssl_check_hostname", True):
        found["ssl.endpoint.identification.algorithm"] = "none"
    if values["security_protocol"].endswith("SSL") and "ssl.ca.location" not in found:
        # Python heeds SSL_CERT_FILE, librdkafka looks where systems usually keep theirs.
        found["ssl.ca.location"] = ssl.get_default_verify_paths().cafile or "probe"
    if values.get("sasl_mechanism") == "OAUTHBEARER":
        found["oauth_cb"] = lambda _: (_password(settings), time.time() + _TOKEN_SECONDS)
    return found


def bootstrap_seconds(settings: KafkaSettings) -> float:
    """How long to wait for the broker's first answers."""
    return float(settings.client.get("bootstrap_timeout_ms", BOOTSTRAP_TIMEOUT_MS)) / 1000


def secrets(settings: KafkaSettings) -> tuple[str, ...]:
    """Texts that no message may contain."""
    found = [str(settings.client[name]) for name in _SECRET_SETTINGS if settings.client.get(name)]
    return tuple(text for text in (*found, _password(settings)) if text)


def _check_names(client: Mapping[str, Any]) -> None:
    known = sorted({*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG})
    problems = [
        f"kafka.client.{name} is no setting of the Kafka client{nearest(name, known)}."
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
    """Load the files as the client will: it would say "[SSL] PEM lib" once a second, and no file name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    password = str(settings.client.get("ssl_password", ""))
    if settings.ca_file is not None:
        with _naming("kafka.ca_file", settings.ca_file):
            context.load_verify_locations(str(settings.ca_file))
    if settings.cert_file is not None:
        named = f"{settings.cert_file} with kafka.key_file: {settings.key_file}"
        with _naming("kafka.cert_file", named):
            key = None if settings.key_file is None else str(settings.key_file)
            context.load_cert_chain(str(settings.cert_file), key, password=password)


@contextmanager
def _naming(setting: str, path: object) -> Iterator[None]:
    """Turn an error about a file into one that names the setting and the file."""
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
            f"kafka.security_protocol is {settings.security_protocol}, so kafka.sasl_mechanism is needed: "
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
    """The password, from the setting or its file (a secret mounted as a file often ends with a newline)."""
    if settings.password is not None:
        return settings.password.get_secret_value()
    if settings.password_file is None:
        return ""
    with _naming("kafka.password_file", settings.password_file):
        return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # the base class has no types
    """OAUTHBEARER: the token is the password. A file is read anew for each connection, so that it can be
    rotated.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    def token(self) -> str:
        return _password(self._settings)
