"""The product on a data set of `strategies`, in memory: records in any interleaving, with saves in between."""

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
    """A record that counts for the default rule."""
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
    """Settings from those of the oracle, which have the same names with times in ms."""
    text = {name.removesuffix("_ms"): f"{ms}ms" for name, ms in plain.items() if name.endswith("_ms")}
    rules = [
        {key: value for key, value in rule.items() if key != "renotify_ms"}
        | {"renotify": f"{rule['renotify_ms']}ms"}
        for rule in plain["rules"]
    ]
    return Settings.model_validate({"profile": plain["profile"], "time": text, "rules": rules})


class SavedRows:
    """A minimal checkpoint: rows in dicts and lists, updated by changes."""

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
        evaluated_ms = changes.progress["evaluated_ms"]
        self.waiting = [
            row for row in (*self.waiting, *changes.waiting_rows()) if is_waiting(row, evaluated_ms)
        ]

    def rows(self) -> list[Json]:
        rows = [self.progress, *self.partitions, *self.keys.values(), *self.waiting]
        return [json.loads(json.dumps(row)) for row in rows]


def is_waiting(row: Json, evaluated_ms: int | None) -> bool:
    return evaluated_ms is None or int(row["tick_ms"]) > evaluated_ms


class Run:
    """Feeds records one by one and counts verdicts as a summary does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.decoder = Decoder(settings.profile, settings.limits.max_record_bytes)
        self.detector = Detector(settings)
        self.counted = self.late = self.filtered = 0
        self.dead_lettered: dict[str, int] = {}
        self.lines: list[str] = []
        self.saved = SavedRows()
        self.detector.track_changes()

    def processor(self, number: int) -> PartitionProcessor:
        return self.detector.processor(Partition(f"file-{number}"))

    def feed(self, number: int, record: Any) -> None:
        """One record: a document, or (document, record timestamp)."""
        document, timestamp_ms = record if isinstance(record, tuple) else (record, None)
        raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        event = self.decoder.decode(raw)
        if isinstance(event, Refusal):
            self.dead_lettered[event.reason] = self.dead_lettered.get(event.reason, 0) + 1
            return
        verdict = self.processor(number).accept(event, timestamp_ms)
        if verdict == FUTURE:
            self.dead_lettered[FUTURE] = self.dead_lettered.get(FUTURE, 0) + 1
        self.counted += verdict == COUNTED
        self.late += verdict == LATE
        self.filtered += verdict not in (COUNTED, LATE, FUTURE)

    def advance(self) -> None:
        self.lines += [alert.body.decode() for alert in self.detector.advance()]

    def step(self) -> None:
        """Evaluate one slice of a tick; records may be fed before the next slice."""
        self.lines += [alert.body.decode() for alert in self.detector.step()[0]]

    def end_tick(self) -> None:
        while self.detector.ticking:
            self.step()

    def finish(self) -> None:
        self.lines += [alert.body.decode() for alert in self.detector.finish()]

    def checkpoint(self, *, restore: bool) -> None:
        """Finish the current tick and save the changes; `restore` continues with a detector from the saved rows."""
        self.end_tick()
        self.saved.apply(self.detector.take_changes())
        if restore:
            self.detector = Detector(self.settings)
            self.detector.import_state(self.saved.rows())
            self.detector.track_changes()

    def save_and_restore(self) -> None:
        """Continue with a new detector that imports the exported state after a round trip through JSON."""
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

    With `rng`, the state may be saved before a record, and a tick may be split into slices with records in between.
    """
    product = Run(settings_from(plain))
    for number in range(len(partitions)):
        product.processor(number)
    unread = [list(partition) for partition in partitions]
    while any(unread):
        with_records = [number for number, records in enumerate(unread) if records]
        number = with_records[0] if rng is None else rng.choice(with_records)
        for _ in range(1 if rng is None else rng.choice([1, 1, 3, 20])):
            if unread[number]:
                if rng is not None and rng.random() < saves:
                    product.save_and_restore()
                if rng is not None and rng.random() < checkpoints:
                    product.checkpoint(restore=rng.random() < 0.5)
                product.feed(number, unread[number].pop(0))
        for index, records in enumerate(unread):
            product.processor(index).idle = not records
        if any(unread) and (rng is None or rng.random() < 0.7):
            if rng is not None and rng.random() < slices:
                product.step()
            else:
                product.advance()
    product.finish()
    return product
