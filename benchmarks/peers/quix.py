"""The hunt's filter and panes of five minutes in Quix Streams, as a user would write them.

    python -P quix.py BOOTSTRAP TOPIC COUNT RULE     RULE: JSON, see `peer_rule` in ../live.py

Default settings: at least once, a commit every five seconds, state in RocksDB with its changelog in Kafka. The keyed
records go through the repartition topic of group_by, which this process reads too. Not included: lookback and
condition, alerts, results that do not depend on the order of partitions.

Measured from the first record, so without joining the group, until all records were read and all that passed the filter
were read again from the repartition topic; then it stops. `counted` is the number of events in windows.
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
"""It reads the partitions of a backlog unevenly: with streamdetect's two minutes of lateness it drops up to half of all
events as late.

That takes as long as this value, which drops nothing but closes no window during the run.
"""
KEPT = 2
"""Distinct hosts and process instances to keep: the condition only needs to know whether there is a second one."""

Fields = dict[str, Any]


class Hunt:
    """The conditions on events."""

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
        """Whether an event of Elastic Defend counts."""
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
        """Whether a raw Sysmon event (3, by Winlogbeat) counts."""
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


def endpoint_fields(event: dict[str, Any]) -> Fields:
    destination = event["destination"]
    return {
        "time": event["@timestamp"],
        "key": f"{destination.get('address') or destination['ip']} {event['process']['name'].lower()}",
        "host": event["host"].get("id"),
        "process": event["process"].get("entity_id"),
    }


def sysmon_fields(event: dict[str, Any]) -> Fields:
    """The computer name is the host, because a collector forwards the events of many hosts."""
    data = event["winlog"]["event_data"]
    return {
        "time": data["UtcTime"] + "+00:00",
        "key": f"{data['DestinationIp']} {_name(data['Image'])}",
        "host": event["winlog"]["computer_name"],
        "process": data.get("ProcessGuid"),
    }


def time_ms(event: Fields) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp() * 1000)


def first(event: Fields) -> dict[str, Any]:
    now_ms = time_ms(event)
    return {
        "count": 1,
        "first_ms": now_ms,
        "last_ms": now_ms,
        "hosts": [event["host"]],
        "processes": [event["process"]],
    }


def more(pane: dict[str, Any], event: Fields) -> dict[str, Any]:
    now_ms = time_ms(event)
    pane["count"] += 1
    pane["first_ms"] = min(pane["first_ms"], now_ms)
    pane["last_ms"] = max(pane["last_ms"], now_ms)
    for kept, found in ((pane["hosts"], event["host"]), (pane["processes"], event["process"])):
        if len(kept) < KEPT and found not in kept:
            kept.append(found)
    return pane


class Progress:
    """Counts records, and stops the application when all have been processed."""

    def __init__(self, app: Application, count: int) -> None:
        self._app, self._count = app, count
        self.read = self.counted = self.regrouped = self.late = 0
        self.seconds = self.cpu_seconds = 0.0

    def measured(self, counts: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], bool]:
        """The filter, with counting and timing."""

        def measured_filter(event: dict[str, Any]) -> bool:
            if self.read == 0:
                self._started, self._cpu_started = time.perf_counter(), time.process_time()
            passes = counts(event)
            self.read += 1
            self.counted += passes
            self._end_if_done()
            return passes

        return measured_filter

    def count_regrouped(self, _: object) -> None:
        self.regrouped += 1
        self._end_if_done()

    def count_late(self, *_: object) -> bool:
        self.late += 1
        return False

    def _end_if_done(self) -> None:
        if self.read == self._count and self.regrouped == self.counted and not self.seconds:
            self.seconds = time.perf_counter() - self._started
            self.cpu_seconds = time.process_time() - self._cpu_started
            self._app.stop()


def main() -> None:
    bootstrap, topic, count, rule = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    hunt = Hunt(rule)
    counts, fields_of = (
        (hunt.sysmon, sysmon_fields) if rule["shape"] == "sysmon-raw" else (hunt.endpoint, endpoint_fields)
    )
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
        stream = stream.filter(progress.measured(counts)).apply(fields_of)
        stream = stream.set_timestamp(lambda event, *_: time_ms(event))
        stream = stream.group_by(lambda event: event["key"], name="key").update(progress.count_regrouped)
        panes = stream.tumbling_window(PANE_MS, GRACE_MS, on_late=progress.count_late)
        panes.reduce(more, first).final()
        app.run()
    times = {"seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
    print(json.dumps({**times, "counted": progress.counted - progress.late}))


if __name__ == "__main__":
    main()
