"""confluent-kafka (librdkafka) reading the same topic: what the client costs.

    python -P confluent.py BOOTSTRAP TOPIC COUNT poll|parse

Measured from the assignment, after which its threads begin to fetch, to the last record. Like kafka-python it checks
what it fetches; all else is left as it comes.
"""

from __future__ import annotations

import json
import sys
import time
import uuid

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

AT_ONCE = 10_000
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
    seen, begun, cpu_begun = 0, time.perf_counter(), time.process_time()
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    while seen < count:
        # Never more than there are: it waits until it has as many as it was asked for.
        messages = consumer.consume(num_messages=min(AT_ONCE, count - seen), timeout=STALLED_SECONDS)
        if not messages:
            raise SystemExit(f"stalled after {seen:,} of {count:,} records")
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            value = message.value() or b""
            if mode == "parse":
                orjson.loads(value)
        seen += len(messages)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    consumer.close()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
