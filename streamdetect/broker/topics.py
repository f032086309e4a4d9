"""Which topics there are, as the broker last told the client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaTimeoutError  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.broker.connect import Connection, reaching
from streamdetect.broker.settings import bootstrap_seconds

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

GONE_LOOKS, GONE_SECONDS = 3, 2.0
"""A topic has gone when it was missing in so many answers in a row over so long: an answer that was on its
way when we asked for another set of topics, or a broker that has just started, may lack it once.
"""


@dataclass(frozen=True, slots=True)
class Topic:
    """`id` changes when a topic is deleted and created again under the same name."""

    id: object
    partitions: frozenset[int]


class Catalogue:
    """The topics that the client's metadata knows, renewed by the client's own thread each
    `metadata_max_age_ms`.

    Nothing here waits for the broker except `all_topics`. The client's own calls for the same either have no
    time-out (`topics()`), or ask for the creation of what they miss.
    """

    def __init__(
        self, connection: Connection, settings: KafkaSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster = connection.cluster
        self._settings = settings
        self._clock = clock
        self._news = threading.Condition()
        self._topics: Mapping[str, Topic] = {}
        self._missing: dict[str, tuple[int, float]] = {}
        self.looks = 0
        # The client hands this setting to its consumers only, but it is the metadata that asks.
        cluster.config["allow_auto_create_topics"] = False
        cluster.add_listener(self._look)

    def all_topics(self) -> Mapping[str, Topic]:
        """Every topic that this user may see, except Kafka's own; asked now.

        The answer may be to a question that was on its way before: ask again before believing that one is
        missing.
        """
        before, self._cluster.need_all_topic_metadata = self._cluster.need_all_topic_metadata, True
        wait = bootstrap_seconds(self._settings)
        try:
            with reaching(self._settings, connected=True), self._news:
                asked = self.looks
                self.refresh()
                if not self._news.wait_for(lambda: self.looks > asked, wait):
                    raise KafkaTimeoutError(f"no list of topics in {wait:g} s")
                return self._topics
        finally:
            self._cluster.need_all_topic_metadata = before

    def follow_all(self) -> None:
        """Keep every topic in view, not only those that the client reads or writes."""
        self._cluster.need_all_topic_metadata = True
        self.refresh()

    def current(self) -> Mapping[str, Topic]:
        """What the last answer held."""
        return self._topics

    def gone(self, name: str) -> bool:
        """Whether a topic that was there has really gone."""
        times, since = self._missing.get(name, (0, 0.0))
        return times >= GONE_LOOKS and self._clock() - since >= GONE_SECONDS

    def watch(self, names: Collection[str]) -> None:
        """Keep these topics in view, and count the answers that lack them."""
        for name in names:
            self._cluster.add_topic(name)
        with self._news:
            self._missing = {name: self._missing.get(name, (0, 0.0)) for name in names}

    def refresh(self) -> None:
        """Ask the broker soon."""
        self._cluster.request_update()

    def _look(self, cluster: Any) -> None:
        """Runs in the client's thread after every answer."""
        topics = {
            name: Topic(cluster.topic_id(name), frozenset(cluster.partitions_for_topic(name) or ()))
            for name in cluster.topics()
        }
        now = self._clock()
        with self._news:
            self._topics = topics
            for name, (times, since) in self._missing.items():
                self._missing[name] = (0, 0.0) if name in topics else (times + 1, since if times else now)
            self.looks += 1
            self._news.notify_all()
