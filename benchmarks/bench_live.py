"""A live run with a real broker against loops that only poll and parse, and against Quix Streams.

All read the same topic on the same core, one after another; the broker has the other cores. Ratios are to
streamdetect's source polled in a loop and parsed with orjson. Quix Streams applies the same filter and panes. Peers run
in environments of their own; see the docstring of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import orjson
from common import pin, table
from live import (
    FilledTopic,
    Measurement,
    fill_topic,
    live,
    measure_in_turns,
    only_poll,
    peer,
    peer_rule,
    pin_broker,
)

from broker import Broker

COUNTS = {"defend": 200_000, "sysmon-raw": 120_000}
PARTITIONS = 3
BASE = "poll + orjson.loads"


def main() -> None:
    with Broker() as broker:
        core = pin()
        others = set(range(os.cpu_count() or 1)) - {core}
        if others:
            pin_broker(broker, others)
        alerts = broker.make_topic()
        for shape, count in COUNTS.items():
            topic = fill_topic(broker, shape, count, PARTITIONS)
            only_poll(topic, None)
            show(topic, core, measure_in_turns(tasks_on(topic, alerts)))


def tasks_on(topic: FilledTopic, alerts: str) -> dict[str, Callable[[], Measurement]]:
    rule = json.dumps(peer_rule(topic.shape))
    return {
        BASE: lambda: only_poll(topic, orjson.loads),
        "live": lambda: live(topic, alerts),
        "live, confluent reader": lambda: live(topic, alerts, reader="confluent"),
        "live, monitored": lambda: live(topic, alerts, monitored=True),
        "poll only": lambda: only_poll(topic, None),
        "poll only, confluent reader": lambda: only_poll(topic, None, "confluent"),
        "Quix Streams": lambda: peer("quix", topic, rule),
        "confluent-kafka + orjson.loads": lambda: peer("confluent", topic, "parse"),
        "confluent-kafka, consume only": lambda: peer("confluent", topic, "poll"),
        "aiokafka + orjson.loads": lambda: peer("aiokafka", topic, "parse"),
        "aiokafka, getmany only": lambda: peer("aiokafka", topic, "poll"),
    }


def show(topic: FilledTopic, core: int, measured: dict[str, Measurement]) -> None:
    base, counted = measured[BASE], measured["live"].counted or 0
    rows = [
        (
            name,
            f"{base.seconds / one.seconds:.2f}x",
            f"{base.cpu_seconds / one.cpu_seconds:.2f}x",
            f"{topic.count / one.seconds:,.0f}",
            f"{one.seconds:.2f}",
            f"{one.cpu_seconds:.2f}",
        )
        for name, one in measured.items()
    ]
    title = f"{topic.title()}, {counted / topic.count:.0%} counted, reader on core {core}"
    table(title, ("", "ratio", "CPU ratio", "records/s", "s", "CPU s"), rows)


if __name__ == "__main__":
    main()
