"""Which topics a Kafka source reads: named ones or a pattern's, whether they still exist, and what is new."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from streamdetect.broker import Catalogue, Topic, nearest
from streamdetect.errors import ConfigError, KafkaError, LostOffsetsError
from streamdetect.model import Partition

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings


class FollowedTopics:
    """The topics that are read, and their partitions in `partitions`.

    A fresh client brings a fresh catalogue, so that is an argument of every call.
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
        self._told: tuple[Catalogue, int] | None = None
        found = self._found(catalogue.all_topics())
        if not found or len(found) < len(self._names):
            found = self._existing(catalogue.all_topics())
        self._ids: dict[str, object] = {}
        self.partitions: tuple[Partition, ...] = ()
        self._take(catalogue, found)
        self._told = (catalogue, catalogue.looks)

    def _take(self, catalogue: Catalogue, found: Mapping[str, Topic]) -> None:
        self._ids |= {name: topic.id for name, topic in found.items()}
        self.partitions = tuple(sorted({*self.partitions, *_partitions_of(found)}))
        catalogue.watch(self._ids)
        if self._pattern is not None and (self._told is None or self._told[0] is not catalogue):
            catalogue.follow_all()

    def new_partitions(self, catalogue: Catalogue) -> tuple[Partition, ...]:
        """Partitions that came up since the last call; KafkaError if a topic has gone.

        The client is silent about a topic that was deleted: it just returns nothing. While the broker told
        nothing new this costs nothing.
        """
        told, topics = (catalogue, catalogue.looks), catalogue.current()
        if told == self._told:
            return ()
        for name, known in self._ids.items():
            if name not in topics:
                _check_gone(name, catalogue)
            elif topics[name].id != known:
                raise LostOffsetsError(made_anew([name]))
        before = set(self.partitions)
        self._take(catalogue, self._found(topics))
        self._told = told
        return tuple(partition for partition in self.partitions if partition not in before)

    def topic_ids(self) -> dict[str, str]:
        """The id of each topic, as text."""
        return {name: str(known) for name, known in self._ids.items()}

    def _found(self, topics: Mapping[str, Topic]) -> dict[str, Topic]:
        if self._pattern is None:
            return {name: topics[name] for name in self._names if name in topics}
        matching = (name for name in sorted(topics) if self._pattern.fullmatch(name))
        return {name: topics[name] for name in matching if name not in self._exclude}

    def _existing(self, topics: Mapping[str, Topic]) -> dict[str, Topic]:
        found = self._found(topics)
        if self._pattern is not None and not found:
            raise KafkaError(
                f"No topic matches kafka.topic_pattern {self._pattern.pattern!r} (the whole name has "
                f"to){nearest(self._pattern.pattern, topics)}. Correct the pattern, or grant our user "
                "DESCRIBE."
            )
        missing = [f"{name}{nearest(name, topics)}" for name in self._names if name not in topics]
        if missing:
            raise KafkaError(
                f"Kafka has no topic {'; no topic '.join(missing)}. Create it, correct kafka.topics, or "
                "grant our user DESCRIBE on it."
            )
        return found


def made_anew(topics: Sequence[str]) -> str:
    """The message about topics that are not those we have read."""
    return (
        f"Deleted and made anew since we read them: {', '.join(topics)}; the records to continue from are gone. "
        "To go on with the new ones and all that is remembered, set kafka.on_lost_offsets to earliest or latest."
    )


def _check_gone(name: str, catalogue: Catalogue) -> None:
    if catalogue.gone(name):
        raise KafkaError(
            f"Topic {name} was deleted while we read it (or our user may no longer see it). Create it "
            "again, or take it out of kafka.topics."
        )
    if catalogue.looks:
        catalogue.refresh()


def _partitions_of(topics: Mapping[str, Topic]) -> tuple[Partition, ...]:
    return tuple(
        Partition(name, number)
        for name, topic in sorted(topics.items())
        for number in sorted(topic.partitions)
    )
