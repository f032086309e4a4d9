"""The hunt's filter and panes of five minutes in Flink SQL, as a user would write them.

    python -P flink.py BOOTSTRAP TOPIC PARALLELISM RULE     RULE: JSON, see `peer_rule` in ../live.py

Prints the process id of its JVM, then reads commands as lines of JSON. {"group": ..., "ends": [one per partition]} runs
a job that reads up to these offsets, on a cluster of its own in that JVM; at its end an empty object is printed. With
"folder" the panes are written there as CSV, otherwise nowhere. flink_live.py measures from outside.

Default settings, with an exactly-once checkpoint to files each second. SQL has no type for networks, so they are a
regular expression. Not included: lookback and condition, alerts, the sink.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
import tempfile
import uuid
from typing import Any

from pyflink.java_gateway import get_gateway
from pyflink.table import EnvironmentSettings, TableEnvironment

SOURCE = """
CREATE TEMPORARY TABLE {source} (
  `@timestamp` TIMESTAMP_LTZ(3),
  `event` ROW<`category` ARRAY<STRING>>,
  `host` ROW<`id` STRING, `os` ROW<`family` STRING>>,
  `process` ROW<`name` STRING, `entity_id` STRING>,
  `destination` ROW<`address` STRING, `ip` STRING, `port` INT>,
  `network` ROW<`direction` STRING>,
  `data_stream` ROW<`dataset` STRING>,
  WATERMARK FOR `@timestamp` AS `@timestamp` - INTERVAL '2' MINUTE
) WITH (
  'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}',
  'properties.group.id' = '{group}', 'properties.isolation.level' = 'read_committed',
  'scan.startup.mode' = 'earliest-offset',
  'scan.bounded.mode' = 'specific-offsets', 'scan.bounded.specific-offsets' = '{ends}',
  'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601'
)
"""
SINK = """
CREATE TEMPORARY TABLE {sink} (
  address STRING, process STRING, pane TIMESTAMP(3), events BIGINT,
  first_seen TIMESTAMP_LTZ(3), last_seen TIMESTAMP_LTZ(3), hosts BIGINT, processes BIGINT
) WITH ({options})
"""
QUERY = """
INSERT INTO {sink}
SELECT address, process, window_start, COUNT(*), MIN(seen), MAX(seen), COUNT(DISTINCT host), COUNT(DISTINCT entity)
FROM TABLE(TUMBLE(TABLE {counted}, DESCRIPTOR(seen), INTERVAL '5' MINUTE))
GROUP BY address, process, window_start, window_end
"""
COUNTED = """
CREATE TEMPORARY VIEW {counted} AS
SELECT COALESCE(destination.address, destination.ip) AS address, LOWER(process.name) AS process,
  `@timestamp` AS seen, host.id AS host, process.entity_id AS entity
FROM {source}
WHERE LOWER(process.name) IN ({processes})
  AND network.direction = 'egress'
  AND CARDINALITY(event.category) = 1 AND event.category[1] = 'network'
  AND host.os.family = 'windows'
  AND (data_stream.dataset IS NULL OR data_stream.dataset IN ({datasets}))
  AND destination.port NOT IN ({ports})
  AND destination.ip IS NOT NULL AND NOT REGEXP(destination.ip, '{networks}')
"""


def network_pattern(networks: list[str]) -> str:
    """A regular expression for addresses in these networks. Of IPv6 only the networks that the hunt excludes."""
    return "^(" + "|".join(_pattern(ipaddress.ip_network(text)) for text in networks) + ")"


def _pattern(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    if isinstance(network, ipaddress.IPv6Network):
        known = {"::1/128": "::1$", "fe80::/10": "fe[89ab][0-9a-f]:", "ff00::/8": "ff[0-9a-f][0-9a-f]:"}
        return known[str(network)]
    whole, bits = divmod(network.prefixlen, 8)
    octets = [str(octet) for octet in network.network_address.packed]
    text = "".join(re.escape(octet + ".") for octet in octets[:whole])
    if whole == 4:
        return text.removesuffix(re.escape(".")) + "$"
    if bits:
        lowest = int(octets[whole])
        text += "(" + "|".join(map(str, range(lowest, lowest + 2 ** (8 - bits)))) + ")" + re.escape(".")
    return text


def quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class Jobs:
    """Runs jobs one after another in one JVM."""

    def __init__(self, arguments: list[str], checkpoints: str) -> None:
        self._bootstrap, self._topic, parallelism, rule = arguments
        self._rule: dict[str, Any] = json.loads(rule)
        self._table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
        options = {
            "parallelism.default": parallelism,
            "execution.checkpointing.interval": "1 s",
            "execution.checkpointing.dir": f"file://{checkpoints}",
            "table.local-time-zone": "UTC",
        }
        for name, value in options.items():
            self._table.get_config().set(name, value)

    def run(self, group: str, ends: list[int], folder: str | None) -> None:
        names = {part: f"{part}_{uuid.uuid4().hex[:8]}" for part in ("source", "counted", "sink")}
        offsets = ";".join(f"partition:{number},offset:{end}" for number, end in enumerate(ends))
        connection = {"topic": self._topic, "bootstrap": self._bootstrap, "group": group, "ends": offsets}
        self._table.execute_sql(SOURCE.format(**names, **connection))
        self._table.execute_sql(COUNTED.format(**names, **self._conditions()))
        options = "'connector' = 'blackhole'"
        if folder is not None:
            options = f"'connector' = 'filesystem', 'path' = '{folder}', 'format' = 'csv'"
        self._table.execute_sql(SINK.format(**names, options=options))
        self._table.execute_sql(QUERY.format(**names)).wait()

    def _conditions(self) -> dict[str, str]:
        return {
            "processes": quoted(self._rule["processes"]),
            "datasets": quoted(self._rule["datasets"]),
            "ports": ", ".join(map(str, self._rule["excluded_ports"])),
            "networks": network_pattern(self._rule["excluded_networks"]),
        }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(sys.argv[1:], folder)
        print(get_gateway().jvm.java.lang.ProcessHandle.current().pid(), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            jobs.run(command["group"], command["ends"], command.get("folder"))
            print("{}", flush=True)


if __name__ == "__main__":
    main()
