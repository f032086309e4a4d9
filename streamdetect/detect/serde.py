"""State as plain JSON data, row by row, and back.

A row is a dict with a `kind`: `progress` (one), `partition`, `waiting` (a key's part of an inbox) and `key`
(history and open episode). Rows of one key can be moved on their own: that is what a keyed operator saves.
"""

from __future__ import annotations

from typing import Any, Protocol

from streamdetect.detect import windows
from streamdetect.detect.alerts import Key
from streamdetect.detect.clocks import LeapRun, PartitionClock
from streamdetect.detect.episodes import EpisodeState
from streamdetect.detect.windows import Pane, PreAggregate, WindowState
from streamdetect.model import ContextTuple, Partition

Row = dict[str, Any]


class _HasClock(Protocol):
    clock: PartitionClock
    idle: bool


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


def restore_partition(row: Row, processor: _HasClock) -> None:
    processor.clock.now_ms = row["clock_ms"]
    processor.clock.run = None if row["run"] is None else LeapRun(*row["run"])
    processor.idle = row["idle"]


def waiting_row(rule_id: str, key: Key, tick_ms: int, pane_ms: int, partial: PreAggregate) -> Row:
    count, first_ms, last_ms, details, hosts, processes = partial[: windows.TIMES]
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
            list(details),
            hosts and dict(hosts),
            processes and dict(processes),
        ],
    }


def partial_of(row: Row) -> PreAggregate:
    count, first_ms, last_ms, details, hosts, processes = row["partial"]
    # A partial that has seen several hosts notes processes too, be they none.
    if hosts is not None:
        processes = dict(processes or {})
        hosts = dict(hosts)
    return [count, first_ms, last_ms, _details(details), hosts, processes]


def key_row(rule_id: str, key: Key, history: WindowState, episode: EpisodeState | None) -> Row:
    panes, details, recent = history
    return {
        "kind": "key",
        "rule": rule_id,
        "key": list(key),
        "panes": [list(pane) for pane in windows.unpack_panes(panes)],
        "details": list(details),
        "recent": None if recent is None else [[list(item) for item in seen] for seen in recent],
        "episode": None if episode is None else list(episode),
    }


def forgotten_row(rule_id: str, key: Key) -> Row:
    return {"kind": "forgotten", "rule": rule_id, "key": list(key)}


def history_of(row: Row) -> WindowState:
    panes = windows.pack_panes(Pane(*pane) for pane in row["panes"])
    recent = row["recent"]
    if recent is not None:
        hosts, processes = (tuple((name, last_ms) for name, last_ms in seen) for seen in recent)
        recent = (hosts, processes)
    return panes, _details(row["details"]), recent


def episode_of(row: Row) -> EpisodeState | None:
    return None if row["episode"] is None else EpisodeState(*row["episode"])


def _details(values: list[Any] | ContextTuple) -> ContextTuple:
    """What comes as a tuple is shared by keys, and stays so."""
    if isinstance(values, tuple):
        return values
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
