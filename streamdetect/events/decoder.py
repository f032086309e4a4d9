"""The decoder: the bytes of one record to an Event or a Refusal.

Most records are filtered by process name, so all other fields are derived on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec

from streamdetect.cache import Cache
from streamdetect.events import generic, jsontext
from streamdetect.events.event import EcsCaches, EcsEvent, Event, GenericEvent, RawCaches, RawEvent
from streamdetect.events.generic import Fields
from streamdetect.events.jsontext import NotJsonError, may_be_deep, problem_with
from streamdetect.events.paths import may_be_dotted
from streamdetect.events.profile import ProfileReader
from streamdetect.events.times import TimeReader
from streamdetect.events.typed import DOCUMENT, Document, EventData, raw_sysmon
from streamdetect.events.values import SURELY_A_KEYWORD, FloatText, has_float

_NAME_CACHE_SIZE = 4_096


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a record is not an event: `reason` is one of `model.REFUSAL_REASONS`, `detail` explains it to a person."""

    reason: str
    detail: str


class Decoder:
    """Decodes records under one profile. Not thread-safe, because of its bounded caches."""

    def __init__(self, profile: str, max_record_bytes: int) -> None:
        resilient = profile == "resilient"
        self._reader = ProfileReader(resilient=resilient)
        self._max_record_bytes = max_record_bytes
        self._max_shallow_bytes = jsontext.max_shallow_bytes()
        self._times = TimeReader(resilient=resilient)
        self._names: Cache[str, str] = Cache(self._reader.comparable_name, _NAME_CACHE_SIZE)
        self._ecs = EcsCaches(self._reader)
        self._raw = RawCaches(self._reader)
        self._typed: Callable[[bytes], Document] = msgspec.json.Decoder(DOCUMENT).decode

    def decode(self, raw: bytes | None) -> Event | Refusal:
        """The event in a record's value, or why there is none. Never raises, whatever the bytes."""
        if raw is None:
            return Refusal("not_json", "the record has no value (a tombstone)")
        size = len(raw)
        if size > self._max_record_bytes:
            return Refusal("too_large", f"{size} bytes; limits.max_record_bytes is {self._max_record_bytes}")
        try:
            document = self._typed(raw)
        except (ValueError, RecursionError):
            return self._decode_generic(raw)
        if size > self._max_shallow_bytes and may_be_deep(raw):
            return self._decode_generic(raw)
        if not raw.isascii() and not _is_utf8(raw):  # msgspec does not check skipped values
            return Refusal("not_json", problem_with(raw))
        if document.winlog is not None:
            data = raw_sysmon(document)
            if data is not None:
                return self._decode_raw(raw, document, data)
        return self._decode_ecs(raw, document)

    def _decode_ecs(self, raw: bytes, document: Document) -> Event | Refusal:
        time_ms = self._times.read(document.timestamp)
        if time_ms is None:
            return _no_time(document.timestamp)
        name = document.process.name
        if name is not None:
            if len(name) > SURELY_A_KEYWORD:
                return self._decode_generic(raw)
            name = self._names[name]
        return EcsEvent(time_ms, name, self._ecs, document)

    def _decode_raw(self, raw: bytes, document: Document, data: EventData) -> Event | Refusal:
        """A raw Sysmon record: the process name is in Image, the time in UtcTime."""
        image = data.image
        if not image or not data.utc_time or len(image) > SURELY_A_KEYWORD:  # an empty member is missing
            return self._decode_generic(raw)
        time_ms = self._times.read_utc(data.utc_time)
        if time_ms is None:
            time_ms = self._times.read(document.timestamp)
            if time_ms is None:
                return _no_time(document.timestamp)
        name = image[image.rfind("\\") + 1 :] if "\\" in image else None
        return RawEvent(time_ms, self._names[name] if name else None, self._raw, document, data)

    def _decode_generic(self, raw: bytes) -> Event | Refusal:
        try:
            document = jsontext.parse(raw)
        except NotJsonError as problem:
            return Refusal("not_json", str(problem))
        if not isinstance(document, dict):
            return Refusal("not_an_object", f"the record is a JSON {_json_type(document)}, not an object")
        fields = generic.read(document, dotted=may_be_dotted(raw))
        if has_float(getattr(fields, name) for name in Fields.__struct_fields__):
            exact = cast("dict[str, object]", jsontext.parse_exactly(raw))
            fields = generic.read(exact, dotted=may_be_dotted(raw))
        time_ms = fields.utc_time_ms
        if time_ms is None:
            time_ms = self._times.read(fields.timestamp)
            if time_ms is None:
                return _no_time(fields.timestamp)
        return GenericEvent(time_ms, self._reader.process_name(fields.process_name), self._reader, fields)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _no_time(value: object) -> Refusal:
    if value is None:
        return Refusal("no_time", "the document has no @timestamp")
    shown = repr(value)[:100] if isinstance(value, str) else f"a JSON {_json_type(value)}"
    return Refusal(
        "no_time", f"@timestamp is not a time that Elasticsearch accepts, or 292 million years away: {shown}"
    )


def _json_type(value: object) -> str:
    types = {
        list: "array",
        dict: "object",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        FloatText: "number",
        type(None): "null",
    }
    return types.get(type(value), "value")
