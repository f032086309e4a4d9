"""Compare with the batch hunt as SQL in DuckDB: the episodes open at a tick T are the hunt's rows at T.

DuckDB reads the documents, derives which of them had arrived on time (semantics.md §4) with a window function over
each partition, and aggregates. Of the product's output only the alert text is compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import duckdb
import pytest
from product import run

from oracle import HOUR_MS, Json, default_rule, default_settings
from streamdetect.synthetic import Beacon, Scenario, documents

MINUTE_MS = 60_000
NEVER = -(2**60)

Key = tuple[str | None, str]
Figures = tuple[int, int, int, int, int, int, int]


class Case(NamedTuple):
    """A scenario, its settings, and the minimum number of compared ticks that have open episodes."""

    plan: Scenario
    settings: Json
    partitions: int
    true_ticks: int


def make_case(seed: int, partitions: int, rule: Json, true_ticks: int, hours: float, **settings: Any) -> Case:
    beacons = (
        Beacon(25_000, 5_000),
        Beacon(20_000, 2_000),
        Beacon(28_000, 12_000),
        Beacon(12_000, 1_000, hosts=2),
        Beacon(12_000, 1_000, processes=2),
        Beacon(29_900, 100),
    )
    plan = Scenario(
        hosts=14,
        hours=hours,
        start_ms=1_772_409_600_000 + 7 * HOUR_MS,
        beacons=beacons,
        seed=seed,
        shape="defend",
        events_per_host_hour=60 if hours > 6 else 150,
    )
    chosen = default_settings(profile="strict", rules=[default_rule(**rule)], **settings)
    return Case(plan, chosen, partitions, true_ticks)


LOW_THRESHOLDS = {"min_connections_per_hour": 1, "min_duration_hours": 1, "max_hosts": 2, "max_processes": 2}
HIGH_LIMITS = {"min_connections_per_hour": 3, "min_duration_hours": 1, "max_hosts": 5, "max_processes": 8}
CASES = {
    "default rule, one partition": make_case(1, 1, {}, 20, hours=9),
    "default rule, three partitions": make_case(2, 3, {}, 20, hours=9),
    "short lookback": make_case(3, 2, {}, 10, hours=9, lookback_ms=5 * HOUR_MS),
    "low thresholds": make_case(4, 3, LOW_THRESHOLDS, 30, hours=4, lookback_ms=2 * HOUR_MS),
    "low thresholds, no lateness": make_case(
        5, 3, LOW_THRESHOLDS, 40, hours=4, lookback_ms=HOUR_MS, interval_ms=MINUTE_MS, lateness_ms=0
    ),
    "high limits, short panes": make_case(
        6, 4, HIGH_LIMITS, 40, hours=3, lookback_ms=HOUR_MS, interval_ms=MINUTE_MS // 4, lateness_ms=1_000
    ),
}


def in_networks(networks: Sequence[str]) -> str:
    """SQL: whether `n`, an IPv4 address as a number, is in one of the networks."""
    ranges = (ip_network(text) for text in networks)
    return " OR ".join(
        f"n BETWEEN {int(network.network_address)} AND {int(network.broadcast_address)}"
        for network in ranges
        if isinstance(network, IPv4Network)
    )


def texts(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def load(records: Path, settings: Json) -> duckdb.DuckDBPyConnection:
    """Table `counting`: the events that count, with their time and the watermark of their partition before them."""
    rule = settings["rules"][0]
    connection = duckdb.connect()
    connection.execute(
        f"""
        CREATE TABLE arrived AS
        SELECT *, coalesce(max(t) OVER before - {settings["lateness_ms"]}, {NEVER}) AS watermark
        FROM (SELECT p, o, doc, epoch_ms(CAST(substr(doc->>'@timestamp', 1, 23) AS TIMESTAMP)) AS t
            FROM read_json('{records}', format = 'newline_delimited',
                columns = {{'p': 'BIGINT', 'o': 'BIGINT', 'doc': 'JSON'}}))
        WINDOW before AS (PARTITION BY p ORDER BY o ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING);

        CREATE TABLE counting AS
        WITH fields AS (
            SELECT t, watermark, doc->>'$.destination.address' AS address, doc->>'$.process.name' AS name,
                doc->>'$.host.id' AS host, doc->>'$.process.entity_id' AS entity,
                doc->>'$.destination.ip' AS ip, CAST(doc->>'$.destination.port' AS BIGINT) AS port,
                doc->>'$.network.direction' AS direction, doc->>'$.host.os.family' AS family,
                doc->>'$.event.category' AS category, doc->>'$.data_stream.dataset' AS dataset
            FROM arrived),
        numbered AS (
            SELECT *, CASE WHEN ip NOT LIKE '%:%' THEN
                (CAST(split_part(ip, '.', 1) AS BIGINT) << 24) + (CAST(split_part(ip, '.', 2) AS BIGINT) << 16)
                + (CAST(split_part(ip, '.', 3) AS BIGINT) << 8) + CAST(split_part(ip, '.', 4) AS BIGINT)
                END AS n
            FROM fields)
        SELECT t, watermark, address, name, host, entity FROM numbered
        WHERE name IN ({texts(rule["processes"])}) AND direction = 'egress' AND family = 'windows'
            AND category IN ('network', '["network"]') AND dataset IN ({texts(rule["datasets"])})
            AND port <> 53 AND ip IS NOT NULL
            AND NOT coalesce({in_networks(rule["excluded_networks"])}, false)
            AND ip <> '::1' AND NOT regexp_matches(ip, '^(fe[89ab].|ff..):');
        """
    )
    return connection


def hunt(connection: duckdb.DuckDBPyConnection, settings: Json, tick_ms: int) -> dict[Key, Figures]:
    """The rows of the hunt over the events in the window at T that had arrived on time."""
    rule = settings["rules"][0]
    rows = connection.execute(
        """
        WITH grouped AS (
            SELECT address, name, count(*) AS events, min(t) AS first_seen, max(t) AS last_seen,
                count(DISTINCT host) AS hosts, count(DISTINCT entity) AS pids
            FROM counting WHERE $tick - $lookback <= t AND t < $tick AND watermark < $tick
            GROUP BY address, name),
        rated AS (
            SELECT *, CAST(round((last_seen - first_seen) / 3600000.0) AS BIGINT) AS duration FROM grouped)
        SELECT address, name, events, first_seen, last_seen, hosts, pids, duration, events // duration AS rate
        FROM rated
        WHERE events // nullif(duration, 0) >= $min_rate AND duration >= $min_duration
            AND hosts BETWEEN 1 AND $max_hosts AND pids BETWEEN 1 AND $max_processes
        """,
        {
            "tick": tick_ms,
            "lookback": settings["lookback_ms"],
            "min_rate": rule["min_connections_per_hour"],
            "min_duration": rule["min_duration_hours"],
            "max_hosts": rule["max_hosts"],
            "max_processes": rule["max_processes"],
        },
    ).fetchall()
    return {(row[0], row[1]): row[2:] for row in rows}


def late_by_ms(rng: Random) -> int:
    """Delay of a record's arrival: one in ten by minutes, one in a hundred by hours, else none."""
    chance = rng.random()
    if chance < 0.01:
        return rng.randrange(4 * HOUR_MS)
    return rng.randrange(15 * MINUTE_MS) if chance < 0.1 else 0


def spread(plan: Scenario, partitions: int, path: Path) -> list[list[Any]]:
    """The scenario's documents in partitions by host, some delayed; also writes all of them to a file for DuckDB."""
    rng = Random(plan.seed)
    arrivals = sorted(
        (
            time_ms + late_by_ms(rng),
            serial,
            sum(document["host"]["id"].encode()) % partitions,
            json.dumps(document),
        )
        for serial, (time_ms, document) in enumerate(documents(plan))
    )
    logs: list[list[Any]] = [[] for _ in range(partitions)]
    with path.open("w") as stream:
        for _, _, number, text in arrivals:
            stream.write(f'{{"p": {number}, "o": {len(logs[number])}, "doc": {text}}}\n')
            logs[number].append(text)
    return logs


def tick_of(alert: Json) -> int:
    """The alert's tick: the end of its window."""
    return round(datetime.fromisoformat(alert["@timestamp"]).timestamp() * 1000)


def open_keys(alerts: Sequence[tuple[int, Json]], tick_ms: int) -> set[Key]:
    """Keys with an episode opened at or before the tick and not resolved by then."""
    found: set[Key] = set()
    for at_ms, alert in alerts:
        if at_ms <= tick_ms:
            key = alert["destination"]["address"], alert["process"]["name"]
            if alert["streamdetect"]["action"] == "resolved":
                found.remove(key)
            else:
                found.add(key)
    return found


def figures(alert: Json) -> Figures:
    reported = alert["streamdetect"]["figures"]
    return (
        reported["count_connections"],
        reported["first_seen_ms"],
        reported["last_seen_ms"],
        reported["hosts"],
        reported["count_unique_pids"],
        reported["duration_hours"],
        reported["number_of_con_per_hour"],
    )


def ticks_of(case: Case, rng: Random) -> list[int]:
    """Random ticks within the scenario."""
    ticks = range(case.plan.start_ms, case.plan.end_ms, case.settings["interval_ms"])
    return sorted(rng.sample(ticks, min(60, len(ticks))))


@pytest.mark.parametrize("name", CASES)
def test_open_episodes_are_the_rows_of_the_hunt(name: str, tmp_path: Path) -> None:
    plan, settings, partitions, true_ticks = CASES[name]
    logs = spread(plan, partitions, tmp_path / "records.jsonl")
    product = run(logs, settings, Random(plan.seed))
    assert (product.dead_lettered, product.detector.suspect_leaps) == ({}, 0)
    alerts = [(tick_of(alert), alert) for alert in map(json.loads, product.lines)]

    with load(tmp_path / "records.jsonl", settings) as connection:
        count = connection.execute("SELECT count(*) FROM counting").fetchone()
        assert count == (product.counted + product.late,)
        compared = {
            tick: hunt(connection, settings, tick) for tick in ticks_of(CASES[name], Random(plan.seed))
        }
        for tick, rows in compared.items():
            assert open_keys(alerts, tick) == set(rows), tick
        assert sum(bool(rows) for rows in compared.values()) >= true_ticks

        for tick, alert in alerts[:: max(1, len(alerts) // 100)]:
            key = alert["destination"]["address"], alert["process"]["name"]
            row = hunt(connection, settings, tick).get(key)
            if alert["streamdetect"]["action"] == "resolved":
                assert row is None
            else:
                assert row == figures(alert)
