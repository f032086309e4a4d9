"""The decoder: one record's bytes to an Event or a Refusal.

Most records end at the process name, so everything else is read only when `Event.connection()` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streamdetect import model
from streamdetect.events import generic, jsontext, shapes
from streamdetect.events.generic import Fields
from streamdetect.events.jsontext import NotJsonError, may_be_deep, problem_with
from streamdetect.events.reading import Reading
from streamdetect.events.times import TimeReader
from streamdetect.events.typed import (
    Document,
    EventData,
    fields_of,
    glimpse,
    may_be_dotted,
    raw_sysmon,
    wrote,
)
from streamdetect.events.values import SURELY_A_KEYWORD, FloatText, has_float
from streamdetect.model import Many

_NOTHING_SEEN: model.Glance = (None, None, None)


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a record is no event: `reason` is one of `model.REFUSAL_REASONS`, `detail` is for a person."""

    reason: str
    detail: str


class Event(msgspec.Struct, gc=False):
    """A record with a usable time; see `model.Event`. `_data` is the event data where it is raw Sysmon."""

    time_ms: int
    process_name: str | Many | None
    _decoder: Decoder
    _raw: bytes
    _document: Document | None
    _fields: Fields | None
    _data: EventData | None = None

    def glance(self) -> model.Glance:
        document = self._document
        if document is None:
            return _NOTHING_SEEN
        return self._decoder.reading.glance(*glimpse(document, self._data))

    def connection(self) -> model.Connection:
        return self._decoder.reading.connection(self._seen())

    def unsure(self) -> bool:
        return self._document is not None and may_be_dotted(self._raw)

    def reread(self) -> model.Connection:
        self._document = None
        self._fields = self._decoder.read_generic(self._raw)
        return self._decoder.reading.connection(self._fields)

    def details(self) -> model.Facts:
        return self._decoder.reading.details(self._seen())

    def host(self) -> str | None:
        if self.unsure():
            self.reread()
        return self._decoder.reading.leap_host(self._seen())

    def shape(self) -> str:
        """Who wrote the record, one of `shapes.SHAPES`."""
        if self._document is not None:
            return wrote(self._document, self._data)
        fields = self._seen()
        if fields.raw:
            return shapes.RAW_SYSMON
        return shapes.ECS_SYSMON if fields.sysmon else shapes.of_dataset(fields.dataset)

    def _seen(self) -> Fields:
        if self._fields is None and self._document is not None:
            self._fields = fields_of(self._document, self._data)
        return self._fields or Fields()


class Decoder:
    """Decodes records under one profile. Not thread-safe: it remembers what it has seen, within bounds."""

    def __init__(self, profile: str, max_record_bytes: int) -> None:
        resilient = profile == "resilient"
        self.reading = Reading(resilient=resilient)
        self._resilient = resilient
        self._max_record_bytes = max_record_bytes
        self._surely_shallow = jsontext.surely_shallow()
        self._times = TimeReader(resilient=resilient)
        self._typed: Callable[[bytes], Document] = msgspec.json.Decoder(Document).decode

    def decode(self, raw: bytes | None) -> Event | Refusal:
        """The event in a record's value, or why there is none. Raises nothing, whatever the bytes."""
        if raw is None:
            return Refusal("not_json", "the record has no value (a tombstone)")
        size = len(raw)
        if size > self._max_record_bytes:
            return Refusal("too_large", f"{size} bytes; limits.max_record_bytes is {self._max_record_bytes}")
        try:
            document = self._typed(raw)
        except (ValueError, RecursionError):
            return self._decode_generic(raw)
        if size > self._surely_shallow and may_be_deep(raw):
            return self._decode_generic(raw)
        if not raw.isascii() and not _is_utf8(raw):  # msgspec does not look into what it skips
            return Refusal("not_json", problem_with(raw))
        data = None if document.winlog is None else raw_sysmon(document)
        if data is not None:
            return self._decode_raw(raw, document, data)
        name = None if document.process is None else document.process.name
        return self._event(raw, document, name, self._times.read(document.timestamp), None)

    def _decode_raw(self, raw: bytes, document: Document, data: EventData) -> Event | Refusal:
        """A raw Sysmon record: its name is in Image, its time in UtcTime."""
        if not data.image or not data.utc_time:  # an empty member is a missing one
            return self._decode_generic(raw)
        slash = data.image.rfind("\\")
        time_ms = self._times.read_utc(data.utc_time)
        if time_ms is None:
            time_ms = self._times.read(document.timestamp)
        name = data.image[slash + 1 :] or None if slash >= 0 else None
        return self._event(raw, document, name, time_ms, data)

    def _event(
        self, raw: bytes, document: Document, name: str | None, time_ms: int | None, data: EventData | None
    ) -> Event | Refusal:
        if name is None and may_be_dotted(raw):
            return self._decode_generic(raw)
        if time_ms is None:
            return _no_time(document.timestamp)
        if name is not None:
            if len(name) > SURELY_A_KEYWORD:
                return self._decode_generic(raw)
            if self._resilient:
                name = name.lower()
        return Event(time_ms, name, self, raw, document, None, data)

    def read_generic(self, raw: bytes) -> Fields:
        """All fields of a record that is known to be a JSON object."""
        return self._fields(raw, self._parse(raw))

    def _decode_generic(self, raw: bytes) -> Event | Refusal:
        try:
            document = self._parse(raw)
        except NotJsonError as problem:
            return Refusal("not_json", str(problem))
        if not isinstance(document, dict):
            return Refusal("not_an_object", f"the record is a JSON {_kind(document)}, not an object")
        fields = self._fields(raw, document)
        time_ms = fields.utc_time_ms
        if time_ms is None:
            time_ms = self._times.read(fields.timestamp)
            if time_ms is None:
                return _no_time(fields.timestamp)
        return Event(time_ms, self.reading.process_name(fields.process_name), self, raw, None, fields)

    def _parse(self, raw: bytes) -> object:
        return jsontext.parse(raw)

    def _fields(self, raw: bytes, document: object) -> Fields:
        fields = _read(raw, document)
        if has_float(getattr(fields, name) for name in Fields.__struct_fields__):
            fields = _read(raw, jsontext.parse_exactly(raw))
        return fields


def _read(raw: bytes, document: object) -> Fields:
    return generic.read(document if isinstance(document, dict) else {}, dotted=may_be_dotted(raw))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _no_time(value: object) -> Refusal:
    if value is None:
        return Refusal("no_time", "the document has no @timestamp")
    shown = repr(value)[:100] if isinstance(value, str) else f"a JSON {_kind(value)}"
    return Refusal(
        "no_time", f"@timestamp is no time that Elasticsearch takes, or 292 million years away: {shown}"
    )


def _kind(value: object) -> str:
    kinds = {
        list: "array",
        dict: "object",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        FloatText: "number",
        type(None): "null",
    }
    return kinds.get(type(value), "value")
