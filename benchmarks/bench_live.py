"""The live loop, from a real broker, against loops that only poll and parse, and against Quix Streams doing its part.

All read the same topic on the same core, one after another; the broker has the other cores. Ratios are to the source
of the product polled and parsed with orjson. Peers run in environments of their own; see each one's docstring.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import orjson
from common import pin, table
from live import Filled, Taken, fill, in_rounds, live, only_poll, peer, peer_rule, pin_broker

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
            filled = fill(broker, shape, count, PARTITIONS)
            only_poll(filled, None)
            show(filled, core, in_rounds(tasks_on(filled, alerts)))


def tasks_on(filled: Filled, alerts: str) -> dict[str, Callable[[], Taken]]:
    rule = json.dumps(peer_rule(filled.shape))
    return {
        BASE: lambda: only_poll(filled, orjson.loads),
        "live": lambda: live(filled, alerts),
        "live, confluent reader": lambda: live(filled, alerts, reader="confluent"),
        "live, watched": lambda: live(filled, alerts, watch=True),
        "poll only": lambda: only_poll(filled, None),
        "poll only, confluent reader": lambda: only_poll(filled, None, "confluent"),
        "Quix Streams": lambda: peer("quix", filled, rule),
        "confluent-kafka + orjson.loads": lambda: peer("confluent", filled, "parse"),
        "confluent-kafka, consume only": lambda: peer("confluent", filled, "poll"),
        "aiokafka + orjson.loads": lambda: peer("aiokafka", filled, "parse"),
        "aiokafka, getmany only": lambda: peer("aiokafka", filled, "poll"),
    }


def show(filled: Filled, core: int, taken: dict[str, Taken]) -> None:
    base, counted = taken[BASE], taken["live"].counted or 0
    rows = [
        (
            name,
            f"{base.seconds / one.seconds:.2f}x",
            f"{base.cpu_seconds / one.cpu_seconds:.2f}x",
            f"{filled.count / one.seconds:,.0f}",
            f"{one.seconds:.2f}",
            f"{one.cpu_seconds:.2f}",
        )
        for name, one in taken.items()
    ]
    title = f"{filled.title()}, {counted / filled.count:.0%} of them count, reader on core {core}"
    table(title, ("", "ratio", "CPU ratio", "records/s", "s", "CPU s"), rows)


if __name__ == "__main__":
    main()
