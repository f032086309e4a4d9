"""Where the time of a record goes: a replay of a file, stage by stage, each run with all stages before it.

A stage's cost is the difference to the run before, in nanoseconds for each record of the file, whether or not it gets
so far. Every run begins with nothing remembered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import orjson
from common import in_turns, pin, table, write_records

from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.events import Decoder, Refusal
from streamdetect.events.typed import DOCUMENT
from streamdetect.model import Partition
from streamdetect.service.bounded.replay import run_replay
from streamdetect.sinks.files import NullSink
from streamdetect.sources.files import FileSource

COUNT, HOSTS, ROUNDS = 150_000, 400, 5
TICK_RECORDS = 2_000

Work = Callable[[bytes], object]
Stage = Callable[[Settings], Work]


def nothing(settings: Settings) -> Work:
    del settings
    return lambda _: None


def untyped(settings: Settings) -> Work:
    del settings
    return orjson.loads


def typed(settings: Settings) -> Work:
    del settings
    return msgspec.json.Decoder(DOCUMENT).decode


def decode(settings: Settings) -> Work:
    return Decoder(settings.profile, settings.limits.max_record_bytes).decode


def judge(settings: Settings, *, context: bool) -> Work:
    """The process name, then where it went; with `context` also what it is, for those that still may count."""
    decode, judges = (
        Decoder(settings.profile, settings.limits.max_record_bytes).decode,
        Detector(settings).judges,
    )

    def work(raw: bytes) -> None:
        event = decode(raw)
        if isinstance(event, Refusal):
            return
        wanted = judges.get(event.process_name)
        if wanted is None:
            return
        flow = event.flow()
        if wanted.of_flow[flow] is None and context:
            kind = event.kind()
            if wanted.of_kind[kind] is None:
                event.context(flow, kind)

    return work


def accept(settings: Settings, *, ticks: bool) -> Work:
    """Clock, inclusion tick and inbox; with `ticks` also their evaluation."""
    decode, detector = Decoder(settings.profile, settings.limits.max_record_bytes).decode, Detector(settings)
    processor, number = detector.processor(Partition("events")), 0

    def work(raw: bytes) -> None:
        nonlocal number
        event = decode(raw)
        if not isinstance(event, Refusal):
            processor.accept(event)
        number += 1
        if ticks and number % TICK_RECORDS == 0:
            detector.advance()

    return work


STAGES: dict[str, Stage] = {
    "read the file": nothing,
    "typed decode": typed,
    "utf-8, time, name": decode,
    "where it went, verdict": lambda settings: judge(settings, context=False),
    "what it is, details": lambda settings: judge(settings, context=True),
    "clock, inbox": lambda settings: accept(settings, ticks=False),
    "ticks": lambda settings: accept(settings, ticks=True),
}


def feed(path: Path, stage: Stage) -> None:
    work = stage(Settings())
    with closing(FileSource([str(path)])) as source:
        while not source.at_end():
            for batch in source.poll((), 0):
                for value in batch.values:
                    work(value)  # type: ignore[arg-type]  # a file has no empty values


def replay(path: Path) -> None:
    with closing(FileSource([str(path)])) as source:
        run_replay(settings=Settings(), source=source, alert_sink=NullSink(), dead_letter_sink=NullSink())


def show(path: Path, shape: str, core: int) -> None:
    tasks: dict[str, Callable[[], object]] = {
        name: lambda stage=stage: feed(path, stage)  # type: ignore[misc]  # bound now
        for name, stage in {**STAGES, "orjson": untyped}.items()
    }
    seconds = in_turns({**tasks, "replay": lambda: replay(path)}, ROUNDS)
    parse = seconds["orjson"] - seconds["read the file"]
    rows, before = [], 0.0
    for name in STAGES:
        rows.append((name, seconds[name] - before))
        before = seconds[name]
    rows += [("the loop of replay", seconds["replay"] - before), ("replay, all of it", seconds["replay"])]
    rows.append(("orjson.loads, to compare", parse))
    table(
        f"{shape}: {COUNT:,} records of {path.stat().st_size / COUNT:,.0f} B, core {core}",
        ("stage", "of orjson.loads", "ns a record"),
        [(name, f"{took / parse:.2f}x", f"{took / COUNT * 1e9:,.0f}") for name, took in rows],
    )


def main() -> None:
    core = pin()
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("defend", "sysmon-raw"):
            path = Path(folder) / f"{shape}.jsonl"
            write_records(path, COUNT, shape, HOSTS)
            show(path, shape, core)


if __name__ == "__main__":
    main()
