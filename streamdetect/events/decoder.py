"""The decoder: one record's bytes to an Event or a Refusal.

Most records end at the process name, so everything else is read only when `Event.connection()` is asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
import orjson

from streamdetect import model
from streamdetect.events import generic
from streamdetect.events.generic import Fields
from streamdetect.events.reading import Reading
from streamdetect.events.times import TimeReader
from streamdetect.events.typed import Document, EventData, fields_of, glimpse, may_be_dotted, raw_sysmon
from streamdetect.events.values import SURELY_A_KEYWORD, FloatText, flatten
from streamdetect.model import Many

# Logstash's plain codec writes "%{@timestamp} %{host} %{message}".
_PLAIN_CODEC = re.compile(rb"\s*\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z ")


_LONGEST_INTEGER: Final = 4_000  # digits

_NOTHING_SEEN: model.Glance = (None, None, None)


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a record is no event: `reason` is one of `model.REFUSAL_REASONS`, `detail` is for a person."""

    reason: str
    detail: str


class Event(msgspec.Struct, gc=False):
    """A record with a usable time; see `model.Event`."""

    time_ms: int
    process_name: str | Many | None
    _decoder: Decoder
    _raw: bytes
    _document: Document | None
    _fields: Fields | None

    def glance(self) -> model.Glance:
        document = self._document
        if document is None:
            return _NOTHING_SEEN
        return self._decoder.reading.glance(*glimpse(document))

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

    def _seen(self) -> Fields:
        if self._fields is None and self._document is not None:
            self._fields = fields_of(self._document)
        return self._fields or Fields()


class NotJsonError(ValueError):
    """The bytes are no JSON document."""


class Decoder:
    """Decodes records under one profile. Not thread-safe: it remembers what it has seen, within bounds."""

    def __init__(self, profile: str, max_record_bytes: int) -> None:
        resilient = profile == "resilient"
        self.reading = Reading(resilient=resilient)
        self._resilient = resilient
        self._max_record_bytes = max_record_bytes
        self._times = TimeReader(resilient=resilient)
        self._typed: Callable[[bytes], Document] = msgspec.json.Decoder(Document).decode
        self._with_texts: Callable[[bytes], dict[str, object]] = msgspec.json.Decoder(
            dict[str, Any], float_hook=FloatText.parse
        ).decode
        self._untyped: Callable[[bytes], object] = msgspec.json.Decoder().decode

    def decode(self, raw: bytes | None) -> Event | Refusal:
        """The event in a record's value, or why there is none. Raises nothing, whatever the bytes."""
        if raw is None:
            return Refusal("not_json", "the record has no value (a tombstone)")
        if len(raw) > self._max_record_bytes:
            return Refusal(
                "too_large", f"{len(raw)} bytes; limits.max_record_bytes is {self._max_record_bytes}"
            )
        try:
            document = self._typed(raw)
        except (ValueError, RecursionError):
            return self._decode_generic(raw)
        if not raw.isascii() and not _is_utf8(raw):  # msgspec does not look into what it skips
            return Refusal("not_json", _json_problem(raw))
        if document.winlogbeat6 is not None or document.evtx is not None or document.flat is not None:
            return self._decode_generic(raw)
        data = None if document.winlog is None else raw_sysmon(document)
        if data is not None:
            return self._decode_raw(raw, document, data)
        process = document.process
        if process is None or process.name is None:
            return self._without_name(raw, document, self._times.read(document.timestamp))
        return self._event(raw, document, process.name, self._times.read(document.timestamp))

    def _decode_raw(self, raw: bytes, document: Document, data: EventData) -> Event | Refusal:
        """A raw Sysmon record: its name is in Image, its time in UtcTime."""
        if not data.image or not data.utc_time:  # an empty member is a missing one
            return self._decode_generic(raw)
        slash = data.image.rfind("\\")
        time_ms = self._times.read_utc(data.utc_time)
        if time_ms is None:
            time_ms = self._times.read(document.timestamp)
        return self._event(raw, document, data.image[slash + 1 :] or None if slash >= 0 else None, time_ms)

    def _event(
        self, raw: bytes, document: Document, name: str | None, time_ms: int | None
    ) -> Event | Refusal:
        if time_ms is None:
            return _no_time(document.timestamp)
        if name is None:
            return self._without_name(raw, document, time_ms)
        if len(name) > SURELY_A_KEYWORD:
            return self._decode_generic(raw)
        return Event(time_ms, name.lower() if self._resilient else name, self, raw, document, None)

    def read_generic(self, raw: bytes) -> Fields:
        """All fields of a record that is known to be a JSON object."""
        return self._fields(raw, self._parse(raw))

    def _without_name(self, raw: bytes, document: Document, time_ms: int | None) -> Event | Refusal:
        if may_be_dotted(raw):
            return self._decode_generic(raw)
        if time_ms is None:
            return _no_time(document.timestamp)
        return Event(time_ms, None, self, raw, document, None)

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
        """Any JSON value. Raises NotJsonError.

        orjson has the second word: its nesting limit does not depend on how deep the Python stack is just now.
        """
        try:
            return self._untyped(raw)
        except (ValueError, RecursionError):
            pass
        try:
            return orjson.loads(raw)
        except ValueError:
            return _parse_huge_numbers(raw)

    def _fields(self, raw: bytes, document: object) -> Fields:
        fields = generic.read(document if isinstance(document, dict) else {}, dotted=may_be_dotted(raw))
        if _has_float(fields):
            with contextlib.suppress(
                ValueError, RecursionError
            ):  # then the number is shown as Python writes it
                fields = generic.read(self._with_texts(raw))
        return fields


def _has_float(fields: Fields) -> bool:
    """Whether a keyword may need a number's own text, which the fast decoders do not keep."""
    values: list[object] = [getattr(fields, name) for name in Fields.__struct_fields__]
    return any(isinstance(value, float) for value in flatten(values))


def _parse_huge_numbers(raw: bytes) -> object:
    """JSON whose only oddity is a number beyond a double (`1e400`): valid, and neither fast decoder takes it."""
    try:
        text = raw.decode()  # or json would guess an encoding
        document: object = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_whole_number, parse_float=FloatText.parse
        )
        json.dumps(document, ensure_ascii=False, default=str).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError):
        raise NotJsonError(_json_problem(raw)) from None
    return document


def _whole_number(text: str) -> int | FloatText:
    """Python refuses to read integers of thousands of digits; no field takes them, but they are JSON."""
    return int(text) if len(text) < _LONGEST_INTEGER else FloatText.parse(text)


def _refuse_constant(text: str) -> object:
    raise NotJsonError(f"{text} is no JSON")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_problem(raw: bytes) -> str:
    """Why the bytes are no JSON, with what to do where the cause is known."""
    if _PLAIN_CODEC.match(raw):
        return "a plain text line, as Logstash's default plain codec writes it; set codec => json on its kafka output"
    try:
        orjson.loads(raw)
    except ValueError as problem:
        return str(problem)
    return "the bytes are not valid UTF-8"


def _no_time(value: object) -> Refusal:
    if value is None:
        return Refusal("no_time", "the document has no @timestamp")
    shown = repr(value)[:100] if isinstance(value, (str, int, float)) else f"a JSON {_kind(value)}"
    return Refusal("no_time", f"@timestamp is no time that Elasticsearch takes: {shown}")


def _kind(value: object) -> str:
    kinds = {
        list: "array",
        dict: "object",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return kinds.get(type(value), "value")
