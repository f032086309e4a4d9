"""The topics a Kafka source reads: named topics or the topics of a pattern, with new partitions and deleted topics."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from streamdetect.broker import Catalogue, Topic, similar_names
from streamdetect.errors import ConfigError, KafkaError, LostOffsetsError
from streamdetect.model import Partition

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings


class FollowedTopics:
    """The topics that are read, and their partitions in `partitions`.

    A new client brings a new catalogue, so the catalogue is an argument of every call.
    """

    def __init__(
        self, catalogue: Catalogue, settings: KafkaSettings, topics: Collection[str], exclude: Collection[str]
    ) -> None:
        self._names = tuple(topics)
        self._pattern = (
            None if topics or settings.topic_pattern is None else re.compile(settings.topic_pattern)
        )
        if not self._names and self._pattern is None:
            raise ConfigError("kafka.topics and kafka.topic_pattern are both empty: name the topics to read.")
        self._exclude = frozenset(exclude)
        self._applied: tuple[Catalogue, int] | None = None
        found = self._selected(catalogue.all_topics())
        if not found or len(found) < len(self._names):
            found = self._existing(catalogue.all_topics())
        self._ids: dict[str, object] = {}
        self.partitions: tuple[Partition, ...] = ()
        self._add(catalogue, found)
        self._applied = (catalogue, catalogue.updates)

    def _add(self, catalogue: Catalogue, topics: Mapping[str, Topic]) -> None:
        self._ids |= {name: topic.id for name, topic in topics.items()}
        self.partitions = tuple(sorted({*self.partitions, *_partitions_of(topics)}))
        catalogue.watch(self._ids)
        if self._pattern is not None and (self._applied is None or self._applied[0] is not catalogue):
            catalogue.watch_all()

    def new_partitions(self, catalogue: Catalogue) -> tuple[Partition, ...]:
        """Partitions that appeared since the last call.

        Raises KafkaError if a topic was deleted, which the client does not report: it just returns no records. Costs
        nothing while there is no metadata update.
        """
        update, topics = (catalogue, catalogue.updates), catalogue.current()
        if update == self._applied:
            return ()
        for name, topic_id in self._ids.items():
            if name not in topics:
                _check_deleted(name, catalogue)
            elif topics[name].id != topic_id:
                raise LostOffsetsError(recreated([name]))
        before = set(self.partitions)
        self._add(catalogue, self._selected(topics))
        self._applied = update
        return tuple(partition for partition in self.partitions if partition not in before)

    def topic_ids(self) -> dict[str, str]:
        """The id of each topic, as text."""
        return {name: str(topic_id) for name, topic_id in self._ids.items()}

    def _selected(self, topics: Mapping[str, Topic]) -> dict[str, Topic]:
        if self._pattern is None:
            return {name: topics[name] for name in self._names if name in topics}
        matching = (name for name in sorted(topics) if self._pattern.fullmatch(name))
        return {name: topics[name] for name in matching if name not in self._exclude}

    def _existing(self, topics: Mapping[str, Topic]) -> dict[str, Topic]:
        """The selected topics. Raises KafkaError if a named one does not exist or none matches the pattern."""
        found = self._selected(topics)
        if self._pattern is not None and not found:
            raise KafkaError(
                f"No topic matches kafka.topic_pattern {self._pattern.pattern!r} (the whole name must match)"
                f"{similar_names(self._pattern.pattern, topics)}. Correct the pattern, or grant the configured "
                "user DESCRIBE."
            )
        missing = [f"{name}{similar_names(name, topics)}" for name in self._names if name not in topics]
        if missing:
            raise KafkaError(
                f"Kafka has no topic {'; no topic '.join(missing)}. Create it, correct kafka.topics, or "
                "grant the configured user DESCRIBE on it."
            )
        return found


def recreated(topics: Sequence[str]) -> str:
    """The message about topics that are no longer the ones that were read."""
    return (
        f"Topics deleted and recreated since they were read: {', '.join(topics)}; the records to continue from no "
        "longer exist. To continue with the new topics and keep all state, set kafka.on_lost_offsets to earliest or "
        "latest."
    )


def _check_deleted(name: str, catalogue: Catalogue) -> None:
    if catalogue.deleted(name):
        raise KafkaError(
            f"Topic {name} was deleted while it was read (or the configured user may no longer see it). Create it "
            "again, or remove it from kafka.topics."
        )
    if catalogue.updates:
        catalogue.refresh()


def _partitions_of(topics: Mapping[str, Topic]) -> tuple[Partition, ...]:
    return tuple(
        Partition(name, number)
        for name, topic in sorted(topics.items())
        for number in sorted(topic.partitions)
    )
