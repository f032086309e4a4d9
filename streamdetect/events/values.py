"""Values as Elasticsearch's field types read them (semantics.md §1, fine print).

A field holds a scalar, a list (nested ones flatten), null or nothing. `distinct_*` give the distinct values in the
order they came; `only()` says what ES|QL would compare: the single value, None for missing, MANY for several.
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
_OCTETS: Final = frozenset(map(str, range(256)))  # as an IPv4 address may have them: without leading zeros


class FloatText(float):
    """A JSON number with a fraction or exponent that remembers how it was written.

    A keyword field keeps a number's JSON text, which a float alone has lost (`1.50`, `1e2`).
    """

    __slots__ = ("text",)

    text: str

    @classmethod
    def parse(cls, text: str) -> FloatText:
        number = cls(text)
        number.text = text
        return number


def flatten(value: object) -> Iterator[object]:
    """The non-null scalars of a field's value, in order; objects are no values of a scalar field.

    Not by recursion: how deep a record may be nested must not depend on Python's stack.
    """
    ahead = [value]
    while ahead:
        value = ahead.pop()
        if isinstance(value, list):
            ahead += reversed(value)
        elif value is not None and not isinstance(value, dict):
            yield value


def has_float(values: Iterable[object]) -> bool:
    """Whether a keyword may need a number's own text, which `jsontext.parse` does not keep."""
    return any(isinstance(value, float) for value in flatten(list(values)))


def first_present(*values: object) -> object:
    """The first value that holds a keyword: null, `[]` and what is too long are missing. None if there is none."""
    for value in values:
        if distinct_keywords(value):
            return value
    return None


def text_of(scalar: object) -> str:
    """A text, or a number's or boolean's JSON text."""
    if isinstance(scalar, bool):
        return "true" if scalar else "false"
    if isinstance(scalar, FloatText):
        return scalar.text
    return scalar if isinstance(scalar, str) else str(scalar)


def keyword(scalar: object) -> str | None:
    """One scalar as a keyword; None where it is too long to be kept."""
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


def only(values: tuple[str, ...]) -> str | Many | None:
    """What a comparison sees of a keyword or ip field: one value, None for missing, MANY."""
    if len(values) == 1:
        return values[0]
    return MANY if values else None


def one(value: object) -> str | Many | None:
    """What a comparison sees of a keyword field."""
    if type(value) is str and len(value) <= SURELY_A_KEYWORD:
        return value
    return None if value is None else only(distinct_keywords(value))


def port(value: object) -> int | Many | None:
    """What a comparison sees of a `long` field: numbers do not de-duplicate, malformed ones vanish first."""
    if type(value) is int:
        return _whole(value)
    found = [number for number in map(_whole, flatten(value)) if number is not None]
    if len(found) == 1:
        return found[0]
    return MANY if found else None


def is_long(number: float) -> bool:
    """Whether a number fits into a `long` field; a larger one is malformed."""
    return -_LONG <= number < _LONG


def is_missing(value: object) -> bool:
    """Null, an empty array and absent are the same."""
    return value is None or value == []


def _whole(value: object) -> int | None:
    """A whole number of 64 bits from a JSON value, a fraction cut; None where malformed."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _whole_from_text(value)
    if isinstance(value, (int, float)):
        return int(value) if is_long(value) else None
    return None


def _whole_from_text(text: str) -> int | None:
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
    """Mantissa x 10^exponent, the fraction cut, without building a number of a million digits."""
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
    """IP addresses as an `ip` field reads them, in canonical text (RFC 5952; a mapped one as IPv4).

    Remembers what it has read (bounded): few destinations make most of the traffic.
    """

    def __init__(self) -> None:
        self.canonical: Cache[str, str | None] = Cache(_canonical, _CACHE_SIZE)
        """Canonical text of an address, or None where malformed."""

    def distinct(self, value: object) -> tuple[str, ...]:
        """The distinct addresses of an `ip` field; malformed ones vanish."""
        if type(value) is str:
            address = self.canonical[value]
            return () if address is None else (address,)
        texts = (item for item in flatten(value) if isinstance(item, str))
        found = (self.canonical[text] for text in texts)
        return tuple(dict.fromkeys(address for address in found if address is not None))


def _canonical(text: str) -> str | None:
    """The text itself where it is canonical: one object less for each address."""
    address = parse_address(text)
    return text if address == text else address


def parse_address(text: str) -> str | None:
    """Canonical text of an IP address as Elasticsearch takes it; None where it would be malformed.

    A zone is dropped, but only of a real IPv6 address; leading zeros, blanks, brackets and prefixes are malformed.
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
