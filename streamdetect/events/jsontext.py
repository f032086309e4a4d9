"""What is JSON: UTF-8 that orjson reads, whatever the size of its numbers.

orjson alone decides. Its nesting limit is its own; msgspec's depends on the version of Python and on how deep the stack
is just now.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import orjson

from streamdetect.events.values import FloatText, is_long

_DEEPEST: Final = 1024  # arrays and objects in one another that orjson reads
_MANY: Final = 64  # of `[`: more than real records hold

# A text, closed or not; or a whole run of what numbers are made of, so that no part of one is taken for a number.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[-+.0-9eE]+', re.DOTALL)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?P<real>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_LONGEST_LONG: Final = 20  # characters of a 64-bit number
_LONGEST_INTEGER: Final = 4_000  # digits that Python turns into a number
# Logstash's plain codec writes "%{@timestamp} %{host} %{message}".
_PLAIN_CODEC = re.compile(rb"\s*\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z ")


class NotJsonError(ValueError):
    """The bytes are no JSON document."""


def parse(raw: bytes) -> object:
    """Any JSON value; what is no 64-bit integer is a float, or as `parse_exactly` has it. Raises NotJsonError."""
    try:
        return orjson.loads(raw)
    except ValueError:
        return parse_exactly(raw)


def parse_exactly(raw: bytes) -> object:
    """Any JSON value: integers whole, and real numbers that remember how they were written. Raises NotJsonError.

    orjson does neither, nor does it take `1e400` at all. So what is no 64-bit integer is replaced by a small number
    that tells its place in a list.
    """
    numbers: list[float] = []

    def marked(found: re.Match[bytes]) -> bytes:
        token = found[0]
        if token.isdigit() and len(token) < _LONGEST_LONG - 1:
            return token
        number = _NUMBER.fullmatch(token)
        if number is None:
            return token  # a text, or what orjson will refuse
        whole = None if number["real"] or len(token) > _LONGEST_INTEGER else int(token)
        if whole is not None and is_long(whole):
            return token
        numbers.append(FloatText.parse(token.decode()) if whole is None else whole)
        return b"%d.5" % (len(numbers) - 1)

    try:
        document = orjson.loads(_TOKEN.sub(marked, raw))
    except ValueError:
        raise NotJsonError(problem_with(raw)) from None
    return _with_numbers(document, numbers) if numbers else document


def _with_numbers(document: object, numbers: list[float]) -> object:
    """The document with numbers in place of their marks. Not by recursion, as `values.flatten`."""
    holder = [document]
    ahead: list[Any] = [holder]
    while ahead:
        container = ahead.pop()
        for place, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, float):
                container[place] = numbers[int(value)]
            elif isinstance(value, (dict, list)):
                ahead.append(value)
    return holder[0]


def surely_shallow() -> int:
    """Bytes up to which msgspec reads no record that is nested too deep.

    Up to Python 3.11 it reads none at all: the stack's limit is lower than orjson's, unless somebody has raised it.
    """
    if sys.version_info < (3, 12) and sys.getrecursionlimit() <= _DEEPEST:
        return sys.maxsize
    return 2 * _DEEPEST


def may_be_deep(raw: bytes) -> bool:
    """Whether a record may be nested too deep. Wrongly True costs time, never an answer.

    A level takes two bytes, `[` and `]`, or five as an object. So of a record that is not much longer than that, nearly
    all that comes before the deepest place is `[`: of anything else, 4/3 of the bytes that are left over at most.
    """
    left_over = len(raw) - 2 * _DEEPEST
    if left_over < _DEEPEST:
        return raw.count(b"[", 0, left_over * 4 // 3 + _MANY) >= _MANY
    return raw.count(b"[") + raw.count(b"{") > _DEEPEST


def problem_with(raw: bytes) -> str:
    """Why the bytes are no JSON, with what to do where the cause is known."""
    if _PLAIN_CODEC.match(raw):
        return "a plain text line, as Logstash's default plain codec writes it; set codec => json on its kafka output"
    try:
        orjson.loads(raw)
    except ValueError as problem:
        return str(problem)
    return "the bytes are not valid UTF-8"
