"""Replay of a file against DuckDB computing the same aggregates, once, over the same file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import duckdb
from common import in_turns, pin, table, write_records

from streamdetect.config import Settings
from streamdetect.service.replay import run_replay
from streamdetect.service.summary import Summary
from streamdetect.sinks.files import NullSink
from streamdetect.sources.files import FileSource

COUNT = 300_000
HOSTS = 400

COLUMNS = """{
    '@timestamp': 'VARCHAR', 'data_stream': 'STRUCT(dataset VARCHAR)', 'event': 'STRUCT(category JSON)',
    'host': 'STRUCT(id VARCHAR, os STRUCT(family VARCHAR, type VARCHAR))',
    'network': 'STRUCT(direction VARCHAR)', 'process': 'STRUCT(name VARCHAR, entity_id VARCHAR)',
    'destination': 'STRUCT(address VARCHAR, ip VARCHAR, port BIGINT)'}"""


def replay(path: Path) -> Summary:
    settings = Settings()
    with closing(FileSource([str(path)], max_record_bytes=settings.limits.max_record_bytes)) as source:
        return run_replay(
            settings=settings,
            source=source,
            alert_sink=NullSink(),
            dead_letter_sink=NullSink(),
        )


def query(path: Path) -> str:
    """The hunt's filter and aggregates over the whole file, with no ticks, lateness or episodes."""
    rule = Settings().rules[0]
    networks = [ip_network(text) for text in rule.networks()]
    inside = " OR ".join(
        f"n BETWEEN {int(network.network_address)} AND {int(network.broadcast_address)}"
        for network in networks
        if isinstance(network, IPv4Network)
    )
    processes = ", ".join(f"'{name}'" for name in rule.processes)
    datasets = ", ".join(f"'{name}'" for name in rule.datasets)
    return f"""
        WITH wanted AS (
            SELECT destination.address AS address, lower(process.name) AS name, "@timestamp" AS t,
                host.id AS host, process.entity_id AS entity, destination.ip AS ip,
                list_reduce([CAST(part AS BIGINT) FOR part IN CASE WHEN destination.ip LIKE '%:%' THEN ['0']
                    ELSE string_split(destination.ip, '.') END], LAMBDA a, b: a * 256 + b) AS n
            FROM read_json('{path}', format = 'newline_delimited', columns = {COLUMNS})
            WHERE lower(process.name) IN ({processes}) AND network.direction = 'egress'
                AND CAST(event.category AS VARCHAR) IN ('["network"]', '"network"')
                AND coalesce(host.os.family, host.os.type) = 'windows'
                AND coalesce(data_stream.dataset IN ({datasets}), true)
                AND destination.port <> 53 AND destination.ip IS NOT NULL)
        SELECT address, name, count(*) AS events, min(t), max(t), count(DISTINCT host), count(DISTINCT entity)
        FROM wanted
        WHERE NOT ({inside}) AND ip <> '::1' AND NOT regexp_matches(ip, '^(fe[89ab]|ff).*:')
        GROUP BY address, name"""


def in_duckdb(path: Path) -> Callable[[], int]:
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    text = query(path)
    return lambda: sum(row[2] for row in connection.execute(text).fetchall())


def main() -> None:
    core = pin()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.jsonl"
        write_records(path, COUNT, "defend", HOSTS)
        size = path.stat().st_size
        duck = in_duckdb(path)
        summary = replay(path)
        if (counted := duck()) != summary.counted:
            raise SystemExit(f"not the same question: DuckDB counts {counted}, the replay {summary.counted}")
        seconds = in_turns({"replay": lambda: replay(path), "DuckDB": duck}, rounds=5)
    filtered = sum(summary.filtered.values()) / COUNT
    table(
        f"{COUNT:,} records of {size / COUNT:,.0f} B, {filtered:.0%} not counting, both on core {core}",
        ("", "ratio", "records/s", "MB/s", "CPU s"),
        [
            (
                name,
                f"{seconds['DuckDB'] / took:.2f}x",
                f"{COUNT / took:,.0f}",
                f"{size / took / 1e6:.0f}",
                f"{took:.2f}",
            )
            for name, took in seconds.items()
        ],
    )
    print(f"  replay: {summary.ticks} ticks, {summary.keys_peak:,} keys, alerts {summary.alerts}")


if __name__ == "__main__":
    main()
