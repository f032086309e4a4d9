"""`state show`, `verify`, `export` and `explain --checkpoint`, on checkpoints of a real detector in a SQLite store."""

from __future__ import annotations

import gzip
import json
import signal
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from product import settings_from
from rich.console import Console

from broker import Broker
from checkpoint_work import START_MS, SavedRun
from commands import Message, live, produce, write_run_config
from strategies import DataSet, as_lines, data_sets
from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.checkpoint.sqlitefile import FILE
from streamdetect.cli import entry
from streamdetect.cli.tables import table_text
from streamdetect.config import Settings
from streamdetect.errors import CheckpointError
from streamdetect.events import Decoder, Event
from streamdetect.findings.state_diff import Comparison, Difference
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.service.inspect.describe import export_lines
from streamdetect.service.inspect.integrity import check_integrity
from streamdetect.service.inspect.verify import FilePartitions, kafka_start_ms, rederive
from streamdetect.sinks import Outputs
from streamdetect.sources.files import FileSource
from streamdetect.synthetic import Beacon, Scenario, lines

HOUR_MS, MINUTE_MS = 3_600_000, 60_000


@dataclass
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: str) -> CommandResult:
        code = entry.run(arguments)
        captured = capfd.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


def compared(saved_run: SavedRun) -> Comparison:
    """The comparison that `state verify` makes with all records."""
    verified = check_integrity(SqliteStore(str(saved_run.folder), None), saved_run.settings)
    return rederive(verified, saved_run.source())


# -- synthetic data


@pytest.fixture(scope="module")
def shards() -> list[list[bytes]]:
    """Ten hosts of all shapes for six hours with a beacon, distributed at random over three partitions."""
    plan = Scenario(hosts=10, hours=6, start_ms=START_MS, beacons=(Beacon(25_000, 5_000),), shape="mixed")
    rng, dealt = Random(7), [list[bytes]() for _ in range(3)]
    for line in lines(plan):
        rng.choice(dealt).append(line.rstrip(b"\n"))
    return dealt


@pytest.fixture
def saved_run(tmp_path: Path, shards: list[list[bytes]]) -> SavedRun:
    """Nine tenths of the records, in three checkpoints; an alert and a dead letter are pending."""
    result = SavedRun(tmp_path / "state", Settings(), shards)
    for share in (0.3, 0.6, 0.9):
        result.read_in_parallel(share)
        dead_letter = DeadLetter(Record(Partition("events", 1), 7, None, None, b"{"), "not_json", "torn")
        mark = {"path": "/var/alerts.jsonl", "length": 1234}
        result.save(Outputs(result.alerts, [dead_letter]), alerts=mark, follows={})
    return result


# -- show


def test_show_as_json(saved_run: SavedRun, run_command: Command) -> None:
    """Offsets, clocks, keys, waiting events, the open episode with its figures, pending outputs, file offsets."""
    result = json.loads(run_command("state", "show", str(saved_run.folder), "--format", "json").out)
    detector = saved_run.detector
    assert (result["number"], result["state"]) == (3, saved_run.store.state)
    assert result["size_bytes"] > 50_000
    assert [row["offset"] for row in result["partitions"]] == saved_run.offsets
    newest_ms = max(processor.clock.now_ms or 0 for processor in detector.processors.values())
    for row, processor in zip(result["partitions"], detector.processors.values(), strict=True):
        assert (row["topic"], row["number"], row["idle"], row["leaps"]) == (*processor.partition, False, None)
        assert row["behind_ms"] == newest_ms - (processor.clock.now_ms or 0)
    assert (
        result["keys"]["count"] == sum(group["keys"] for group in result["keys"]["groups"]) == detector.keys
    )
    rows = list(detector.export_state())
    waiting = [row for row in rows if row["kind"] == "waiting"]
    assert result["waiting"]["events"] == sum(row["partial"][0] for row in waiting) > 0
    (episode,) = result["episodes"]
    assert episode["opened"] == episode["alerted"]
    assert episode["figures"]["number_of_con_per_hour"] >= 120
    assert [alert["action"] for alert in result["pending"]["alerts"]] == ["opened"]
    assert result["pending"]["dead_letters"] == {"not_json": 1}
    assert result["marks"] == {"alerts": {"path": "/var/alerts.jsonl", "length": 1234}}
    assert (result["settings"]["profile"], result["settings"]["time"]["lookback"]) == ("resilient", "24h")


def test_show_is_plain_text_if_not_on_a_terminal(saved_run: SavedRun, run_command: Command) -> None:
    """Columns of text, one line per row, no box drawing."""
    shown = run_command("state", "show", str(saved_run.folder))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("checkpoint 3 of state ")
    assert f"\n  events       0  {saved_run.offsets[0]:>6,}  2026-03-02T" in shown.out
    assert "\n  opened at 2026-03-02T" not in shown.out
    assert "alerts, opened at 2026-03-02T" in shown.out
    assert "/var/alerts.jsonl" in shown.out
    assert "┃" not in shown.out


def test_show_has_leaps_and_empty_partitions(tmp_path: Path, run_command: Command) -> None:
    """A record two hours ahead of its partition's clock is shown as a leap; a partition without events has no clock."""
    ahead = [event(0), event(2 * HOUR_MS, host="h1")]
    saved_run = SavedRun(tmp_path, Settings(), [ahead, []])
    saved_run.read(0, 2)
    saved_run.save()
    first, second = json.loads(run_command("state", "show", str(tmp_path), "--format", "json").out)[
        "partitions"
    ]
    assert first["leaps"] == {"records": 1, "from": "2026-03-02T02:00:00.000Z", "host": "h1"}
    assert (second["clock"], second["behind_ms"], second["offset"]) == (None, None, 0)
    shown = run_command("state", "show", str(tmp_path)).out
    assert "1 records from 2026-03-02T02:00:00.000Z on" in shown
    assert "evaluated no tick yet" in shown


def test_a_table_is_drawn_on_a_terminal() -> None:
    """On a terminal rich draws tables; texts from events are not markup; an empty table is one line."""
    console = Console(force_terminal=True, width=60, color_system=None)
    drawn = table_text("keys", ["name", "count"], [["[bold]x", 12345], [None, None]], console)
    assert "┃" in drawn
    assert "[bold]x" in drawn
    assert "12,345" in drawn
    assert table_text("keys", [], [], console) == "keys: none"


def event(after_ms: int, host: str = "h1", address: str = "45.83.64.1", process: str = "p1") -> bytes:
    """One event of chrome.exe, this long after the start of the day."""
    document: dict[str, Any] = {
        "@timestamp": START_MS + after_ms,
        "event": {"category": ["network"], "dataset": "endpoint.events.network"},
        "network": {"direction": "egress"},
        "host": {"id": host, "name": host.upper(), "os": {"family": "windows"}},
        "process": {"name": "chrome.exe", "entity_id": process, "pid": 7},
        "destination": {"ip": address, "address": address, "port": 443},
    }
    return json.dumps(document).encode()


# -- no checkpoint, or one that is being written


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_no_checkpoint_is_5(tmp_path: Path, run_command: Command, command: str) -> None:
    """A directory without a checkpoint, and one in which nothing has been saved yet."""
    result = run_command("state", command, str(tmp_path))
    assert (result.code, result.out) == (5, "")
    assert "holds no checkpoint" in result.err
    SqliteStore(str(tmp_path), Settings().detection()).close()
    result = run_command("state", command, str(tmp_path))
    assert result.code == 5
    assert "There is no checkpoint yet" in result.err


class BusyStore(SqliteStore):
    """A store that saves the next checkpoint while its rows are being read, `times` times."""

    def __init__(self, saved_run: SavedRun, times: int) -> None:
        super().__init__(str(saved_run.folder), None)
        self._work = saved_run
        self._times = times

    def load(self) -> Stored | None:
        result = super().load()
        if result is not None and self._times:
            result.keys = self._with_a_save(result.keys)
        return result

    def _with_a_save(self, rows: Iterable[Row]) -> Iterable[Row]:
        if self._times:
            self._times -= 1
            self._work.read_in_parallel(1 - self._times / 100)
            self._work.save()
        yield from rows


def test_one_checkpoint_is_read_while_the_next_are_written(tmp_path: Path, shards: list[list[bytes]]) -> None:
    """All rows that are read belong to one checkpoint."""
    saved_run = SavedRun(tmp_path, Settings(), shards)
    saved_run.read_in_parallel(0.5)
    saved_run.save()
    before, source = list(saved_run.offsets), saved_run.source()
    busy = BusyStore(saved_run, 3)
    verified = check_integrity(busy)
    assert verified.number == 1
    assert list(verified.offsets.values()) == before != saved_run.offsets
    assert not rederive(verified, source).differences
    busy.close()
    assert len(export_lines(BusyStore(saved_run, 2))) > 100


# -- export


def test_export_is_every_row_in_order(saved_run: SavedRun, run_command: Command, tmp_path: Path) -> None:
    """JSON lines by kind, whatever the order they were saved in; -o writes a file and compresses it."""
    exported = run_command("state", "export", str(saved_run.folder))
    assert (exported.code, exported.err) == (0, "")
    rows = [json.loads(line) for line in exported.out.splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds == sorted(kinds, key=["progress", "partition", "key", "waiting", "pending"].index)
    assert kinds.count("key") == saved_run.detector.keys
    assert [row["output"]["kind"] for row in rows if row["kind"] == "pending"] == ["alert", "letter"]
    mixed = SavedRun(tmp_path / "mixed", saved_run.settings, [[], [], []])
    stored: list[Row] = json.loads(json.dumps(list(saved_run.stored().rows())))
    head, tail = stored[:4], stored[4:]
    Random(1).shuffle(tail)
    pending = saved_run.stored().pending
    keys, waiting = ([row for row in tail if row["kind"] == kind] for kind in ("key", "waiting"))
    mixed.store.save(Checkpoint(1, head[0], head[:0:-1], keys, waiting, pending=pending))
    path = tmp_path / "state.jsonl.gz"
    assert run_command("state", "export", str(tmp_path / "mixed"), "-o", str(path)).code == 0
    assert gzip.decompress(path.read_bytes()).decode() == exported.out


# -- verify


def test_verify_reports_what_was_checked(saved_run: SavedRun, run_command: Command) -> None:
    """One line with the counts, and exit code 0."""
    result = run_command("state", "verify", str(saved_run.folder))
    assert (result.code, result.err) == (0, "")
    waiting = sum(row["kind"] == "waiting" for row in saved_run.stored().rows())
    assert result.out == (
        f"Checkpoint 3 is intact: keys {saved_run.detector.keys:,}, open episodes 1, waiting pre-aggregates "
        f"{waiting:,}, partitions 3, pending outputs 2.\n"
    )


def test_verify_finds_damage(saved_run: SavedRun, run_command: Command) -> None:
    """A row with a wrong checksum ends with 5 and says how to recover."""
    inside = sqlite3.connect(saved_run.folder / FILE)
    inside.execute("UPDATE keys SET crc = crc + 1")
    inside.commit()
    for command in ("verify", "export", "show"):
        result = run_command("state", command, str(saved_run.folder))
        assert (result.code, result.out) == (5, "")
        assert "checksum" in result.err
        assert "--rebuild" in result.err


INVALID_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no panes": ("key", {"panes": []}, "there are no panes"),
    "panes out of order": ("key", {"panes": [[900_000, 900_000, 1], [0, 0, 1]]}, "out of order"),
    "an empty pane": ("key", {"panes": [[0, 0, 0]]}, "a pane has no events"),
    "a long pane": ("key", {"panes": [[0, 300_000, 2]]}, "events of another pane"),
    "a short context": ("key", {"details": [["h"], ["p"]]}, "context of its latest event"),
    "another tick": ("waiting", {"tick_ms": START_MS + 1}, "events of another pane"),
    "another pane": ("waiting", {"pane_ms": 0}, "events of another pane"),
    "unknown rule": ("key", {"rule": "another"}, "'another'"),
    "negative count": ("key", {"panes": [[0, 0, -1]]}, "cannot read"),
}


@pytest.mark.parametrize("name", INVALID_ROWS)
def test_verify_finds_rows_that_no_engine_writes(
    saved_run: SavedRun, run_command: Command, name: str
) -> None:
    """Undamaged rows with impossible values: 5, and no traceback."""
    kind, change, text = INVALID_ROWS[name]

    def spoil(rows: list[Row]) -> None:
        next(row for row in rows if row["kind"] == kind).update(change)

    saved_run.save_changed(spoil)
    result = run_command("state", "verify", str(saved_run.folder))
    assert (result.code, result.out) == (5, "")
    assert text in result.err
    assert "Traceback" not in result.err


def test_verify_derives_the_state_again_from_files(saved_run: SavedRun, run_command: Command) -> None:
    """Files, each read up to the offset of its partition, give the same state: counts, and exit code 0."""
    result = run_command("state", "verify", str(saved_run.folder), *saved_run.files())
    assert result.code == 0, result.err
    rows = list(saved_run.stored().rows())
    keys = {(row["rule"], *row["key"]) for row in rows if row["kind"] in {"key", "waiting"}}
    events = sum(events for row in rows if row["kind"] == "key" for _, _, events in row["panes"])
    events += sum(row["partial"][0] for row in rows if row["kind"] == "waiting")
    assert result.out.splitlines()[1] == (
        f"Its records give the same state: {len(keys):,} keys and {events:,} events (including waiting ones) of 3 "
        "partitions."
    )


def test_verify_wants_one_file_for_each_partition(saved_run: SavedRun, run_command: Command) -> None:
    """Too few files are a usage error; a file that is too short, or files in another order, are differences."""
    first, second, third = saved_run.files()
    result = run_command("state", "verify", str(saved_run.folder), first, second)
    assert result.code == 2
    assert "one file for each: events-0, events-1, events-2." in result.err
    assert run_command("state", "verify", str(saved_run.folder), first, "--from-kafka").code == 2
    result = run_command("state", "verify", str(saved_run.folder), second, first, third)
    assert result.code == 5
    assert "  events-0: clock: in the checkpoint 2026-03-02T" in result.err
    all_lines = Path(third).read_bytes().splitlines(keepends=True)
    Path(third).write_bytes(b"".join(all_lines[:100]))
    result = run_command("state", "verify", str(saved_run.folder), first, second, third)
    assert result.code == 5
    assert (
        f"events-2: records: in the checkpoint {saved_run.offsets[2]:,} were read, from the records the file holds 100"
        in (result.err)
    )


def test_twenty_differences_are_listed() -> None:
    """At most 20 differences are listed; all are counted."""
    result = Comparison(differences=[Difference(f"key {n}", "events", "1", "2") for n in range(1_234)])
    with pytest.raises(CheckpointError) as caught:
        result.verdict()
    text = str(caught.value).splitlines()
    assert text[0].endswith("in 1,234 places (the first 20):")
    assert text[20] == "  key 19: events: in the checkpoint 1, from the records 2"
    assert len(text) == 22


def busiest_row(rows: list[Row], kind: str) -> Row:
    """The row of the key with the open episode, or a waiting pre-aggregate of that key."""
    (key,) = (row["key"] for row in rows if row["kind"] == "key" and row["episode"] is not None)
    return next(row for row in rows if row["kind"] == kind and row["key"] == key)


def one_more(rows: list[Row]) -> None:
    busiest_row(rows, "key")["panes"][3][2] += 1


def without_the_key(rows: list[Row]) -> None:
    rows.remove(next(row for row in rows if row["kind"] == "key" and row["episode"] is None))


def other_clock(rows: list[Row]) -> None:
    rows[2]["clock_ms"] += 1


def other_leap(rows: list[Row]) -> None:
    rows[1]["run"] = [3, START_MS + 9 * HOUR_MS, "h"]


def without_what_waits(rows: list[Row]) -> None:
    rows.remove(busiest_row(rows, "waiting"))


def more_wait(rows: list[Row]) -> None:
    busiest_row(rows, "waiting")["partial"][0] += 1


def other_tick(rows: list[Row]) -> None:
    busiest_row(rows, "waiting")["tick_ms"] += 300_000


def other_context(rows: list[Row]) -> None:
    busiest_row(rows, "key")["details"][5] = 4712


def another_host(rows: list[Row]) -> None:
    row = busiest_row(rows, "key")
    last_ms = row["panes"][-1][1]
    row["recent"] = [
        [[row["details"][0][0], last_ms], ["another", last_ms - 1]],
        [[row["details"][1][0], last_ms]],
    ]


def another_process(rows: list[Row]) -> None:
    row = busiest_row(rows, "key")
    last_ms = row["panes"][-1][1]
    row["recent"] = [[[row["details"][0][0], last_ms]], [["another", last_ms]]]


def closed_episode(rows: list[Row]) -> None:
    busiest_row(rows, "key")["episode"] = None


def other_episode(rows: list[Row]) -> None:
    busiest_row(rows, "key")["episode"][1] += 300_000


Change = Callable[[list[Row]], None]
CHANGES: dict[Change, str] = {
    one_more: "events of the pane 2026-03-02T",
    without_the_key: "events: in the checkpoint none, from the records",
    other_clock: "events-1: clock: in the checkpoint 2026-03-02T",
    other_leap: "and 3 records too far ahead, from 2026-03-02T09:00:00.000Z on, from the records 2026-03-02T",
    without_what_waits: "events: in the checkpoint none, from the records",
    more_wait: "waiting for 2026-03-02T",
    other_tick: "waiting for 2026-03-02T",
    other_context: "latest event: in the checkpoint {",
    another_host: "hosts: in the checkpoint",
    another_process: "processes: in the checkpoint another at 2026-03-02T",
    closed_episode: "episode: in the checkpoint none is open, from the records open since 2026-03-02T",
    other_episode: "episode: in the checkpoint open since 2026-03-02T",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_verify_finds_a_state_that_the_records_do_not_give(
    saved_run: SavedRun, run_command: Command, change: Change
) -> None:
    """Intact rows with another value: exactly this place is reported, with both sides and exit code 5."""
    saved_run.save_changed(change)
    assert run_command("state", "verify", str(saved_run.folder)).code == 0
    result = run_command("state", "verify", str(saved_run.folder), *saved_run.files())
    assert result.code == 5
    assert CHANGES[change] in result.err
    places = 2 if change is other_tick else 1
    assert f"differs from the state that its records give in {places} place" in result.err


@example_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(), st.integers(0, 2**32))
def test_files_give_any_state_again(
    tmp_path_factory: pytest.TempPathFactory, data_set: DataSet, seed: int
) -> None:
    """Random data, read and saved in random order: the derived state is the same."""
    records = [[line.encode() for line in as_lines(partition)] for partition in data_set.partitions]
    saved_run = SavedRun(tmp_path_factory.mktemp("state"), settings_from(data_set.settings), records)
    saved_run.at_random(Random(seed))
    verified = check_integrity(SqliteStore(str(saved_run.folder), None))
    result = rederive(verified, FilePartitions(FileSource(saved_run.files(), 50), verified.offsets))
    assert (result.differences, result.late) == ([], [])


@example_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_records_with_timestamps_give_any_state_again(
    tmp_path_factory: pytest.TempPathFactory, data_set: DataSet, seed: int
) -> None:
    """The same with record timestamps, as in Kafka."""
    records = [[as_message(record) for record in partition] for partition in data_set.partitions]
    saved_run = SavedRun(tmp_path_factory.mktemp("state"), settings_from(data_set.settings), records)
    saved_run.at_random(Random(seed))
    result = compared(saved_run)
    assert (result.differences, result.late) == ([], [])


def as_message(record: tuple[Any, int]) -> tuple[bytes, int]:
    document, at = record
    return (document if isinstance(document, str) else json.dumps(document)).encode(), at


def compared_from_the_window(saved_run: SavedRun) -> Comparison:
    """The comparison of `state verify --from-kafka`: from the first record with the timestamp of the window's start."""
    verified = check_integrity(SqliteStore(str(saved_run.folder), None), saved_run.settings)
    start_ms = kafka_start_ms(verified)
    assert start_ms is not None
    source = saved_run.source()
    places = [
        next((place for place, record in enumerate(records) if int(record[1]) >= start_ms), len(records))
        for records in saved_run.records
    ]
    assert min(places) > 50
    source.begin(dict(zip(saved_run.partitions, places, strict=True)))
    return rederive(verified, source, start_ms=start_ms)


@pytest.mark.parametrize("share", [0.75, 0.83, 0.91, 1.0])
def test_the_window_gives_the_state_again(tmp_path: Path, shards: list[list[bytes]], share: float) -> None:
    """Records before the window are not needed; of an episode from before it only that it is open is compared."""
    settings = Settings.model_validate(
        {"time": {"lookback": "1h"}, "rules": [{"min_duration_hours": 1, "renotify": "5m"}]}
    )
    decoder = Decoder("resilient", 1 << 20)
    saved_run = SavedRun(
        tmp_path, settings, [[(line, time_of(decoder, line)) for line in shard] for shard in shards]
    )
    saved_run.read_in_parallel(share)
    saved_run.save()
    assert any(row["episode"] for row in saved_run.stored().keys)
    result = compared_from_the_window(saved_run)
    assert (result.differences, result.late) == ([], [])
    saved_run.save_changed(one_more)
    assert len(compared_from_the_window(saved_run).differences) == 1


def test_a_record_from_the_future_before_the_window_moves_no_clock(tmp_path: Path) -> None:
    """A record with a timestamp in the future is the first one found for the window's start; it sets no clock."""
    settings = Settings.model_validate({"time": {"lookback": "1h"}})
    records = [(event(minute * MINUTE_MS), START_MS + minute * MINUTE_MS) for minute in range(300)]
    records.insert(60, (event(20 * HOUR_MS), START_MS + 20 * HOUR_MS))
    saved_run = SavedRun(tmp_path, settings, [records])
    saved_run.read(0, len(records))
    saved_run.advance()
    saved_run.save()
    result = compared_from_the_window(saved_run)
    assert (result.differences, result.late) == ([], [])


def late(tmp_path: Path) -> SavedRun:
    """A partition that was idle delivers two events of 01:02 after 01:10 has been evaluated."""
    minutes = [event(minute * MINUTE_MS) for minute in range(73)]
    saved_run = SavedRun(tmp_path, Settings(), [minutes, [event(62 * MINUTE_MS), event(62 * MINUTE_MS + 1)]])
    saved_run.idle(1)
    saved_run.read(0, 73)
    saved_run.advance()  # the watermark is 01:12 - 2 min
    saved_run.idle(1, idle=False)
    saved_run.read(1, 2)
    saved_run.save()
    return saved_run


def test_verify_reports_late_events_separately(tmp_path: Path, run_command: Command) -> None:
    """Late events wait for the next tick in the live run and already count in a replay: reported so, exit code 0."""
    saved_run = late(tmp_path)
    result = run_command("state", "verify", str(tmp_path), *saved_run.files())
    assert result.code == 0, result.err
    assert "Its records give the same state except for late events" in result.out
    assert (
        "2 events: in the checkpoint counted from 2026-03-02T01:15:00.000Z on, from the records counted at "
        "2026-03-02T01:10:00.000Z"
    ) in result.out
    saved_run.read(0, 1)
    saved_run.advance_to(75 * MINUTE_MS)
    saved_run.save()
    assert (
        "Its records give the same state: "
        in run_command("state", "verify", str(tmp_path), *saved_run.files()).out
    )


def test_verify_reports_lost_events_as_a_difference(tmp_path: Path, run_command: Command) -> None:
    """Fewer events in the window than the records give, and none that wait: 5."""
    saved_run = late(tmp_path)

    def lose(rows: list[Row]) -> None:
        (waiting,) = (
            row for row in rows if row["kind"] == "waiting" and row["pane_ms"] == START_MS + HOUR_MS
        )
        rows.remove(waiting)

    saved_run.save_changed(lose)
    result = run_command("state", "verify", str(tmp_path), *saved_run.files())
    assert result.code == 5
    assert "events of the pane 2026-03-02T01:00:00.000Z: in the checkpoint 5 from" in result.err


def test_late_events_of_the_pane_that_leaves_the_window(tmp_path: Path) -> None:
    """They are in no later window. Beside other late events they count as late, alone they are a difference."""
    day = [event(minute * 10 * MINUTE_MS) for minute in range(6 * 24 + 2)]
    for others in ([event(2 * HOUR_MS, address="9.9.9.9")], []):
        first = event(6 * MINUTE_MS, address="8.8.8.8")
        saved_run = SavedRun(tmp_path / str(len(others)), Settings(), [day, [first, *others]])
        saved_run.idle(1)
        saved_run.read(0, len(day))  # up to 00:10 of the next day, so 00:05 is evaluated
        saved_run.advance()
        saved_run.idle(1, idle=False)
        saved_run.read(1, 1)
        assert not saved_run.pane_waits(START_MS + 5 * MINUTE_MS)
        saved_run.read(1, 1)
        saved_run.save()
        result = compared(saved_run)
        assert (len(result.differences), len(result.late)) == ((0, 2) if others else (1, 0))


def test_evictions_are_named_as_a_possible_cause(tmp_path: Path) -> None:
    """If limits.max_keys was reached, the message says that evictions alone may cause the differences."""
    records = [event(n * MINUTE_MS, address=f"9.9.9.{n}") for n in range(60)]
    small = Settings.model_validate({"limits": {"max_keys": 10}})
    saved_run = SavedRun(tmp_path, small, [records])
    saved_run.read(0, 60)
    saved_run.advance()
    saved_run.save()
    verified = check_integrity(SqliteStore(str(tmp_path), None), small)
    assert rederive(verified, saved_run.source()).verdict().startswith("Its records give the same state: ")
    verified = check_integrity(SqliteStore(str(tmp_path), None))
    with pytest.raises(CheckpointError) as caught:
        rederive(verified, saved_run.source()).verdict()
    assert "events: in the checkpoint none, from the records 1" in str(caught.value)
    saved_run.save_changed(without_a_key)
    verified = check_integrity(SqliteStore(str(tmp_path), None), small)
    with pytest.raises(CheckpointError, match=r"limits\.max_keys\), which alone may be the cause"):
        rederive(verified, saved_run.source()).verdict()


def without_a_key(rows: list[Row]) -> None:
    rows.remove(next(row for row in rows if row["kind"] == "key"))


def test_settings_are_restored_from_the_stored_ones() -> None:
    """Detection settings are the same; rules are named by their ids, except for the default rule."""
    settings = Settings.model_validate(
        {
            "profile": "strict",
            "time": {"interval": "1m", "lookback": "3h"},
            "rules": [
                {},
                {
                    "id": "b",
                    "name": "B",
                    "extra_excluded_networks": ["fc00::/7"],
                    "exceptions": [{"host": "x"}],
                },
                {"id": "c", "enabled": False},
            ],
        }
    )
    again = Settings.from_detection(json.loads(json.dumps(settings.detection())))
    assert again.detection() == settings.detection()
    assert [rule.name for rule in again.rules] == [settings.rules[0].name, "b"]


# -- explain


def explain_arguments(saved_run: SavedRun, *more: str) -> tuple[str, ...]:
    (episode,) = (row for row in saved_run.stored().keys if row["episode"] is not None)
    address, process, _ = episode["key"]
    where = ("--checkpoint", str(saved_run.folder))
    return ("explain", "--destination", address, "--process", process.upper(), *where, *more)


def test_explain_from_a_checkpoint_agrees_with_files(saved_run: SavedRun, run_command: Command) -> None:
    """At the evaluated tick: the same window and arithmetic, and the episode and the waiting events."""
    from_checkpoint = run_command(*explain_arguments(saved_run))
    assert (from_checkpoint.code, from_checkpoint.err) == (0, "")
    tick = from_checkpoint.out.splitlines()[0].rpartition(" ")[2].rstrip(".")
    destination, process = explain_arguments(saved_run)[2], explain_arguments(saved_run)[4]
    from_files = run_command(
        "explain", "--destination", destination, "--process", process, "--at", tick, *saved_run.files()
    )
    expected = from_files.out.partition("  verdicts over time")[0]
    assert expected in from_checkpoint.out
    assert f"    {tick}  true: the condition holds\n" in from_checkpoint.out
    opened = saved_run.alerts[0].tick_ms
    assert opened % (5 * MINUTE_MS) == 0
    assert "  in the checkpoint: an episode open since 2026-03-02T0" in from_checkpoint.out
    waits = [row for row in saved_run.stored().waiting if row["key"][0] == destination]
    assert (
        f"events that wait for later ticks: {sum(row['partial'][0] for row in waits)} (2026"
        in from_checkpoint.out
    )


def test_explain_at_later_and_earlier_ticks(saved_run: SavedRun, run_command: Command) -> None:
    """At a later tick waiting events are included and the window has moved; an earlier tick is a usage error."""
    later = run_command(*explain_arguments(saved_run, "--at", "2026-03-03T00:01:00Z")).out
    assert (
        "At 2026-03-03T00:05:00.000Z, with the events that wait for ticks up to it and no later ones" in later
    )
    assert "events that wait for later ticks: 0\n" in later
    gone = run_command(*explain_arguments(saved_run, "--at", "2026-03-05")).out
    assert "no event in this window" in gone
    assert "false: expired" in gone or "false: " in gone
    earlier = run_command(*explain_arguments(saved_run, "--at", "2026-03-02T01:00:00Z"))
    assert (earlier.code, earlier.out) == (2, "")
    assert "holds no earlier window" in earlier.err


def test_explain_requires_the_stored_detection_settings(
    saved_run: SavedRun, run_command: Command, tmp_path: Path
) -> None:
    """A configuration with another detection setting is refused with its name; other settings may differ."""
    config = tmp_path / "streamdetect.yaml"
    config.write_text("rules: [{name: Mine, severity: 73}]\n")
    assert "rule Mine [" in run_command(*explain_arguments(saved_run, "--config", str(config))).out
    config.write_text("time: {lateness: 3m}\n")
    result = run_command(*explain_arguments(saved_run, "--config", str(config)))
    assert (result.code, result.out) == (5, "")
    assert "another value of time.lateness" in result.err
    assert run_command(*explain_arguments(saved_run, "--profile", "strict")).code == 5


def test_explain_of_waiting_events_and_of_an_unknown_key(tmp_path: Path, run_command: Command) -> None:
    """Before the first tick there are only waiting events; an unknown destination has no events."""
    saved_run = SavedRun(tmp_path, Settings(), [[event(0), event(1)]])
    saved_run.read(0, 2)
    saved_run.save()
    where = ("--process", "chrome.exe", "--checkpoint", str(tmp_path), "--destination")
    result = run_command("explain", *where, "45.83.64.1")
    assert result.code == 0
    assert result.out.startswith(
        "Checkpoint 1 has evaluated no tick yet.\n\nchrome.exe to 45.83.64.1 (sensor endpoint)"
    )
    assert "in the checkpoint: no open episode" in result.out
    assert "events that wait for later ticks: 2 (2026-03-02T00:05:00.000Z=2)" in result.out
    ahead = run_command("explain", *where, "45.83.64.1", "--at", "2026-03-02T00:05:00Z").out
    assert "FAILS  2 connections // 1 h = 2 an hour, at least 120" in ahead
    unknown = run_command("explain", *where, "192.0.2.77")
    assert unknown.code == 0
    assert "No event of chrome.exe to 192.0.2.77 is in its window, and none waits." in unknown.out


def test_explain_finds_the_null_group_of_a_checkpoint(tmp_path: Path, run_command: Command) -> None:
    """`null` means the key without an address."""
    document = json.loads(event(0))
    document["destination"].pop("address")
    strict = Settings(profile="strict")
    saved_run = SavedRun(tmp_path, strict, [[json.dumps(document).encode()]])
    saved_run.read(0, 1)
    saved_run.save()
    arguments = ("explain", "--destination", "null", "--process", "chrome.exe", "--checkpoint", str(tmp_path))
    assert "chrome.exe to no address (null), rule" in run_command(*arguments).out


# -- Kafka


def test_verify_derives_the_state_again_from_kafka(
    broker: Broker,
    make_topic: Callable[..., str],
    tmp_path: Path,
    shards: list[list[bytes]],
    run_command: Command,
) -> None:
    """The checkpoint of a stopped `run` is the state that the records in Kafka give, read from the window's start."""
    topic = make_topic(partitions=3, retention_ms="-1")
    decoder = Decoder("resilient", 1 << 20)
    stamped = [[Message(line, timestamp_ms=time_of(decoder, line)) for line in shard] for shard in shards]
    produce(broker, topic, stamped, "lz4")
    alerts = tmp_path / "alerts.jsonl"
    sinks: dict[str, Any] = {
        "alerts": {"sink": "file", "path": str(alerts)},
        "dead_letters": {"sink": "none"},
    }
    config = write_run_config(tmp_path, broker, topic, **sinks)
    # The window of 4 hours and the margin before it leave out the first of six hours.
    window = ("--set", "time.lookback=4h", "--set", "rules.0.renotify=5m")
    with live(tmp_path, config, *window) as running:
        running.wait_for(lambda: alerts.exists() and alerts.read_bytes().count(b"\n") > 10)
        running.stop(signal.SIGTERM)
    state = str(tmp_path / "state")
    shown = json.loads(run_command("state", "show", state, "--format", "json").out)
    assert sum(row["offset"] for row in shown["partitions"]) == sum(map(len, shards))
    result = run_command("state", "verify", state, "--config", config, "--from-kafka")
    assert result.code == 0, result.err
    assert "Its records give the same state: " in result.out
    kept = sqlite3.connect(Path(state) / FILE)
    kept.execute("DELETE FROM waiting")
    kept.commit()
    kept.close()
    result = run_command("state", "verify", state, "--config", config, "--from-kafka")
    assert result.code == 5
    assert "waiting for 2026-03-02T" in result.err
    assert ", events: in the checkpoint none, from the records " in result.err


def time_of(decoder: Decoder, line: bytes) -> int:
    result = decoder.decode(line)
    assert isinstance(result, Event)
    return result.time_ms


def test_export_refuses_to_write_into_the_checkpoint_directory(
    saved_run: SavedRun, run_command: Command
) -> None:
    """A wrong argument must not destroy the checkpoint."""
    saved_run.save()
    result = run_command(
        "state", "export", str(saved_run.folder), "-o", str(saved_run.folder / "state.sqlite3")
    )
    assert result.code == 2
    assert "read-only" in result.err
    assert run_command("state", "verify", str(saved_run.folder)).code == 0
