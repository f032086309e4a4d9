"""Excluded networks (semantics.md §1)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from streamdetect.cache import Cache
from streamdetect.model import address_key_of

# IPv4 addresses compare as ::ffff:a.b.c.d, so that both versions are numbers of one range.
_MAPPED = 0xFFFF << 32
_CACHED = 8_192  # addresses in one generation of the cache


class Networks:
    """A set of networks as disjoint ranges of numbers. Results are cached, within bounds."""

    def __init__(self, networks: Iterable[str]) -> None:
        """`networks`: CIDR texts; one without a prefix is a single address. Raises ValueError for any other text."""
        ranges = sorted(_range(text) for text in networks)
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            if self._ends and start <= self._ends[-1] + 1:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)
        self._cached = Cache(self._contains, _CACHED)

    def __contains__(self, address: str) -> bool:
        """`address` is canonical text."""
        return self._cached[address]

    def _contains(self, address: str) -> bool:
        number = _number(address)
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number <= self._ends[index]


def _number(address: str) -> int:
    address_key = address_key_of(address)
    return _MAPPED | address_key if isinstance(address_key, int) else int(IPv6Address(address))


def _range(text: str) -> tuple[int, int]:
    network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    shift = _MAPPED if isinstance(network, IPv4Network) else 0
    return shift | int(network.network_address), shift | int(network.broadcast_address)
