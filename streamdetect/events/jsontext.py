"""Parses JSON: valid is UTF-8 that orjson accepts, with numbers of any size.

Only orjson decides, because its nesting limit is fixed; msgspec's depends on the Python version and on the current
stack depth.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import orjson

from streamdetect.events.values import FloatText, is_long

_MAX_DEPTH: Final = 1024  # nested arrays and objects that orjson accepts
_MANY_BRACKETS: Final = 64  # `[`: more than real records have

# A string, closed or not; or a whole run of the characters of numbers, so that no part of a run matches as a number.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[-+.0-9eE]+', re.DOTALL)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?P<real>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_MAX_LONG_CHARS: Final = 20  # characters of a 64-bit number
_MAX_INTEGER_CHARS: Final = 4_000  # Python converts at most 4,300 digits
# Logstash's plain codec writes "%{@timestamp} %{host} %{message}".
_PLAIN_CODEC = re.compile(rb"\s*\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z ")


class NotJsonError(ValueError):
    """The bytes are not a JSON document."""


def parse(raw: bytes) -> object:
    """Any JSON value. Numbers that are not 64-bit integers become floats, or are as in `parse_exactly`. Raises
    NotJsonError.
    """
    try:
        return orjson.loads(raw)
    except ValueError:
        return parse_exactly(raw)


def parse_exactly(raw: bytes) -> object:
    """Any JSON value, with exact integers, and real numbers that keep their JSON text. Raises NotJsonError.

    orjson supports neither, and rejects `1e400`. So numbers that are not 64-bit integers are replaced by place holders,
    small numbers that encode the index in a list.
    """
    numbers: list[float] = []

    def placeholder(match: re.Match[bytes]) -> bytes:
        token = match[0]
        if token.isdigit() and len(token) < _MAX_LONG_CHARS - 1:
            return token
        number = _NUMBER.fullmatch(token)
        if number is None:
            return token  # a string, or something that orjson rejects
        whole = None if number["real"] or len(token) > _MAX_INTEGER_CHARS else int(token)
        if whole is not None and is_long(whole):
            return token
        numbers.append(FloatText.parse(token.decode()) if whole is None else whole)
        return b"%d.5" % (len(numbers) - 1)

    try:
        document = orjson.loads(_TOKEN.sub(placeholder, raw))
    except ValueError:
        raise NotJsonError(problem_with(raw)) from None
    return _with_numbers(document, numbers) if numbers else document


def _with_numbers(document: object, numbers: list[float]) -> object:
    """The document with numbers in place of their place holders. Not recursive, as `values.flatten`."""
    holder = [document]
    pending: list[Any] = [holder]
    while pending:
        container = pending.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, float):
                container[key] = numbers[int(value)]
            elif isinstance(value, (dict, list)):
                pending.append(value)
    return holder[0]


def max_shallow_bytes() -> int:
    """The size up to which msgspec accepts no record that orjson rejects as nested too deep.

    Up to Python 3.11 that is any size: the recursion limit is lower than orjson's, unless it has been raised.
    """
    if sys.version_info < (3, 12) and sys.getrecursionlimit() <= _MAX_DEPTH:
        return sys.maxsize
    return 2 * _MAX_DEPTH


def may_be_deep(raw: bytes) -> bool:
    """Whether a record may be nested too deep. A false positive only costs time.

    A level takes two bytes as an array, `[` and `]`, or five as an object. So in a record not much longer than the
    deepest arrays, nearly all bytes before the deepest level are `[`: the others are at most 4/3 of the spare bytes.
    """
    spare = len(raw) - 2 * _MAX_DEPTH
    if spare < _MAX_DEPTH:
        return raw.count(b"[", 0, spare * 4 // 3 + _MANY_BRACKETS) >= _MANY_BRACKETS
    return raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH


def problem_with(raw: bytes) -> str:
    """Why the bytes are not JSON, with a remedy where the cause is known."""
    if _PLAIN_CODEC.match(raw):
        return "a plain text line, as Logstash's default plain codec writes it; set codec => json on its kafka output"
    try:
        orjson.loads(raw)
    except ValueError as problem:
        return str(problem)
    return "the bytes are not valid UTF-8"
