"""Values as Elasticsearch's field types read them (docs/semantics.md §1).

A field holds a scalar, a list (nested lists are flattened), null or nothing. `distinct_*` return the distinct values in
order; `single*` return what ES|QL compares: the only value, None if there is none, MANY if there are several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from streamdetect.cache import Cache
from streamdetect.model import MANY, Many

_KEYWORD_LIMIT: Final = 1024  # ignore_above, in UTF-16 code units
SURELY_A_KEYWORD: Final = _KEYWORD_LIMIT // 2  # characters: two code units each at most
_PORT_TEXT: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LONG: Final = 2**63
_CACHE_SIZE: Final = 32_768
_OCTETS: Final = frozenset(map(str, range(256)))  # of an IPv4 address: no leading zeros


class FloatText(float):
    """A JSON number with a fraction or exponent, and its JSON text.

    A keyword field keeps the JSON text of a number, which a float alone loses (`1.50`, `1e2`).
    """

    __slots__ = ("text",)

    text: str

    @classmethod
    def parse(cls, text: str) -> FloatText:
        number = cls(text)
        number.text = text
        return number


def flatten(value: object) -> Iterator[object]:
    """The non-null scalars of a field's value, in order; objects are not values of a scalar field.

    Not recursive: how deep a record may be nested must not depend on Python's stack.
    """
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += reversed(value)
        elif value is not None and not isinstance(value, dict):
            yield value


def has_float(values: Iterable[object]) -> bool:
    """Whether a value may need the JSON text of a number, which `jsontext.parse` does not keep."""
    return any(isinstance(value, float) for value in flatten(list(values)))


def first_present(*values: object) -> object:
    """The first value with a keyword in it, else None. Null, `[]` and keywords that are too long are missing."""
    for value in values:
        if distinct_keywords(value):
            return value
    return None


def text_of(scalar: object) -> str:
    """The string itself, or the JSON text of a number or boolean."""
    if isinstance(scalar, bool):
        return "true" if scalar else "false"
    if isinstance(scalar, FloatText):
        return scalar.text
    return scalar if isinstance(scalar, str) else str(scalar)


def keyword(scalar: object) -> str | None:
    """A scalar as a keyword; None if it is longer than `ignore_above`."""
    text = text_of(scalar)
    if len(text) <= SURELY_A_KEYWORD:
        return text
    units = len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
    return text if units <= _KEYWORD_LIMIT else None


def distinct_keywords(value: object) -> tuple[str, ...]:
    """The distinct values of a keyword field."""
    if type(value) is str and len(value) <= SURELY_A_KEYWORD:
        return (value,)
    if value is None:
        return ()
    if type(value) is list and len(value) == 1 and type(value[0]) is str:
        return distinct_keywords(value[0])
    found = (keyword(item) for item in flatten(value))
    return tuple(dict.fromkeys(text for text in found if text is not None))


def single(values: tuple[str, ...]) -> str | Many | None:
    """The comparable value of a keyword or ip field: the only one, None, or MANY."""
    if len(values) == 1:
        return values[0]
    return MANY if values else None


def single_keyword(value: object) -> str | Many | None:
    """The comparable value of a keyword field."""
    if type(value) is str and len(value) <= SURELY_A_KEYWORD:
        return value
    return None if value is None else single(distinct_keywords(value))


def single_long(value: object) -> int | Many | None:
    """The comparable value of a `long` field: malformed numbers are dropped, equal ones count separately."""
    if type(value) is int:
        return _long(value)
    found = [number for number in map(_long, flatten(value)) if number is not None]
    if len(found) == 1:
        return found[0]
    return MANY if found else None


def is_long(number: float) -> bool:
    """Whether a number fits into a `long` field; otherwise it is malformed."""
    return -_LONG <= number < _LONG


def is_missing(value: object) -> bool:
    """Whether a value is null, absent or an empty array."""
    return value is None or value == []


def _long(value: object) -> int | None:
    """A 64-bit integer from a JSON value, its fraction truncated; None if malformed."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _long_from_text(value)
    if isinstance(value, (int, float)):
        return int(value) if is_long(value) else None
    return None


def _long_from_text(text: str) -> int | None:
    if len(text) > 64 or _PORT_TEXT.fullmatch(text) is None:
        return None
    mantissa, _, exponent = text.lower().partition("e")
    if not exponent:
        number = int(mantissa.partition(".")[0].lstrip("+").replace("-", "") or 0)
        number = -number if text[0] == "-" else number
    else:
        number = _scaled(mantissa, int(exponent))
    return number if is_long(number) else None


def _scaled(mantissa: str, exponent: int) -> int:
    """Mantissa x 10^exponent, its fraction truncated, without creating a number of a million digits."""
    negative = mantissa[0] == "-"
    whole, _, fraction = mantissa.lstrip("+-").partition(".")
    digits = whole + fraction
    point = len(whole) + exponent
    if digits.strip("0") == "" or point <= 0:
        return 0
    if point > 400:
        return _LONG * 2
    number = int(digits[:point].ljust(point, "0"))
    return -number if negative else number


class AddressReader:
    """IP addresses as an `ip` field reads them, in canonical text (RFC 5952; an IPv4-mapped one as IPv4).

    Cached, because few destinations make most of the traffic.
    """

    def __init__(self) -> None:
        self.canonical: Cache[str, str | None] = Cache(_canonical, _CACHE_SIZE)
        """Canonical text of an address, or None if malformed."""

    def distinct(self, value: object) -> tuple[str, ...]:
        """The distinct addresses of an `ip` field, without malformed ones."""
        if type(value) is str:
            address = self.canonical[value]
            return () if address is None else (address,)
        texts = (item for item in flatten(value) if isinstance(item, str))
        found = (self.canonical[text] for text in texts)
        return tuple(dict.fromkeys(address for address in found if address is not None))


def _canonical(text: str) -> str | None:
    """`text` itself if it is canonical: saves one object per address."""
    address = parse_address(text)
    return text if address == text else address


def parse_address(text: str) -> str | None:
    """Canonical text of an IP address that Elasticsearch accepts; None if malformed.

    A zone is dropped, but only of an IPv6 address that is not IPv4-mapped; leading zeros, blanks, brackets and prefixes
    are malformed.
    """
    if len(text) > 100 or not text.isascii():
        return None
    address, percent, zone = text.partition("%")
    try:
        if ":" not in address:
            octets = address.split(".")
            return text if len(octets) == 4 and not percent and _OCTETS.issuperset(octets) else None
        six = IPv6Address(address)
    except AddressValueError:
        return None
    mapped = six.ipv4_mapped
    if mapped is None:
        return None if percent and not zone else str(six)
    return None if percent else str(mapped)
