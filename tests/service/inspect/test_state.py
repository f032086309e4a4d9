"""`state show`, `verify`, `export` and `explain --checkpoint`, on states that a real detector saved in a real store."""

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
from checkpoint_work import START_MS, Work
from commands import Message, configured, live, produce
from strategies import DataSet, as_lines, data_sets
from streamdetect.checkpoint import Checkpoint, Row, Stored
from streamdetect.checkpoint.sqlite import SqliteStore
from streamdetect.checkpoint.sqlitefile import FILE
from streamdetect.cli import entry
from streamdetect.cli.tables import table_text
from streamdetect.config import Settings
from streamdetect.errors import CheckpointError
from streamdetect.events import Decoder, Event
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.service.inspect import describe
from streamdetect.service.inspect.differences import Comparison, Difference
from streamdetect.service.inspect.verify import FilePartitions, kafka_start_ms, rederive
from streamdetect.sinks import Outputs
from streamdetect.sources.files import FileSource
from streamdetect.synthetic import Beacon, Scenario, lines

HOUR_MS, MINUTE_MS = 3_600_000, 60_000


@dataclass
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the real command in this process."""

    def run(*arguments: str) -> Outcome:
        code = entry.run(arguments)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def compared(work: Work) -> Comparison:
    """What `state verify` compares, from the beginning of all records."""
    examined = describe.examine(SqliteStore(str(work.folder), None), work.settings)
    return rederive(examined, work.source())


# -- a day of an estate


@pytest.fixture(scope="module")
def shards() -> list[list[bytes]]:
    """Ten hosts of all shapes for six hours with a beacon, dealt out at random to three partitions."""
    plan = Scenario(hosts=10, hours=6, start_ms=START_MS, beacons=(Beacon(25_000, 5_000),), shape="mixed")
    rng, dealt = Random(7), [list[bytes]() for _ in range(3)]
    for line in lines(plan):
        rng.choice(dealt).append(line.rstrip(b"\n"))
    return dealt


@pytest.fixture
def work(tmp_path: Path, shards: list[list[bytes]]) -> Work:
    """Nine tenths of the day, saved three times; an alert and a dead letter wait to be published."""
    found = Work(tmp_path / "state", Settings(), shards)
    for share in (0.3, 0.6, 0.9):
        found.read_side_by_side(share)
        dead_letter = DeadLetter(Record(Partition("events", 1), 7, None, None, b"{"), "not_json", "torn")
        mark = {"path": "/var/alerts.jsonl", "length": 1234}
        found.save(Outputs(found.alerts, [dead_letter]), alerts=mark, follows={})
    return found


# -- show


def test_show_tells_what_is_in_it(work: Work, told: Callable[..., Outcome]) -> None:
    """As JSON: positions, clocks, keys, what waits, the open episode with its figures, pending results, files."""
    found = json.loads(told("state", "show", str(work.folder), "--format", "json").out)
    detector = work.detector
    assert (found["number"], found["state"]) == (3, work.store.state)
    assert found["size_bytes"] > 50_000
    assert [row["offset"] for row in found["partitions"]] == work.offsets
    newest_ms = max(processor.clock.now_ms or 0 for processor in detector.processors.values())
    for row, processor in zip(found["partitions"], detector.processors.values(), strict=True):
        assert (row["topic"], row["number"], row["idle"], row["leaps"]) == (*processor.partition, False, None)
        assert row["behind_ms"] == newest_ms - (processor.clock.now_ms or 0)
    assert found["keys"]["count"] == sum(group["keys"] for group in found["keys"]["groups"]) == detector.keys
    rows = list(detector.export_state())
    waiting = [row for row in rows if row["kind"] == "waiting"]
    assert found["waiting"]["events"] == sum(row["partial"][0] for row in waiting) > 0
    (episode,) = found["episodes"]
    assert episode["opened"] == episode["alerted"]
    assert episode["figures"]["number_of_con_per_hour"] >= 120
    assert [alert["action"] for alert in found["pending"]["alerts"]] == ["opened"]
    assert found["pending"]["dead_letters"] == {"not_json": 1}
    assert found["marks"] == {"alerts": {"path": "/var/alerts.jsonl", "length": 1234}}
    assert (found["settings"]["profile"], found["settings"]["time"]["lookback"]) == ("resilient", "24h")


def test_show_is_plain_text_elsewhere(work: Work, told: Callable[..., Outcome]) -> None:
    """Not on a terminal: columns of text, one line a row, and nothing drawn."""
    shown = told("state", "show", str(work.folder))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("checkpoint 3 of state ")
    assert f"\n  events       0  {work.offsets[0]:>6,}  2026-03-02T" in shown.out
    assert "\n  opened at 2026-03-02T" not in shown.out
    assert "alerts, opened at 2026-03-02T" in shown.out
    assert "/var/alerts.jsonl" in shown.out
    assert "┃" not in shown.out


def test_show_tells_leaps_and_empty_partitions(tmp_path: Path, told: Callable[..., Outcome]) -> None:
    """A record two hours ahead of its partition's clock is told as a leap; a partition without events has no clock."""
    ahead = [event(0), event(2 * HOUR_MS, host="h1")]
    made = Work(tmp_path, Settings(), [ahead, []])
    made.read(0, 2)
    made.save()
    first, second = json.loads(told("state", "show", str(tmp_path), "--format", "json").out)["partitions"]
    assert first["leaps"] == {"records": 1, "from": "2026-03-02T02:00:00.000Z", "host": "h1"}
    assert (second["clock"], second["behind_ms"], second["offset"]) == (None, None, 0)
    shown = told("state", "show", str(tmp_path)).out
    assert "1 records from 2026-03-02T02:00:00.000Z on" in shown
    assert "evaluated no tick yet" in shown


def test_a_table_is_drawn_on_a_terminal() -> None:
    """There rich draws it; what events say is no markup, and a table without rows is only named."""
    console = Console(force_terminal=True, width=60, color_system=None)
    drawn = table_text("keys", ["name", "count"], [["[bold]x", 12345], [None, None]], console)
    assert "┃" in drawn
    assert "[bold]x" in drawn
    assert "12,345" in drawn
    assert table_text("keys", [], [], console) == "keys: none"


def event(after_ms: int, host: str = "h1", address: str = "45.83.64.1", process: str = "p1") -> bytes:
    """One event of chrome.exe, so long after the start of the day."""
    document: dict[str, Any] = {
        "@timestamp": START_MS + after_ms,
        "event": {"category": ["network"], "dataset": "endpoint.events.network"},
        "network": {"direction": "egress"},
        "host": {"id": host, "name": host.upper(), "os": {"family": "windows"}},
        "process": {"name": "chrome.exe", "entity_id": process, "pid": 7},
        "destination": {"ip": address, "address": address, "port": 443},
    }
    return json.dumps(document).encode()


# -- no checkpoint, or one that changes


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_no_checkpoint_is_5(tmp_path: Path, told: Callable[..., Outcome], command: str) -> None:
    """A directory without one, and one in which nothing was saved yet."""
    found = told("state", command, str(tmp_path))
    assert (found.code, found.out) == (5, "")
    assert "holds no checkpoint" in found.err
    SqliteStore(str(tmp_path), Settings().detection()).close()
    found = told("state", command, str(tmp_path))
    assert found.code == 5
    assert "There is no checkpoint yet" in found.err


class Busy(SqliteStore):
    """A store that is written while it is read: between the rows of each look comes the next checkpoint."""

    def __init__(self, work: Work, times: int) -> None:
        super().__init__(str(work.folder), None)
        self._work = work
        self._times = times

    def load(self) -> Stored | None:
        found = super().load()
        if found is not None and self._times:
            found.keys = self._then_saved(found.keys)
        return found

    def _then_saved(self, rows: Iterable[Row]) -> Iterable[Row]:
        if self._times:
            self._times -= 1
            self._work.read_side_by_side(1 - self._times / 100)
            self._work.save()
        yield from rows


def test_one_checkpoint_is_read_while_the_next_are_written(tmp_path: Path, shards: list[list[bytes]]) -> None:
    """What is told is all of one checkpoint, never half of it and half of the next."""
    work = Work(tmp_path, Settings(), shards)
    work.read_side_by_side(0.5)
    work.save()
    before, source = list(work.offsets), work.source()
    busy = Busy(work, 3)
    examined = describe.examine(busy)
    assert examined.number == 1
    assert list(examined.offsets.values()) == before != work.offsets
    assert not rederive(examined, source).differences
    busy.close()
    assert len(describe.export_lines(Busy(work, 2))) > 100


# -- export


def test_export_is_every_row_in_order(work: Work, told: Callable[..., Outcome], tmp_path: Path) -> None:
    """JSON lines by kind, whatever the order they were saved in; -o writes and packs a file."""
    exported = told("state", "export", str(work.folder))
    assert (exported.code, exported.err) == (0, "")
    rows = [json.loads(line) for line in exported.out.splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds == sorted(kinds, key=["progress", "partition", "key", "waiting", "pending"].index)
    assert kinds.count("key") == work.detector.keys
    assert [row["output"]["kind"] for row in rows if row["kind"] == "pending"] == ["alert", "letter"]
    mixed = Work(tmp_path / "mixed", work.settings, [[], [], []])
    stored: list[Row] = json.loads(json.dumps(list(work.stored().rows())))
    head, tail = stored[:4], stored[4:]
    Random(1).shuffle(tail)
    pending = work.stored().pending
    keys, waiting = ([row for row in tail if row["kind"] == kind] for kind in ("key", "waiting"))
    mixed.store.save(Checkpoint(1, head[0], head[:0:-1], keys, waiting, pending=pending))
    path = tmp_path / "state.jsonl.gz"
    assert told("state", "export", str(tmp_path / "mixed"), "-o", str(path)).code == 0
    assert gzip.decompress(path.read_bytes()).decode() == exported.out


# -- verify


def test_verify_says_what_was_looked_through(work: Work, told: Callable[..., Outcome]) -> None:
    """One line with the numbers, and exit code 0."""
    found = told("state", "verify", str(work.folder))
    assert (found.code, found.err) == (0, "")
    waiting = sum(row["kind"] == "waiting" for row in work.stored().rows())
    assert found.out == (
        f"Checkpoint 3 is whole: keys {work.detector.keys:,}, open episodes 1, waiting partials {waiting:,}, "
        "partitions 3, unpublished results 2.\n"
    )


def test_verify_finds_damage(work: Work, told: Callable[..., Outcome]) -> None:
    """A row that is not what its checksum says ends with 5 and the ways on."""
    inside = sqlite3.connect(work.folder / FILE)
    inside.execute("UPDATE keys SET crc = crc + 1")
    inside.commit()
    for command in ("verify", "export", "show"):
        found = told("state", command, str(work.folder))
        assert (found.code, found.out) == (5, "")
        assert "checksum" in found.err
        assert "--rebuild" in found.err


ODD_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no panes": ("key", {"panes": []}, "its panes are none"),
    "panes out of order": ("key", {"panes": [[900_000, 900_000, 1], [0, 0, 1]]}, "out of order"),
    "an empty pane": ("key", {"panes": [[0, 0, 0]]}, "a pane has no events"),
    "a long pane": ("key", {"panes": [[0, 300_000, 2]]}, "of another pane"),
    "few details": ("key", {"details": [["h"], ["p"]]}, "details of its latest event"),
    "another tick": ("waiting", {"tick_ms": START_MS + 1}, "not of their pane"),
    "another pane": ("waiting", {"pane_ms": 0}, "not of their pane"),
    "unknown rule": ("key", {"rule": "another"}, "'another'"),
    "negative count": ("key", {"panes": [[0, 0, -1]]}, "cannot read"),
}


@pytest.mark.parametrize("name", ODD_ROWS)
def test_verify_finds_what_no_engine_makes(work: Work, told: Callable[..., Outcome], name: str) -> None:
    """Rows that are as they were written, and still wrong: 5, and no traceback."""
    kind, change, text = ODD_ROWS[name]

    def spoil(rows: list[Row]) -> None:
        next(row for row in rows if row["kind"] == kind).update(change)

    work.save_changed(spoil)
    found = told("state", "verify", str(work.folder))
    assert (found.code, found.out) == (5, "")
    assert text in found.err
    assert "Traceback" not in found.err


def test_verify_derives_the_state_again_from_files(work: Work, told: Callable[..., Outcome]) -> None:
    """Each file up to the offset of its partition gives the same: how much was compared, and exit code 0."""
    found = told("state", "verify", str(work.folder), *work.files())
    assert found.code == 0, found.err
    rows = list(work.stored().rows())
    keys = {(row["rule"], *row["key"]) for row in rows if row["kind"] in {"key", "waiting"}}
    events = sum(events for row in rows if row["kind"] == "key" for _, _, events in row["panes"])
    events += sum(row["partial"][0] for row in rows if row["kind"] == "waiting")
    assert found.out.splitlines()[1] == (
        f"Its records give the same: {len(keys):,} keys and {events:,} events (or waiting ones) of 3 partitions."
    )


def test_verify_wants_one_file_for_each_partition(work: Work, told: Callable[..., Outcome]) -> None:
    """Too few are wrong usage; one that is too short is told, and so are files in another order."""
    first, second, third = work.files()
    found = told("state", "verify", str(work.folder), first, second)
    assert found.code == 2
    assert "one file for each: events-0, events-1, events-2." in found.err
    assert told("state", "verify", str(work.folder), first, "--from-kafka").code == 2
    found = told("state", "verify", str(work.folder), second, first, third)
    assert found.code == 5
    assert "  events-0: clock: in the checkpoint 2026-03-02T" in found.err
    all_lines = Path(third).read_bytes().splitlines(keepends=True)
    Path(third).write_bytes(b"".join(all_lines[:100]))
    found = told("state", "verify", str(work.folder), first, second, third)
    assert found.code == 5
    assert (
        f"events-2: records: in the checkpoint {work.offsets[2]:,} were read, from the records the file holds 100"
        in (found.err)
    )


def test_twenty_differences_are_listed() -> None:
    """However many there are; all are counted."""
    found = Comparison(differences=[Difference(f"key {n}", "events", "1", "2") for n in range(1_234)])
    with pytest.raises(CheckpointError) as caught:
        found.verdict()
    told = str(caught.value).splitlines()
    assert told[0].endswith("in 1,234 places (the first 20):")
    assert told[20] == "  key 19: events: in the checkpoint 1, from the records 2"
    assert len(told) == 22


def busiest(rows: list[Row], kind: str) -> Row:
    """The key with the open episode, or what waits for it."""
    (key,) = (row["key"] for row in rows if row["kind"] == "key" and row["episode"] is not None)
    return next(row for row in rows if row["kind"] == kind and row["key"] == key)


def one_more(rows: list[Row]) -> None:
    busiest(rows, "key")["panes"][3][2] += 1


def without_the_key(rows: list[Row]) -> None:
    rows.remove(next(row for row in rows if row["kind"] == "key" and row["episode"] is None))


def other_clock(rows: list[Row]) -> None:
    rows[2]["clock_ms"] += 1


def leap(rows: list[Row]) -> None:
    rows[1]["run"] = [3, START_MS + 9 * HOUR_MS, "h"]


def without_what_waits(rows: list[Row]) -> None:
    rows.remove(busiest(rows, "waiting"))


def fewer_wait(rows: list[Row]) -> None:
    busiest(rows, "waiting")["partial"][0] += 1


def other_tick(rows: list[Row]) -> None:
    busiest(rows, "waiting")["tick_ms"] += 300_000


def other_details(rows: list[Row]) -> None:
    busiest(rows, "key")["details"][5] = 4712


def another_host(rows: list[Row]) -> None:
    row = busiest(rows, "key")
    last_ms = row["panes"][-1][1]
    row["recent"] = [
        [[row["details"][0][0], last_ms], ["another", last_ms - 1]],
        [[row["details"][1][0], last_ms]],
    ]


def another_process(rows: list[Row]) -> None:
    row = busiest(rows, "key")
    last_ms = row["panes"][-1][1]
    row["recent"] = [[[row["details"][0][0], last_ms]], [["another", last_ms]]]


def closed_episode(rows: list[Row]) -> None:
    busiest(rows, "key")["episode"] = None


def other_episode(rows: list[Row]) -> None:
    busiest(rows, "key")["episode"][1] += 300_000


Change = Callable[[list[Row]], None]
CHANGES: dict[Change, str] = {
    one_more: "events of the pane 2026-03-02T",
    without_the_key: "events: in the checkpoint none, from the records",
    other_clock: "events-1: clock: in the checkpoint 2026-03-02T",
    leap: "and 3 records too far ahead, from 2026-03-02T09:00:00.000Z on, from the records 2026-03-02T",
    without_what_waits: "events: in the checkpoint none, from the records",
    fewer_wait: "waiting for 2026-03-02T",
    other_tick: "waiting for 2026-03-02T",
    other_details: "latest event: in the checkpoint {",
    another_host: "hosts: in the checkpoint",
    another_process: "processes: in the checkpoint another at 2026-03-02T",
    closed_episode: "episode: in the checkpoint none is open, from the records open since 2026-03-02T",
    other_episode: "episode: in the checkpoint open since 2026-03-02T",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_verify_finds_what_is_not_what_the_records_give(
    work: Work, told: Callable[..., Outcome], change: Change
) -> None:
    """Whole and wrong: the place and both sides are told, with exit code 5, and no other place than that."""
    work.save_changed(change)
    assert told("state", "verify", str(work.folder)).code == 0
    found = told("state", "verify", str(work.folder), *work.files())
    assert found.code == 5
    assert CHANGES[change] in found.err
    places = 2 if change is other_tick else 1
    assert f"not what its records give, in {places} place" in found.err


@example_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(), st.integers(0, 2**32))
def test_any_state_is_what_its_files_give(
    tmp_path_factory: pytest.TempPathFactory, data_set: DataSet, seed: int
) -> None:
    """Random data, read in any order, saved at random places: derived again it is the same."""
    records = [[line.encode() for line in as_lines(partition)] for partition in data_set.partitions]
    work = Work(tmp_path_factory.mktemp("state"), settings_from(data_set.settings), records)
    work.at_random(Random(seed))
    examined = describe.examine(SqliteStore(str(work.folder), None))
    found = rederive(examined, FilePartitions(FileSource(work.files(), 50), examined.offsets))
    assert (found.differences, found.late) == ([], [])


@example_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets(timestamps=True), st.integers(0, 2**32))
def test_any_state_is_what_its_records_give(
    tmp_path_factory: pytest.TempPathFactory, data_set: DataSet, seed: int
) -> None:
    """The same with the records' timestamps, as Kafka has them."""
    records = [[as_message(record) for record in partition] for partition in data_set.partitions]
    work = Work(tmp_path_factory.mktemp("state"), settings_from(data_set.settings), records)
    work.at_random(Random(seed))
    found = compared(work)
    assert (found.differences, found.late) == ([], [])


def as_message(record: tuple[Any, int]) -> tuple[bytes, int]:
    document, at = record
    return (document if isinstance(document, str) else json.dumps(document)).encode(), at


def compared_from_the_window(work: Work) -> Comparison:
    """What `state verify --from-kafka` compares: from the first record that has the timestamp of the window's start."""
    examined = describe.examine(SqliteStore(str(work.folder), None), work.settings)
    start_ms = kafka_start_ms(examined)
    assert start_ms is not None
    source = work.source()
    places = [
        next((place for place, record in enumerate(records) if int(record[1]) >= start_ms), len(records))
        for records in work.records
    ]
    assert min(places) > 50
    source.begin(dict(zip(work.partitions, places, strict=True)))
    return rederive(examined, source, start_ms=start_ms)


@pytest.mark.parametrize("share", [0.75, 0.83, 0.91, 1.0])
def test_a_state_is_what_its_window_gives(tmp_path: Path, shards: list[list[bytes]], share: float) -> None:
    """Records from before the window change nothing; of an episode from before it only that it is open is compared."""
    settings = Settings.model_validate(
        {"time": {"lookback": "1h"}, "rules": [{"min_duration_hours": 1, "renotify": "5m"}]}
    )
    decoder = Decoder("resilient", 1 << 20)
    work = Work(tmp_path, settings, [[(line, time_of(decoder, line)) for line in shard] for shard in shards])
    work.read_side_by_side(share)
    work.save()
    assert any(row["episode"] for row in work.stored().keys)
    found = compared_from_the_window(work)
    assert (found.differences, found.late) == ([], [])
    work.save_changed(one_more)
    assert len(compared_from_the_window(work).differences) == 1


def test_a_wild_record_before_the_window_moves_no_clock(tmp_path: Path) -> None:
    """One that its own clock has stamped is the first that is found for the window's start; it is not believed."""
    settings = Settings.model_validate({"time": {"lookback": "1h"}})
    records = [(event(minute * MINUTE_MS), START_MS + minute * MINUTE_MS) for minute in range(300)]
    records.insert(60, (event(20 * HOUR_MS), START_MS + 20 * HOUR_MS))
    work = Work(tmp_path, settings, [records])
    work.read(0, len(records))
    work.advance()
    work.save()
    found = compared_from_the_window(work)
    assert (found.differences, found.late) == ([], [])


def late(tmp_path: Path) -> Work:
    """A partition that was idle comes back with two events of 01:02 when 01:10 has been evaluated."""
    minutes = [event(minute * MINUTE_MS) for minute in range(73)]
    made = Work(tmp_path, Settings(), [minutes, [event(62 * MINUTE_MS), event(62 * MINUTE_MS + 1)]])
    made.idle(1)
    made.read(0, 73)
    made.advance()  # the watermark is 01:12 - 2 min
    made.idle(1, idle=False)
    made.read(1, 2)
    made.save()
    return made


def test_verify_tells_late_events_apart(tmp_path: Path, told: Callable[..., Outcome]) -> None:
    """They wait for the next tick, live, and count already in a replay: told as that, with exit code 0."""
    made = late(tmp_path)
    found = told("state", "verify", str(tmp_path), *made.files())
    assert found.code == 0, found.err
    assert "Its records give the same but for events that came late" in found.out
    assert (
        "2 events: in the checkpoint they count from 2026-03-02T01:15:00.000Z on, from the records they count at "
        "2026-03-02T01:10:00.000Z"
    ) in found.out
    made.read(0, 1)
    made.advance_to(75 * MINUTE_MS)
    made.save()
    assert "Its records give the same: " in told("state", "verify", str(tmp_path), *made.files()).out


def test_verify_does_not_take_a_loss_for_lateness(tmp_path: Path, told: Callable[..., Outcome]) -> None:
    """Fewer events in the window than the records give, and none that wait for them: 5."""
    made = late(tmp_path)

    def lose(rows: list[Row]) -> None:
        (waiting,) = (
            row for row in rows if row["kind"] == "waiting" and row["pane_ms"] == START_MS + HOUR_MS
        )
        rows.remove(waiting)

    made.save_changed(lose)
    found = told("state", "verify", str(tmp_path), *made.files())
    assert found.code == 5
    assert "events of the pane 2026-03-02T01:00:00.000Z: in the checkpoint 5 from" in found.err


def test_late_events_of_the_pane_that_leaves_count_nowhere(tmp_path: Path) -> None:
    """Beside other late ones they are explained, alone they are a difference: nothing shows what they were."""
    day = [event(minute * 10 * MINUTE_MS) for minute in range(6 * 24 + 2)]
    for others in ([event(2 * HOUR_MS, address="9.9.9.9")], []):
        first = event(6 * MINUTE_MS, address="8.8.8.8")
        made = Work(tmp_path / str(len(others)), Settings(), [day, [first, *others]])
        made.idle(1)
        made.read(0, len(day))  # up to 00:10 of the next day, so 00:05 is evaluated
        made.advance()
        made.idle(1, idle=False)
        made.read(1, 1)
        assert not made.pane_waits(START_MS + 5 * MINUTE_MS)
        made.read(1, 1)
        made.save()
        found = compared(made)
        assert (len(found.differences), len(found.late)) == ((0, 2) if others else (1, 0))


def test_keys_given_up_are_named_as_a_cause(tmp_path: Path) -> None:
    """Where limits.max_keys was reached, a difference may come from that alone, and the message says so."""
    records = [event(n * MINUTE_MS, address=f"9.9.9.{n}") for n in range(60)]
    small = Settings.model_validate({"limits": {"max_keys": 10}})
    made = Work(tmp_path, small, [records])
    made.read(0, 60)
    made.advance()
    made.save()
    examined = describe.examine(SqliteStore(str(tmp_path), None), small)
    assert rederive(examined, made.source()).verdict().startswith("Its records give the same: ")
    examined = describe.examine(SqliteStore(str(tmp_path), None))
    with pytest.raises(CheckpointError) as caught:
        rederive(examined, made.source()).verdict()
    assert "events: in the checkpoint none, from the records 1" in str(caught.value)
    made.save_changed(one_key_less)
    examined = describe.examine(SqliteStore(str(tmp_path), None), small)
    with pytest.raises(CheckpointError, match=r"limits\.max_keys\), which alone may be the cause"):
        rederive(examined, made.source()).verdict()


def one_key_less(rows: list[Row]) -> None:
    rows.remove(next(row for row in rows if row["kind"] == "key"))


def test_settings_come_back_from_what_was_stored() -> None:
    """What decides is the same; rules are named by their ids, but for the hunt."""
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


def asked(work: Work, *more: str) -> tuple[str, ...]:
    (episode,) = (row for row in work.stored().keys if row["episode"] is not None)
    address, process, _ = episode["key"]
    where = ("--checkpoint", str(work.folder))
    return ("explain", "--destination", address, "--process", process.upper(), *where, *more)


def test_explain_from_a_checkpoint_is_that_from_the_files(work: Work, told: Callable[..., Outcome]) -> None:
    """At the evaluated tick: the same window and arithmetic; and the episode, and what waits."""
    live_told = told(*asked(work))
    assert (live_told.code, live_told.err) == (0, "")
    tick = live_told.out.splitlines()[0].rpartition(" ")[2].rstrip(".")
    destination, process = asked(work)[2], asked(work)[4]
    replayed = told(
        "explain", "--destination", destination, "--process", process, "--at", tick, *work.files()
    )
    expected = replayed.out.partition("  verdicts over time")[0]
    assert expected in live_told.out
    assert f"    {tick}  true: the condition holds\n" in live_told.out
    opened = work.alerts[0].tick_ms
    assert opened % (5 * MINUTE_MS) == 0
    assert "  in the checkpoint: an episode open since 2026-03-02T0" in live_told.out
    waits = [row for row in work.stored().waiting if row["key"][0] == destination]
    assert (
        f"events that wait for later ticks: {sum(row['partial'][0] for row in waits)} (2026" in live_told.out
    )


def test_explain_looks_ahead_but_not_back(work: Work, told: Callable[..., Outcome]) -> None:
    """A later tick takes the events that wait and lets the window go on; an earlier one is wrong usage."""
    later = told(*asked(work, "--at", "2026-03-03T00:01:00Z")).out
    assert (
        "At 2026-03-03T00:05:00.000Z, with the events that wait for ticks up to it and no later ones" in later
    )
    assert "events that wait for later ticks: 0\n" in later
    gone = told(*asked(work, "--at", "2026-03-05")).out
    assert "no event in this window" in gone
    assert "false: expired" in gone or "false: " in gone
    earlier = told(*asked(work, "--at", "2026-03-02T01:00:00Z"))
    assert (earlier.code, earlier.out) == (2, "")
    assert "holds no earlier window" in earlier.err


def test_explain_takes_the_stored_settings_or_the_same(
    work: Work, told: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A configuration that decides otherwise is refused by the setting's name; one that decides the same is taken."""
    config = tmp_path / "streamdetect.yaml"
    config.write_text("rules: [{name: Mine, severity: 73}]\n")
    assert "rule Mine [" in told(*asked(work, "--config", str(config))).out
    config.write_text("time: {lateness: 3m}\n")
    found = told(*asked(work, "--config", str(config)))
    assert (found.code, found.out) == (5, "")
    assert "another value of time.lateness" in found.err
    assert told(*asked(work, "--profile", "strict")).code == 5


def test_explain_of_what_only_waits_and_of_nothing(tmp_path: Path, told: Callable[..., Outcome]) -> None:
    """Before the first tick there is only what waits; an unknown destination is told as that."""
    made = Work(tmp_path, Settings(), [[event(0), event(1)]])
    made.read(0, 2)
    made.save()
    where = ("--process", "chrome.exe", "--checkpoint", str(tmp_path), "--destination")
    found = told("explain", *where, "45.83.64.1")
    assert found.code == 0
    assert found.out.startswith(
        "Checkpoint 1 has evaluated no tick yet.\n\nchrome.exe to 45.83.64.1 (sensor endpoint)"
    )
    assert "in the checkpoint: no open episode" in found.out
    assert "events that wait for later ticks: 2 (2026-03-02T00:05:00.000Z=2)" in found.out
    ahead = told("explain", *where, "45.83.64.1", "--at", "2026-03-02T00:05:00Z").out
    assert "FAILS  2 connections // 1 h = 2 an hour, at least 120" in ahead
    unknown = told("explain", *where, "192.0.2.77")
    assert unknown.code == 0
    assert "No event of chrome.exe to 192.0.2.77 is in its window, and none waits." in unknown.out


def test_explain_finds_the_null_group_of_a_checkpoint(tmp_path: Path, told: Callable[..., Outcome]) -> None:
    """`null` asks for the key without an address."""
    document = json.loads(event(0))
    document["destination"].pop("address")
    strict = Settings(profile="strict")
    made = Work(tmp_path, strict, [[json.dumps(document).encode()]])
    made.read(0, 1)
    made.save()
    asks = ("explain", "--destination", "null", "--process", "chrome.exe", "--checkpoint", str(tmp_path))
    assert "chrome.exe to no address (null), rule" in told(*asks).out


# -- Kafka


def test_verify_derives_the_state_again_from_kafka(
    broker: Broker,
    make_topic: Callable[..., str],
    tmp_path: Path,
    shards: list[list[bytes]],
    told: Callable[..., Outcome],
) -> None:
    """What `run` left when it was stopped is what Kafka's records give, read from where the window begins."""
    topic = make_topic(partitions=3, retention_ms="-1")
    decoder = Decoder("resilient", 1 << 20)
    stamped = [[Message(line, timestamp_ms=time_of(decoder, line)) for line in shard] for shard in shards]
    produce(broker, topic, stamped, "lz4")
    alerts = tmp_path / "alerts.jsonl"
    sinks: dict[str, Any] = {
        "alerts": {"sink": "file", "path": str(alerts)},
        "dead_letters": {"sink": "none"},
    }
    config = configured(tmp_path, broker, topic, **sinks)
    # A window of 4 hours and what is read before it leave out the first of six hours.
    window = ("--set", "time.lookback=4h", "--set", "rules.0.renotify=5m")
    with live(tmp_path, config, *window) as running:
        running.wait_for(lambda: alerts.exists() and alerts.read_bytes().count(b"\n") > 10)
        running.stop(signal.SIGTERM)
    state = str(tmp_path / "state")
    shown = json.loads(told("state", "show", state, "--format", "json").out)
    assert sum(row["offset"] for row in shown["partitions"]) == sum(map(len, shards))
    found = told("state", "verify", state, "--config", config, "--from-kafka")
    assert found.code == 0, found.err
    assert "Its records give the same: " in found.out
    kept = sqlite3.connect(Path(state) / FILE)
    kept.execute("DELETE FROM waiting")
    kept.commit()
    kept.close()
    found = told("state", "verify", state, "--config", config, "--from-kafka")
    assert found.code == 5
    assert "waiting for 2026-03-02T" in found.err
    assert ", events: in the checkpoint none, from the records " in found.err


def time_of(decoder: Decoder, line: bytes) -> int:
    found = decoder.decode(line)
    assert isinstance(found, Event)
    return found.time_ms


def test_export_never_writes_into_the_checkpoint(work: Work, told: Callable[..., Outcome]) -> None:
    """Else one wrong argument would destroy what it is to show."""
    work.save()
    found = told("state", "export", str(work.folder), "-o", str(work.folder / "state.sqlite3"))
    assert found.code == 2
    assert "read-only" in found.err
    assert told("state", "verify", str(work.folder)).code == 0
