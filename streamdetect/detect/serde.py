"""Snapshot serde: state as rows of plain JSON data, and back.

A row is a dict with a `kind`: `progress` (one), `partition`, `waiting` (a pre-aggregate) or `key` (window state and
open episode). Rows of one key can be restored on their own, as a keyed operator needs.
"""

from __future__ import annotations

from typing import Any

from streamdetect.detect import windows
from streamdetect.detect.alerts import Key
from streamdetect.detect.clocks import LeapRun, PartitionClock
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.preaggregate import TIMES, PreAggregate
from streamdetect.detect.ticks import NEVER
from streamdetect.detect.windows import Pane, WindowState
from streamdetect.model import ContextTuple, Partition

Row = dict[str, Any]


def progress_row(evaluated_ms: int, first_tick_ms: int | None, ticks: int, keys_peak: int) -> Row:
    return {
        "kind": "progress",
        "evaluated_ms": None if evaluated_ms == NEVER else evaluated_ms,
        "first_tick_ms": first_tick_ms,
        "ticks": ticks,
        "keys_peak": keys_peak,
    }


def partition_row(partition: Partition, clock: PartitionClock, idle: bool) -> Row:
    run = clock.run
    return {
        "kind": "partition",
        "topic": partition.topic,
        "number": partition.number,
        "clock_ms": clock.now_ms,
        "run": None if run is None else [run.records, run.min_ms, run.host],
        "idle": idle,
    }


def partition_of(row: Row) -> Partition:
    return Partition(row["topic"], row["number"])


def restore_clock(row: Row, clock: PartitionClock) -> None:
    clock.now_ms = row["clock_ms"]
    clock.run = None if row["run"] is None else LeapRun(*row["run"])


def waiting_row(rule_id: str, key: Key, tick_ms: int, pane_ms: int, pre: PreAggregate) -> Row:
    count, first_ms, last_ms, context, hosts, processes = pre[:TIMES]
    return {
        "kind": "waiting",
        "rule": rule_id,
        "key": list(key),
        "tick_ms": tick_ms,
        "pane_ms": pane_ms,
        "partial": [
            count,
            first_ms,
            last_ms,
            list(context),
            hosts and dict(hosts),
            processes and dict(processes),
        ],
    }


def pre_aggregate_of(row: Row) -> PreAggregate:
    count, first_ms, last_ms, context, hosts, processes = row["partial"]
    # With several hosts the processes are a dict too, even if there are none.
    if hosts is not None:
        processes = dict(processes or {})
        hosts = dict(hosts)
    return [count, first_ms, last_ms, _context(context), hosts, processes]


def key_row(rule_id: str, key: Key, state: WindowState, episode: EpisodeState | None) -> Row:
    panes, context, recent = state
    return {
        "kind": "key",
        "rule": rule_id,
        "key": list(key),
        "panes": [list(pane) for pane in windows.unpack_panes(panes)],
        "details": list(context),
        "recent": None if recent is None else [[list(item) for item in seen] for seen in recent],
        "episode": None if episode is None else list(episode),
    }


def forgotten_row(rule_id: str, key: Key) -> Row:
    return {"kind": "forgotten", "rule": rule_id, "key": list(key)}


def state_of(row: Row) -> WindowState:
    panes = windows.pack_panes(Pane(*pane) for pane in row["panes"])
    recent = row["recent"]
    if recent is not None:
        hosts, processes = (tuple((name, last_ms) for name, last_ms in seen) for seen in recent)
        recent = (hosts, processes)
    return panes, _context(row["details"]), recent


def episode_of(row: Row) -> EpisodeState | None:
    return None if row["episode"] is None else EpisodeState(*row["episode"])


def _context(values: list[Any] | ContextTuple) -> ContextTuple:
    """A context as a tuple. A tuple is returned as it is, because several keys share it."""
    if isinstance(values, tuple):
        return values
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
