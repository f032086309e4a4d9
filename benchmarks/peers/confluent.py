"""Cost of the client: confluent-kafka (librdkafka) reads the same topic.

    python -P confluent.py BOOTSTRAP TOPIC COUNT poll|parse

Measured from the assignment, at which its threads start to fetch, to the last record. It verifies checksums, as
kafka-python does; all other settings are defaults.
"""

from __future__ import annotations

import json
import sys
import time
import uuid

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

BATCH = 10_000
STALLED_SECONDS = 20.0


def main() -> None:
    bootstrap, topic, count, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"bench-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "check.crcs": True,
        }
    )
    numbers = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    read_count, started, cpu_started = 0, time.perf_counter(), time.process_time()
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    while read_count < count:
        # Not more than there are: `consume` waits for the requested number.
        messages = consumer.consume(num_messages=min(BATCH, count - read_count), timeout=STALLED_SECONDS)
        if not messages:
            raise SystemExit(f"stalled after {read_count:,} of {count:,} records")
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            value = message.value() or b""
            if mode == "parse":
                orjson.loads(value)
        read_count += len(messages)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    consumer.close()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
