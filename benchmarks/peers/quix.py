"""The hunt's filter and panes of five minutes in Quix Streams, as one of its users would write them.

    python -P quix.py BOOTSTRAP TOPIC COUNT RULE     RULE: JSON, see `peer_rule` in ../live.py

Settings are as they come: at least once, a commit every five seconds, state in RocksDB with its changelog in Kafka.
What keys are counted by goes through the topic that group_by makes, read by this same process. It leaves out much of
what the product does: lookback and condition, alerts, one answer whatever the order of partitions.

Measured from the first record, so joining the group does not count, until all records were read and all that passed the
filter came back from the other topic; then it stops. `counted` is what went into windows.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from quixstreams import Application

PANE_MS = 5 * 60_000
GRACE_MS = 24 * 3_600_000
"""It reads a backlog's partitions unevenly: with the two minutes of the product it drops up to half of all as late.

That is as fast as this, which drops nothing, but closes no window in a run.
"""
KEPT = 2
"""Ids of hosts and process instances that are kept: a second one is all that the hunt asks about."""

Slim = dict[str, Any]


class Hunt:
    """Which events count, and what of them."""

    def __init__(self, rule: dict[str, Any]) -> None:
        self._processes = frozenset(rule["processes"])
        self._ports = frozenset(rule["excluded_ports"])
        self._datasets = frozenset([None, *rule["datasets"]])
        self._networks = [ip_network(text) for text in rule["excluded_networks"]]
        self.allowed = lru_cache(maxsize=None)(self._allowed)

    def _allowed(self, text: str) -> bool:
        address = ip_address(text)
        return not any(address in network for network in self._networks)

    def endpoint(self, event: dict[str, Any]) -> bool:
        """Elastic Defend."""
        process = event.get("process")
        if process is None or process.get("name", "").lower() not in self._processes:
            return False
        network, destination = event.get("network", {}), event.get("destination", {})
        address = destination.get("ip")
        return (
            network.get("direction") == "egress"
            and event["event"].get("category") in ("network", ["network"])
            and event["host"].get("os", {}).get("family") == "windows"
            and event.get("data_stream", {}).get("dataset") in self._datasets
            and destination.get("port") not in self._ports
            and address is not None
            and self.allowed(address)
        )

    def sysmon(self, event: dict[str, Any]) -> bool:
        """Raw Sysmon by Winlogbeat: event 3."""
        log = event["winlog"]
        if log.get("event_id") != "3" or log.get("provider_name") != "Microsoft-Windows-Sysmon":
            return False
        data = log["event_data"]
        return (
            _name(data.get("Image", "")) in self._processes
            and data.get("Initiated") == "true"
            and int(data["DestinationPort"]) not in self._ports
            and "DestinationIp" in data
            and self.allowed(data["DestinationIp"])
        )


def _name(image: str) -> str:
    return image.rpartition("\\")[2].lower()


def of_endpoint(event: dict[str, Any]) -> Slim:
    destination = event["destination"]
    return {
        "time": event["@timestamp"],
        "key": f"{destination.get('address') or destination['ip']} {event['process']['name'].lower()}",
        "host": event["host"].get("id"),
        "process": event["process"].get("entity_id"),
    }


def of_sysmon(event: dict[str, Any]) -> Slim:
    """The computer's name is the host: a collector forwards the events of many."""
    data = event["winlog"]["event_data"]
    return {
        "time": data["UtcTime"] + "+00:00",
        "key": f"{data['DestinationIp']} {_name(data['Image'])}",
        "host": event["winlog"]["computer_name"],
        "process": data.get("ProcessGuid"),
    }


def time_ms(event: Slim) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp() * 1000)


def first(event: Slim) -> dict[str, Any]:
    now_ms = time_ms(event)
    return {
        "count": 1,
        "first_ms": now_ms,
        "last_ms": now_ms,
        "hosts": [event["host"]],
        "processes": [event["process"]],
    }


def more(pane: dict[str, Any], event: Slim) -> dict[str, Any]:
    now_ms = time_ms(event)
    pane["count"] += 1
    pane["first_ms"] = min(pane["first_ms"], now_ms)
    pane["last_ms"] = max(pane["last_ms"], now_ms)
    for kept, found in ((pane["hosts"], event["host"]), (pane["processes"], event["process"])):
        if len(kept) < KEPT and found not in kept:
            kept.append(found)
    return pane


class Progress:
    """Counts, and stops the application once everything went all the way."""

    def __init__(self, app: Application, count: int) -> None:
        self._app, self._count = app, count
        self.read = self.counted = self.back = self.late = 0
        self.seconds = self.cpu_seconds = 0.0

    def judge(self, counts: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], bool]:
        """The filter, watched."""

        def judged(event: dict[str, Any]) -> bool:
            if self.read == 0:
                self._begun, self._cpu_begun = time.perf_counter(), time.process_time()
            passes = counts(event)
            self.read += 1
            self.counted += passes
            self._end_if_done()
            return passes

        return judged

    def is_back(self, _: object) -> None:
        self.back += 1
        self._end_if_done()

    def is_late(self, *_: object) -> bool:
        self.late += 1
        return False

    def _end_if_done(self) -> None:
        if self.read == self._count and self.back == self.counted and not self.seconds:
            self.seconds = time.perf_counter() - self._begun
            self.cpu_seconds = time.process_time() - self._cpu_begun
            self._app.stop()


def main() -> None:
    bootstrap, topic, count, rule = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    hunt = Hunt(rule)
    counts, slim = (hunt.sysmon, of_sysmon) if rule["shape"] == "sysmon-raw" else (hunt.endpoint, of_endpoint)
    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=bootstrap,
            consumer_group=f"bench-{uuid.uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=folder,
            loglevel="WARNING",
        )
        progress = Progress(app, count)
        stream = app.dataframe(app.topic(topic, value_deserializer="json"))
        stream = stream.filter(progress.judge(counts)).apply(slim)
        stream = stream.set_timestamp(lambda event, *_: time_ms(event))
        stream = stream.group_by(lambda event: event["key"], name="key").update(progress.is_back)
        panes = stream.tumbling_window(PANE_MS, GRACE_MS, on_late=progress.is_late)
        panes.reduce(more, first).final()
        app.run()
    told = {"seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
    print(json.dumps({**told, "counted": progress.counted - progress.late}))


if __name__ == "__main__":
    main()
