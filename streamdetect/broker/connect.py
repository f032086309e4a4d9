"""Make a client, or say in one error why the broker cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kafka.errors  # type: ignore[import-untyped]  # it has no types at all
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

from streamdetect.broker.causes import Attempt, most_probable_cause
from streamdetect.broker.quiet import listening
from streamdetect.broker.settings import bootstrap_seconds, client_settings, secrets
from streamdetect.errors import ConfigError, KafkaError

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings


@dataclass(frozen=True)
class Connection:
    """A kafka-python client and the cluster metadata that its own thread keeps fresh."""

    client: Any
    cluster: Any


def connect(kind: Any, settings: KafkaSettings, **defaults: Any) -> Connection:
    """A `KafkaConsumer` or `KafkaProducer` that has reached the broker, or a KafkaError that says why not."""
    _hide_secrets()
    made: list[Any] = []

    def remember(**values: Any) -> Any:
        made.append(KafkaNetClient(**values))
        return made[-1]

    values = client_settings(kind.DEFAULT_CONFIG, settings, {**defaults, "kafka_client": remember})
    try:
        with reaching(settings):
            return Connection(kind(**values), made[-1].cluster)
    except BaseException:
        # A client that failed in its constructor leaves its thread and sockets to us.
        for net in made:
            net.close()
        raise


@contextmanager
def reaching(settings: KafkaSettings, connected: bool = False) -> Iterator[None]:
    """Turn any failure of the client in this block into a KafkaError with the most probable cause.

    `connected`: the client has reached a broker before this block.
    """
    with listening() as said:
        try:
            yield
        except (kafka.errors.KafkaConfigurationError, ValueError, TypeError) as error:
            text = f"The Kafka client refuses its settings: {error}. Check kafka: in the configuration."
            raise ConfigError(scrubbed(text, settings)) from None
        except kafka.errors.KafkaError as error:
            raise KafkaError(scrubbed(_explanation(settings, said, connected, error), settings)) from error


def _explanation(settings: KafkaSettings, said: list[str], connected: bool, error: Exception) -> str:
    attempt = Attempt(
        servers=tuple(settings.bootstrap_servers),
        protocol=settings.security_protocol,
        mechanism=settings.sasl_mechanism,
        username=settings.username,
        ca_file=None if settings.ca_file is None else str(settings.ca_file),
        seconds=bootstrap_seconds(settings),
    )
    cause = most_probable_cause(attempt, said, connected)
    return f"Kafka cannot be used at {attempt}. {cause} (Client: {error})"


def scrubbed(text: str, settings: KafkaSettings) -> str:
    """A text without the secrets of these settings."""
    for secret in secrets(settings):
        text = text.replace(secret, "***")
    return text


class _NoSecrets(logging.Filter):
    """At level DEBUG the client logs every byte it sends, passwords included."""

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


_no_secrets = _NoSecrets()


def _hide_secrets() -> None:
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logging.getLogger(name).addFilter(_no_secrets)
