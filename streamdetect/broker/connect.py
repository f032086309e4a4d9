"""Creates a client, or raises one error with the cause why the broker cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kafka.errors  # type: ignore[import-untyped]  # it has no types at all
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

from streamdetect.broker.causes import Attempt, most_probable_cause
from streamdetect.broker.client_log import client_log_captured
from streamdetect.broker.client_settings import bootstrap_seconds, client_settings, secrets
from streamdetect.errors import ConfigError, KafkaError

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings


@dataclass(frozen=True)
class Connection:
    """A kafka-python client and its cluster metadata, which the client's thread keeps up to date."""

    client: Any
    cluster: Any


def connect(kind: Any, settings: KafkaSettings, **defaults: Any) -> Connection:
    """A `KafkaConsumer` or `KafkaProducer` connected to the broker. Raises KafkaError with the cause if that fails."""
    _install_secret_filter()
    created: list[Any] = []

    def create(**values: Any) -> Any:
        created.append(KafkaNetClient(**values))
        return created[-1]

    values = client_settings(kind.DEFAULT_CONFIG, settings, {**defaults, "kafka_client": create})
    try:
        with reaching(settings):
            return Connection(kind(**values), created[-1].cluster)
    except BaseException:
        # A client that fails in its constructor does not stop its thread or close its sockets.
        for net in created:
            net.close()
        raise


@contextmanager
def reaching(settings: KafkaSettings, connected: bool = False) -> Iterator[None]:
    """Turns any failure of the client in the block into a KafkaError with the most probable cause.

    `connected`: the client has reached a broker before the block.
    """
    with client_log_captured() as log_lines:
        try:
            yield
        except (kafka.errors.KafkaConfigurationError, ValueError, TypeError) as error:
            text = f"The Kafka client rejects its settings: {error}. Check kafka: in the configuration."
            raise ConfigError(without_secrets(text, settings)) from None
        except kafka.errors.KafkaError as error:
            raise KafkaError(
                without_secrets(_explanation(settings, log_lines, connected, error), settings)
            ) from error


def _explanation(settings: KafkaSettings, log_lines: list[str], connected: bool, error: Exception) -> str:
    attempt = Attempt(
        servers=tuple(settings.bootstrap_servers),
        protocol=settings.security_protocol,
        mechanism=settings.sasl_mechanism,
        username=settings.username,
        ca_file=None if settings.ca_file is None else str(settings.ca_file),
        seconds=bootstrap_seconds(settings),
    )
    cause = most_probable_cause(attempt, log_lines, connected)
    return f"Kafka cannot be used at {attempt}. {cause} (Client: {error})"


def without_secrets(text: str, settings: KafkaSettings) -> str:
    """The text with the secrets of these settings masked."""
    for secret in secrets(settings):
        text = text.replace(secret, "***")
    return text


class _SecretFilter(logging.Filter):
    """Removes passwords: at level DEBUG the client logs every byte it sends."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            return True
        if isinstance(record.msg, str) and record.msg.endswith("%r"):
            return False
        if isinstance(record.args, tuple):
            names = (type(arg).__name__ for arg in record.args)
            pairs = zip(record.args, names, strict=True)
            record.args = tuple(name if name.startswith("Sasl") else arg for arg, name in pairs)
        return True


_secret_filter = _SecretFilter()


def _install_secret_filter() -> None:
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logging.getLogger(name).addFilter(_secret_filter)
