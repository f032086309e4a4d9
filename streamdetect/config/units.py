"""Value types of settings: durations, times, networks. A ValueError says what to write instead."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATION_PATTERN = "^[0-9]{1,12}(ms|s|m|h|d)$"
DURATION_MARK = "duration"
LONGEST_MS = 3_650 * UNIT_MS["d"]

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAPPED_BITS = 96
_ADDRESS_LIKE = frozenset("0123456789.")


def parse_duration_ms(text: str) -> int:
    """Milliseconds of `500ms 30s 5m 24h 7d`. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not a duration; write a whole number and its unit: 500ms, 30s, 5m, 24h or 7d")
    return int(match[1]) * UNIT_MS[match[2]]


def format_duration(duration_ms: int) -> str:
    """The shortest exact text of a duration in milliseconds; one day is `24h`."""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(duration_ms, UNIT_MS[unit])
        if rest == 0 and count >= (2 if unit == "d" else 1):
            return f"{count}{unit}"
    return f"{duration_ms}ms" if duration_ms else "0s"


def parse_time_ms(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 time; no zone means UTC. Raises ValueError for anything else."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("is not a time; write it like 2026-03-02T04:00:00Z (no zone means UTC)") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - _EPOCH
    return delta.days * UNIT_MS["d"] + delta.seconds * 1_000 + delta.microseconds // 1_000


def normal_network(text: str) -> str:
    """A network or single address in the form the detector uses: mapped IPv6 as IPv4, hexadecimal in lower case.

    Raises ValueError if it is neither, or has bits set after its prefix (the message names the network meant).
    """
    try:
        loose = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a network nor an address; write it like 10.0.0.0/8, fc00::/7 or 192.0.2.1"
        ) from None
    written = ipaddress.ip_interface(text.strip())
    if written.ip != loose.network_address:
        raise ValueError(f"{text!r} has bits set after its prefix; write {loose} or {written.ip}")
    network = _unmapped(loose)
    return str(network) if "/" in text else str(network.network_address)


def normal_destination(text: str) -> str:
    """A network or address as `normal_network` returns it, a name unchanged. Raises ValueError as it does."""
    if "/" in text or ":" in text or _ADDRESS_LIKE.issuperset(text):
        return normal_network(text)
    return text


def _unmapped(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The IPv4 network of an IPv4-mapped IPv6 network, else the network itself."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def _duration(value: object, info: ValidationInfo) -> object:
    """A duration text in milliseconds. A bare number is milliseconds in code, and an error in a file."""
    if isinstance(value, str):
        return parse_duration_ms(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if info.context is None:
            return value
        raise ValueError(f"{value} has no unit; write {value}s, {value}m or {value}ms")
    raise ValueError("is not a duration; write a whole number and its unit: 500ms, 30s, 5m, 24h or 7d")


Network = Annotated[str, AfterValidator(normal_network)]
Duration = Annotated[
    int,
    BeforeValidator(_duration),
    DURATION_MARK,
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {"type": "string", "pattern": DURATION_PATTERN, "examples": ["500ms", "30s", "5m", "24h", "7d"]}
    ),
]


def duration(default: str, *, alias: str, minimum: str, maximum_ms: int = LONGEST_MS) -> Any:
    """A field whose attribute is in milliseconds and whose setting, `alias`, is written with a unit."""
    return Field(
        default=default,
        ge=parse_duration_ms(minimum),
        le=maximum_ms,
        validation_alias=alias,
        serialization_alias=alias,
        title=alias,
        json_schema_extra={"x-minimum": minimum, "x-maximum": format_duration(maximum_ms)},
    )
