"""The hunt's filter and aggregates in Polars, once, over files of JSON lines. Prints one JSON line.

The argument is the hunt as JSON (`hunt_of` in ../bench_replay.py). Run with `python -P`, because this file has the name
of the library. Lines are scanned as text, those without a process name of the rule are dropped, the rest is decoded
with a schema, all in the streaming engine. `scan_ndjson` with the same schema, which cannot drop lines before decoding,
took 1.5 times as long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

HUNT: dict[str, Any] = json.loads(sys.argv[1])
os.environ["POLARS_MAX_THREADS"] = str(HUNT["threads"])  # Polars reads it on import

import polars as pl  # noqa: E402 - after the environment variable

TEXT = pl.String
SCHEMAS = {
    "defend": pl.Struct(
        {
            "@timestamp": TEXT,
            "data_stream": pl.Struct({"dataset": TEXT}),
            "event": pl.Struct({"category": pl.List(TEXT)}),
            "host": pl.Struct({"id": TEXT, "os": pl.Struct({"family": TEXT, "type": TEXT})}),
            "network": pl.Struct({"direction": TEXT}),
            "process": pl.Struct({"name": TEXT, "entity_id": TEXT}),
            "destination": pl.Struct({"address": TEXT, "ip": TEXT, "port": pl.Int64}),
        }
    ),
    "sysmon-raw": pl.Struct(
        {
            "data_stream": pl.Struct({"dataset": TEXT}),
            "winlog": pl.Struct(
                {
                    "provider_name": TEXT,
                    "event_id": TEXT,
                    "computer_name": TEXT,
                    "event_data": pl.Struct(
                        {
                            "UtcTime": TEXT,
                            "ProcessGuid": TEXT,
                            "Image": TEXT,
                            "DestinationIp": TEXT,
                            "DestinationPort": TEXT,
                            "Initiated": TEXT,
                        }
                    ),
                }
            ),
        }
    ),
}
REQUIRED_TEXT = {"defend": '"egress"', "sysmon-raw": '"DestinationIp"'}
"""Text in every line that can count, whatever whitespace its JSON has."""
TIMES = {"defend": "%Y-%m-%dT%H:%M:%S", "sysmon-raw": "%Y-%m-%d %H:%M:%S"}


def at(*path: str) -> pl.Expr:
    """The field at a path."""
    field = pl.col(path[0])
    for name in path[1:]:
        field = field.struct.field(name)
    return field


def defend(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.select(
        address=at("destination", "address"),
        name=at("process", "name").str.to_lowercase(),
        t=at("@timestamp"),
        host=at("host", "id"),
        entity=at("process", "entity_id"),
        ip=at("destination", "ip"),
        port=at("destination", "port"),
        dataset=at("data_stream", "dataset"),
        matches=(at("network", "direction") == "egress")
        & (at("event", "category").list.n_unique() == 1)
        & (at("event", "category").list.first() == "network")
        & (pl.coalesce(at("host", "os", "family"), at("host", "os", "type")) == "windows"),
    )


def sysmon(rows: pl.LazyFrame) -> pl.LazyFrame:
    data = ("winlog", "event_data")
    return rows.select(
        address=at(*data, "DestinationIp"),
        name=at(*data, "Image").str.extract(r"([^\\]*)$").str.to_lowercase(),
        t=at(*data, "UtcTime"),
        host=at("winlog", "computer_name"),
        entity=at(*data, "ProcessGuid"),
        ip=at(*data, "DestinationIp"),
        port=at(*data, "DestinationPort").cast(pl.Int64, strict=False),
        dataset=at("data_stream", "dataset"),
        matches=(at(*data, "Initiated") == "true")
        & (at("winlog", "event_id") == "3")
        & (at("winlog", "provider_name") == "Microsoft-Windows-Sysmon"),
    )


FIELDS = {"defend": defend, "sysmon-raw": sysmon}


def number(ip: pl.Expr) -> pl.Expr:
    """An IPv4 address as a number; null for IPv6."""
    parts = ip.str.split_exact(".", 3)
    octets = [parts.struct.field(f"field_{position}").cast(pl.Int64, strict=False) for position in range(4)]
    return octets[0] * 2**24 + octets[1] * 2**16 + octets[2] * 2**8 + octets[3]


def query(hunt: dict[str, Any]) -> pl.LazyFrame:
    shape, line = hunt["shape"], pl.col("line")
    begin, end = (
        datetime.fromtimestamp(hunt[name] / 1000, UTC).strftime(TIMES[shape]) for name in ("from_ms", "to_ms")
    )
    lines = pl.scan_lines(hunt["paths"]).filter(
        line.str.contains(REQUIRED_TEXT[shape], literal=True),
        line.str.contains_any(hunt["processes"], ascii_case_insensitive=True),
    )
    rows = FIELDS[shape](
        lines.select(line.str.json_decode(SCHEMAS[shape]).alias("document")).unnest("document")
    )
    n = pl.col("n")
    inside = pl.any_horizontal(n.is_between(first, last) for first, last in hunt["networks"])
    return (
        rows.filter(
            pl.col("name").is_in(hunt["processes"]),
            pl.col("matches"),
            pl.col("dataset").is_in(hunt["datasets"]).fill_null(value=True),
            ~pl.col("port").is_in(hunt["ports"]),
            pl.col("ip").is_not_null(),
            pl.col("t") >= begin,
            pl.col("t") < end,
        )
        .with_columns(n=number(pl.col("ip")))
        .filter(pl.when(n.is_null()).then(~pl.col("ip").str.contains(hunt["networks_6"])).otherwise(~inside))
        .group_by("address", "name")
        .agg(
            events=pl.len(),
            first=pl.col("t").min(),
            last=pl.col("t").max(),
            hosts=pl.col("host").n_unique(),
            processes=pl.col("entity").n_unique(),
        )
    )


def main() -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = query(HUNT).collect(engine="streaming")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    result = {
        "seconds": wall,
        "cpu_seconds": cpu,
        "counted": int(rows["events"].sum()),
        "keys": rows.height,
        "hosts": int(rows["hosts"].sum()),
        "processes": int(rows["processes"].sum()),
        "version": pl.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
