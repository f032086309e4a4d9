"""The topics that exist, as of the last metadata response of the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaTimeoutError  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.broker.client_settings import bootstrap_seconds
from streamdetect.broker.connect import Connection, reaching

if TYPE_CHECKING:
    from streamdetect.config import KafkaSettings

DELETED_UPDATES, DELETED_SECONDS = 3, 2.0
"""A topic counts as deleted when this many updates in a row over this long lack it. One update may lack it: a response
in flight when another set of topics was requested, or one of a broker that has just started.
"""


@dataclass(frozen=True, slots=True)
class Topic:
    """`id` changes when a topic is deleted and created again under the same name."""

    id: object
    partitions: frozenset[int]


class Catalogue:
    """The topics in the client's metadata, which its own thread updates every `metadata_max_age_ms`.

    Only `all_topics` waits for the broker. The client's own calls for the same either have no timeout (`topics()`) or
    request the creation of missing topics.
    """

    def __init__(
        self, connection: Connection, settings: KafkaSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster = connection.cluster
        self._settings = settings
        self._clock = clock
        self._updated = threading.Condition()
        self._topics: Mapping[str, Topic] = {}
        self._missing: dict[str, tuple[int, float]] = {}
        self.updates = 0
        # The client passes this setting to its consumers only, but the metadata requests use it.
        cluster.config["allow_auto_create_topics"] = False
        cluster.add_listener(self._update)

    def all_topics(self) -> Mapping[str, Topic]:
        """Every topic that this user may see, except Kafka's internal ones. Requests an update and waits for it.

        The update may answer a request sent earlier, so call it twice before concluding that a topic is missing.
        """
        before, self._cluster.need_all_topic_metadata = self._cluster.need_all_topic_metadata, True
        wait = bootstrap_seconds(self._settings)
        try:
            with reaching(self._settings, connected=True), self._updated:
                updates = self.updates
                self.refresh()
                if not self._updated.wait_for(lambda: self.updates > updates, wait):
                    raise KafkaTimeoutError(f"no list of topics within {wait:g} s")
                return self._topics
        finally:
            self._cluster.need_all_topic_metadata = before

    def watch(self, names: Collection[str]) -> None:
        """Keep these topics in the metadata, and count the updates that lack them."""
        for name in names:
            self._cluster.add_topic(name)
        with self._updated:
            self._missing = {name: self._missing.get(name, (0, 0.0)) for name in names}

    def watch_all(self) -> None:
        """Keep every topic in the metadata, not only those that the client reads or writes."""
        self._cluster.need_all_topic_metadata = True
        self.refresh()

    def current(self) -> Mapping[str, Topic]:
        """The topics of the last update."""
        return self._topics

    def deleted(self, name: str) -> bool:
        """Whether a watched topic was deleted."""
        updates, since = self._missing.get(name, (0, 0.0))
        return updates >= DELETED_UPDATES and self._clock() - since >= DELETED_SECONDS

    def refresh(self) -> None:
        """Request an update soon."""
        self._cluster.request_update()

    def _update(self, cluster: Any) -> None:
        """Runs in the client's thread after every metadata response."""
        topics = {
            name: Topic(cluster.topic_id(name), frozenset(cluster.partitions_for_topic(name) or ()))
            for name in cluster.topics()
        }
        now = self._clock()
        with self._updated:
            self._topics = topics
            for name, (updates, since) in self._missing.items():
                self._missing[name] = (0, 0.0) if name in topics else (updates + 1, since if updates else now)
            self.updates += 1
            self._updated.notify_all()
