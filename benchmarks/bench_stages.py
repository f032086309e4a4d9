"""Time of a record by stage: a replay of a file, where each run includes one more stage than the run before.

The cost of a stage is the difference from the run before, in nanoseconds for each record of the file, whether or not
the record reaches the stage. Every run starts with empty caches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import orjson
from common import measure_in_turns, pin, table, write_records

from streamdetect.config import Settings
from streamdetect.detect import Detector
from streamdetect.detect.rules import ProcessRules, enabled_rules
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


def apply_rules(settings: Settings, *, context: bool) -> Work:
    """Filter by process name, then by flow; with `context` also by kind, and derive the context of those that count."""
    decode, rules = (
        Decoder(settings.profile, settings.limits.max_record_bytes).decode,
        enabled_rules(settings),
    )
    by_process = {
        name: ProcessRules([rule for rule in rules if name in rule.processes])
        for name in {name for rule in rules for name in rule.processes}
    }

    def work(raw: bytes) -> None:
        event = decode(raw)
        if isinstance(event, Refusal):
            return
        process_rules = by_process.get(event.process_name)  # type: ignore[arg-type]  # MANY is not in it
        if process_rules is None:
            return
        flow = event.flow()
        if process_rules.of_flow[flow] is None and context:
            kind = event.kind()
            if process_rules.of_kind[kind] is None:
                event.context(flow, kind)

    return work


def accept(settings: Settings, *, ticks: bool) -> Work:
    """Clock, first including tick and pending pane; with `ticks` also the evaluation of ticks."""
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
    "utf-8 check, time, process name": decode,
    "flow, verdict": lambda settings: apply_rules(settings, context=False),
    "kind, context": lambda settings: apply_rules(settings, context=True),
    "clock, pending pane": lambda settings: accept(settings, ticks=False),
    "ticks": lambda settings: accept(settings, ticks=True),
}


def feed(path: Path, stage: Stage) -> None:
    work = stage(Settings())
    with closing(FileSource([str(path)])) as source:
        while not source.at_end():
            for batch in source.poll((), 0):
                for value in batch.values:
                    work(value)  # type: ignore[arg-type]  # records of files have values


def replay(path: Path) -> None:
    with closing(FileSource([str(path)])) as source:
        run_replay(settings=Settings(), source=source, alert_sink=NullSink(), dead_letter_sink=NullSink())


def show(path: Path, shape: str, core: int) -> None:
    tasks: dict[str, Callable[[], object]] = {
        name: lambda stage=stage: feed(path, stage)  # type: ignore[misc]  # bound in each iteration
        for name, stage in {**STAGES, "orjson": untyped}.items()
    }
    seconds = measure_in_turns({**tasks, "replay": lambda: replay(path)}, ROUNDS)
    parse = seconds["orjson"] - seconds["read the file"]
    rows, before = [], 0.0
    for name in STAGES:
        rows.append((name, seconds[name] - before))
        before = seconds[name]
    rows += [("loop of replay", seconds["replay"] - before), ("replay, total", seconds["replay"])]
    rows.append(("orjson.loads, for comparison", parse))
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
