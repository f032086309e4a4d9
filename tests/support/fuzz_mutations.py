"""Mutations of records for the fuzzer: of their structure, of their bytes, or random bytes.

Structure is mutated in the parsed document with values given as JSON text, so that it can contain what no JSON writer
produces: duplicate names, lone surrogates, numbers of a thousand digits. Bytes are mutated without parsing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import orjson
from fuzz_seeds import as_json, event_data, seeds
from fuzz_values import ANYTHING, BROKEN, FIELDS, TIME_FIELDS, anything, moment

from oracle import time_text

_STAMP = re.compile(rb"20\d\d-\d\d-\d\d([T ])\d\d:\d\d:\d\d")
# fmt: off
_TOKENS = (
    b"\x00", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"null",
    b"\\u0000", b"\\ud800", b"\\u002e", b"1e400", b'""', b'"."', b'."', b"\xf4\x90\x80\x80", b"//", b"\x1b",
)
# fmt: on


def mutated(rng: Random, now_ms: int) -> bytes | None:
    """A mutated or random record; None is a record without a value."""
    chance = rng.random()
    if chance < 0.05:
        return noise(rng)
    if chance < 0.055:
        return rng.choice(seeds()) + b" " * 20_000
    record = restamped(rng.choice(seeds()), now_ms)
    if chance < 0.8:
        record = restructured(record, rng, now_ms)
    if chance < 0.7:
        return record
    return scrambled(record, restamped(rng.choice(seeds()), now_ms), rng)


def restamped(record: bytes, now_ms: int) -> bytes:
    """The record with every time in it moved to now, each with its own fraction and zone."""
    text = time_text(now_ms).encode()
    date, clock = text[:10], text[11:19]
    return _STAMP.sub(lambda found: date + found[1] + clock, record)


def noise(rng: Random) -> bytes | None:
    """Random bytes or tokens, or no value."""
    chance = rng.random()
    if chance < 0.1:
        return None
    if chance < 0.5:
        return rng.randbytes(rng.randrange(200))
    return b"".join(rng.choice(_TOKENS + ANYTHING) for _ in range(rng.randrange(12)))


# -------------------------------------------------------------------------------------------------- structure


class Draft:
    """A parsed document in which any value or name can be replaced by a JSON text."""

    def __init__(self, document: dict[str, Any], rng: Random, now_ms: int) -> None:
        self.document = document
        self.rng = rng
        self.now_ms = now_ms
        self._texts: list[bytes] = []

    def text(self, json_text: bytes) -> str:
        """A placeholder that `render` replaces by the JSON text."""
        self._texts.append(json_text)
        return f"@text:{len(self._texts) - 1}@"

    def render(self) -> bytes:
        ascii_only = self.rng.random() < 0.2
        record = json.dumps(self.document).encode() if ascii_only else orjson.dumps(self.document)
        for number, text in enumerate(self._texts):
            record = record.replace(b'"@text:%d@"' % number, text)
        return record

    def places(self) -> list[tuple[Any, Any]]:
        """(container, name or index) of every value."""
        found: list[tuple[Any, Any]] = []
        pending: list[Any] = [self.document]
        while pending:
            container = pending.pop()
            names = list(container) if isinstance(container, dict) else range(len(container))
            found += [(container, name) for name in names]
            pending += [container[name] for name in names if isinstance(container[name], (dict, list))]
        return found

    def place(self) -> tuple[Any, Any]:
        return self.rng.choice(self.places())

    def member(self) -> tuple[dict[str, Any], str]:
        """An object and a name in it that is not a placeholder."""
        named = [(c, n) for c, n in self.places() if isinstance(c, dict) and not n.startswith("@text:")]
        return self.rng.choice(named or [(self.document, next(iter(self.document)))])

    def put(self, path: str, value: bytes) -> None:
        """Set the value at a path: nested, or with some of its dots kept, and sometimes inside an array."""
        names = path.split(".")
        while len(names) > 1 and self.rng.random() < 0.25:
            place = self.rng.randrange(len(names) - 1)
            names[place : place + 2] = [".".join(names[place : place + 2])]
        container = self.document
        for name in names[:-1]:
            inner = container.get(name)
            if not isinstance(inner, dict):
                inner = container[name] = {}
            if self.rng.random() < 0.05:
                container[name] = [inner, self.text(value)]
            container = inner
        container[names[-1]] = self.text(value)


def set_field(draft: Draft) -> None:
    """Set a used field to one of its possible values, or to any value."""
    path, values = draft.rng.choice(FIELDS)
    draft.put(path, draft.rng.choice(values) if draft.rng.random() < 0.7 else anything(draft.rng))


def set_time(draft: Draft) -> None:
    draft.put(draft.rng.choice(TIME_FIELDS), moment(draft.rng, draft.now_ms))


def drop(draft: Draft) -> None:
    container, name = draft.place()
    del container[name]


def swap(draft: Draft) -> None:
    """Replace any value by any other."""
    container, name = draft.place()
    container[name] = draft.text(anything(draft.rng))


def retype(draft: Draft) -> None:
    """Put any value into an array (once or twice) or an object, or make it a text."""
    container, name = draft.place()
    value, other = container[name], draft.text(anything(draft.rng))
    forms = ([value], [[value]], [value, value], [value, other], [other, value], {"a": value}, str(value))
    container[name] = draft.rng.choice(forms)


def double(draft: Draft) -> None:
    """Repeat a name in one object; the last one wins, for every reader."""
    container, name = draft.member()
    again = container[name] if draft.rng.random() < 0.3 else draft.text(anything(draft.rng))
    container[draft.text(as_json(name))] = again


def rename(draft: Draft) -> None:
    """Write a name with escapes, in upper case, with another dot, or empty."""
    container, name = draft.member()
    escaped = "".join(draft.rng.choice((c, f"\\u{ord(c):04x}")) if c.isalnum() else c for c in name)
    names = (f'"{escaped}"'.encode(), as_json(name.upper()), as_json(name + ".x"), b'""')
    container[draft.text(draft.rng.choice(names))] = container.pop(name)


def dotted(draft: Draft) -> None:
    """Move some or all members of an object up under dotted names: they are the same fields."""
    container, name = draft.member()
    block = container[name]
    if isinstance(block, dict):
        for inner in [inner for inner in block if draft.rng.random() < 0.7 and "@" not in inner]:
            container[f"{name}.{inner}"] = block.pop(inner)


def event_data_as_text(draft: Draft) -> None:
    """Add event data as Azure does, as a text, which may hold what the record itself may not."""
    utc_time = time_text(draft.now_ms)[:-1].replace("T", " ")
    value = draft.rng.choice(tuple(event_data(utc_time).values()))
    data = as_json(event_data(utc_time)).replace(as_json(value), draft.rng.choice(ANYTHING + BROKEN))
    draft.document.pop("Event", None)
    draft.document |= {"EventID": 3, "Channel": "Microsoft-Windows-Sysmon/Operational"}
    draft.document["EventData"] = data.decode(errors="replace")


_CHANGES: tuple[Callable[[Draft], None], ...] = (
    *(
        set_field,
        set_field,
        set_field,
        set_field,
        set_time,
        swap,
        retype,
        drop,
        double,
        rename,
        dotted,
        dotted,
    ),
    event_data_as_text,
)


def restructured(record: bytes, rng: Random, now_ms: int) -> bytes:
    """One to four mutations of structure; a record that is not a JSON object is unchanged."""
    try:
        document = orjson.loads(record)
    except ValueError:
        return record
    if not isinstance(document, dict):
        return record
    draft = Draft(document, rng, now_ms)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        change = rng.choice(_CHANGES) if draft.document else set_field
        change(draft)
    return draft.render()


# ------------------------------------------------------------------------------------------------------ bytes


def scrambled(record: bytes, other: bytes, rng: Random) -> bytes:
    """One to three mutations of bytes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        record = _mutate_once(record, other, rng)
    return record


def _mutate_once(record: bytes, other: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(record) + 1)
    end = min(len(record), start + int(2 ** (rng.random() * 8)))
    match rng.randrange(8):
        case 0:
            flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in record[start : start + 1])
            return record[:start] + flipped + record[start + 1 :]
        case 1:
            return record[:start] + rng.randbytes(1) + record[start + 1 :]
        case 2:  # remove bytes
            return record[:start] + record[end:]
        case 3:  # truncate
            return record[:start]
        case 4:  # repeat bytes
            return record[:end] + record[start:]
        case 5:  # insert a token
            return record[:start] + rng.choice(_TOKENS) + record[start:]
        case 6:  # overwrite with a token
            return record[:start] + rng.choice(_TOKENS) + record[end:]
        case _:  # splice two records
            return record[:start] + other[rng.randrange(len(other) + 1) :]
