"""The product on a data set of tests/strategies.py, in memory: batches in any interleaving, any saving in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from streamdetect.config import Settings
from streamdetect.detect import COUNTED, FUTURE, LATE, Changes, Detector, PartitionProcessor
from streamdetect.events import Decoder, Refusal
from streamdetect.model import Partition

Json = dict[str, Any]


def event(time_ms: int, **more: Any) -> bytes:
    """A record that the default rule counts."""
    document = {
        "@timestamp": time_ms,
        "event": {"category": ["network"]},
        "host": {"id": "h1", "os": {"family": "windows"}},
        "network": {"direction": "egress"},
        "process": {"name": "chrome.exe", "entity_id": "p1"},
        "destination": {"ip": "45.83.64.1", "port": 443},
    }
    return json.dumps(document | more).encode()


def settings_from(plain: Json) -> Settings:
    """Product settings from the oracle's plain ones, which have the same names with times in ms."""
    text = {name.removesuffix("_ms"): f"{ms}ms" for name, ms in plain.items() if name.endswith("_ms")}
    rules = [
        {key: value for key, value in rule.items() if key != "renotify_ms"}
        | {"renotify": f"{rule['renotify_ms']}ms"}
        for rule in plain["rules"]
    ]
    return Settings.model_validate({"profile": plain["profile"], "time": text, "rules": rules})


class Saved:
    """The plainest checkpoint: rows by what they are of, brought up to date by changes."""

    def __init__(self) -> None:
        self.progress: Json = {}
        self.partitions: list[Json] = []
        self.keys: dict[str, Json] = {}
        self.waiting: list[Json] = []

    def apply(self, changes: Changes) -> None:
        self.progress, self.partitions = changes.progress, changes.partitions
        for row in changes.key_rows():
            name = json.dumps([row["rule"], row["key"]])
            if row["kind"] == "forgotten":
                self.keys.pop(name, None)
            else:
                self.keys[name] = row
        done_ms = changes.progress["evaluated_ms"]
        self.waiting = [row for row in (*self.waiting, *changes.waiting_rows()) if not_done(row, done_ms)]

    def rows(self) -> list[Json]:
        rows = [self.progress, *self.partitions, *self.keys.values(), *self.waiting]
        return [json.loads(json.dumps(row)) for row in rows]


def not_done(row: Json, done_ms: int | None) -> bool:
    return done_ms is None or int(row["tick_ms"]) > done_ms


class Run:
    """Feeds records one by one; counts verdicts as a summary would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.decoder = Decoder(settings.profile, settings.limits.max_record_bytes)
        self.detector = Detector(settings)
        self.counted = self.late = self.filtered = 0
        self.dead: dict[str, int] = {}
        self.lines: list[str] = []
        self.saved = Saved()
        self.detector.track_changes()

    def processor(self, number: int) -> PartitionProcessor:
        return self.detector.processor(Partition(f"file-{number}"))

    def feed(self, number: int, record: Any) -> None:
        """One record: a document, or (document, record timestamp)."""
        document, timestamp_ms = record if isinstance(record, tuple) else (record, None)
        raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        event = self.decoder.decode(raw)
        if isinstance(event, Refusal):
            self.dead[event.reason] = self.dead.get(event.reason, 0) + 1
            return
        verdict = self.processor(number).accept(event, timestamp_ms)
        if verdict == FUTURE:
            self.dead[FUTURE] = self.dead.get(FUTURE, 0) + 1
        self.counted += verdict == COUNTED
        self.late += verdict == LATE
        self.filtered += verdict not in (COUNTED, LATE, FUTURE)

    def advance(self) -> None:
        self.lines += [alert.body.decode() for alert in self.detector.advance()]

    def step(self) -> None:
        """One slice of a tick, with whatever comes next between it and the following one."""
        self.lines += [alert.body.decode() for alert in self.detector.step()[0]]

    def end_tick(self) -> None:
        while self.detector.ticking:
            self.step()

    def finish(self) -> None:
        self.lines += [alert.body.decode() for alert in self.detector.finish()]

    def checkpoint(self, *, restore: bool) -> None:
        """Once no tick is under way, write what has changed; then go on with a new detector made from all of it."""
        self.end_tick()
        self.saved.apply(self.detector.take_changes())
        if restore:
            self.detector = Detector(self.settings)
            self.detector.import_state(self.saved.rows())
            self.detector.track_changes()

    def save_and_restore(self) -> None:
        """Go through the exported state, as text, into a new detector."""
        self.end_tick()
        rows = [json.loads(json.dumps(row)) for row in self.detector.export_state()]
        self.detector = Detector(self.settings)
        self.detector.import_state(rows)


def run(
    partitions: Sequence[Sequence[Any]],
    plain: Json,
    rng: Random | None = None,
    saves: float = 0.0,
    checkpoints: float = 0.0,
    slices: float = 0.0,
) -> Run:
    """Run all partitions: one after the other, or interleaved by `rng`.

    Then a record may have a save before it, and a tick may be cut into slices with records in between.
    """
    product = Run(settings_from(plain))
    for number in range(len(partitions)):
        product.processor(number)
    ahead = [list(partition) for partition in partitions]
    while any(ahead):
        open_ones = [number for number, records in enumerate(ahead) if records]
        number = open_ones[0] if rng is None else rng.choice(open_ones)
        for _ in range(1 if rng is None else rng.choice([1, 1, 3, 20])):
            if ahead[number]:
                if rng is not None and rng.random() < saves:
                    product.save_and_restore()
                if rng is not None and rng.random() < checkpoints:
                    product.checkpoint(restore=rng.random() < 0.5)
                product.feed(number, ahead[number].pop(0))
        for index, records in enumerate(ahead):
            product.processor(index).idle = not records
        if any(ahead) and (rng is None or rng.random() < 0.7):
            if rng is not None and rng.random() < slices:
                product.step()
            else:
                product.advance()
    product.finish()
    return product
