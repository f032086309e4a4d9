"""Chooses the `RecordFetcher` by `kafka.reader`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamdetect.errors import ConfigError
from streamdetect.sources.kafka_python import KafkaPythonFetcher

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings
    from streamdetect.sources.fetcher import RecordFetcher


def make_fetcher(settings: KafkaSettings, consumer: Any) -> RecordFetcher:
    """The fetcher of `kafka.reader`; `consumer` is a kafka-python one. Raises ConfigError or KafkaError."""
    if settings.reader == "kafka-python":
        return KafkaPythonFetcher(consumer)
    check_installed(settings)
    from streamdetect.sources.confluent import ConfluentFetcher  # noqa: PLC0415 - an optional package

    return ConfluentFetcher(settings)


def check_installed(settings: KafkaSettings) -> None:
    """Raises ConfigError when the package that `kafka.reader` needs is missing."""
    if settings.reader != "confluent":
        return
    try:
        import confluent_kafka  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(
            f"kafka.reader is confluent, but confluent-kafka cannot be loaded ({error}). Install it with "
            "pip install 'streamdetect[confluent]', or set kafka.reader to kafka-python."
        ) from None
