"""Decoding of records: streamdetect's decoder against untyped JSON decoders on the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import orjson
from common import measure_in_turns, pin, records, table

from streamdetect.config import Settings
from streamdetect.events import Decoder, Refusal

COUNT = 30_000
PROCESSES = frozenset(Settings().rules[0].processes)


def decode_and_filter(raws: list[bytes]) -> Callable[[], None]:
    """Decode every record, and derive flow and kind of those whose process name is in a rule, as the engine does."""
    decode = Decoder("resilient", 1_048_576).decode

    def task() -> None:
        for raw in raws:
            event = decode(raw)
            if not isinstance(event, Refusal) and event.process_name in PROCESSES:
                event.flow(), event.kind()

    return task


def decode_only(raws: list[bytes]) -> Callable[[], None]:
    decode = Decoder("resilient", 1_048_576).decode

    def task() -> None:
        for raw in raws:
            decode(raw)

    return task


def untyped(raws: list[bytes], decode: Callable[[bytes], object]) -> Callable[[], None]:
    def task() -> None:
        for raw in raws:
            decode(raw)

    return task


def main() -> None:
    pin()
    rows = []
    for shape in ("defend", "sysmon-raw", "mixed"):
        raws = records(COUNT, shape)
        tasks = {
            "decode": decode_only(raws),
            "decode + connection": decode_and_filter(raws),
            "orjson.loads": untyped(raws, orjson.loads),
            "msgspec untyped": untyped(raws, msgspec.json.Decoder().decode),
        }
        seconds = measure_in_turns(tasks, rounds=5)
        baseline = seconds["orjson.loads"]
        size = sum(map(len, raws)) / len(raws)
        rows += [
            (
                f"{shape} ({size:.0f} B)" if position == 0 else "",
                name,
                f"{baseline / took:.2f}x",
                f"{COUNT / took:,.0f}",
                f"{took / COUNT * 1e6:.2f}",
            )
            for position, (name, took) in enumerate(seconds.items())
        ]
    table(
        "decoding, speed relative to orjson.loads",
        ("records", "decoder", "ratio", "records/s", "us/record"),
        rows,
    )


if __name__ == "__main__":
    main()
