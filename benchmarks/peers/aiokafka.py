"""Cost of the client: aiokafka reads the same topic.

    python -P aiokafka.py BOOTSTRAP TOPIC COUNT poll|parse

Measured from the start of the consumer, which without a group gets all partitions at once, to the last record. `-P`,
because otherwise this file would import itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import orjson
from aiokafka import AIOKafkaConsumer

STALLED_MS = 20_000


async def read(bootstrap: str, topic: str, count: int, mode: str) -> dict[str, float]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        # As in streamdetect; by default 1 MB per partition.
        max_partition_fetch_bytes=4 * 1024 * 1024,
        fetch_max_bytes=16 * 1024 * 1024,
    )
    await consumer.start()
    try:
        read_count, started, cpu_started = 0, time.perf_counter(), time.process_time()
        while read_count < count:
            batches = await consumer.getmany(timeout_ms=STALLED_MS)
            if not batches:
                raise SystemExit(f"stalled after {read_count:,} of {count:,} records")
            for messages in batches.values():
                for message in messages:
                    value = message.value
                    if mode == "parse":
                        orjson.loads(value)
                read_count += len(messages)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
    finally:
        await consumer.stop()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(read(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))))
