"""Remote ends of connections: an invented internet, Microsoft services, internal servers."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from random import Random
from typing import Any

from streamdetect.synthetic.draws import Weighted, below, between, chance, pick

# First octets outside the networks that the default hunt excludes. 45 and 185 are reserved for beacons, so that a
# beacon never shares its address with a site.
_SITE_OCTETS = (
    5, 23, 31, 34, 46, 51, 62, 77, 80, 88, 91, 94, 104, 116, 130, 139, 144, 151, 159, 176, 193, 212,
)  # fmt: skip
_BEACON_OCTETS = (45, 185)
# Reserved for documentation (2001:db8::/32), and not excluded by the default hunt.
_SITE_PREFIX6 = 0x20010DB8

_FIRST = (
    "amber", "birch", "cobalt", "drift", "ember", "fjord", "granite", "harbor", "indigo", "juniper",
    "kestrel", "lumen", "maple", "north", "opal", "prairie", "quartz", "river", "slate", "timber",
    "umbra", "velvet",
)  # fmt: skip
_SECOND = (
    "bank", "bridge", "cast", "desk", "field", "forge", "gate", "hub", "lane", "mail", "maps",
    "market", "news", "post", "shop", "stack", "stream", "video", "wiki", "works",
)  # fmt: skip
_LABELS = ("www", "cdn", "api", "static", "img", "login", "media", "ws", "assets", "telemetry")

_COUNTRIES = ("US", "US", "CA", "DE", "IE", "NL", "FR", "SE", "SG", "JP")

_MICROSOFT = (
    "fe2cr.update.microsoft.com", "fe3cr.delivery.mp.microsoft.com", "slscr.update.microsoft.com",
    "tlu.dl.delivery.mp.microsoft.com", "dl.delivery.mp.microsoft.com", "settings-win.data.microsoft.com",
    "v10.events.data.microsoft.com", "v20.events.data.microsoft.com", "watson.events.data.microsoft.com",
    "kv801.prod.do.dsp.mp.microsoft.com", "geo.prod.do.dsp.mp.microsoft.com", "login.live.com",
    "ctldl.windowsupdate.com", "au.download.windowsupdate.com",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Peer:
    """One served address and port. `long_ip` is the uncompressed form in which Sysmon writes IPv6."""

    ip: str
    long_ip: str
    port: int
    domain: str | None = None
    transport: str = "tcp"
    country: str | None = None  # of a public address
    block: dict[str, Any] | None = None  # Elastic Defend's rendering, cached

    @property
    def v6(self) -> bool:
        return ":" in self.ip


def peer(ip: str, port: int, domain: str | None = None, transport: str = "tcp") -> Peer:
    """An internal peer, in the compressed form that Elastic Defend writes."""
    return Peer(ip, long_form(ip), port, domain, transport)


def long_form(ip: str) -> str:
    """`fe80::1` as Sysmon writes it: `fe80:0:0:0:0:0:0:1`."""
    if ":" not in ip:
        return ip
    packed = IPv6Address(ip).packed
    return ":".join(f"{packed[at] << 8 | packed[at + 1]:x}" for at in range(0, 16, 2))


class Internet:
    """Public sites in order of popularity, and the services that every Windows host calls."""

    def __init__(self, rng: Random, size: int) -> None:
        self._taken: set[str] = set()
        self.sites = [self._site(rng) for _ in range(size)]
        # Zipf's law without its head: the first site gets about 7 % of all visits, so every busy host visits it.
        self.law = Weighted([1 / (rank + 2) for rank in range(size)])
        self.microsoft = [self._public(rng, _SITE_OCTETS, name) for name in _MICROSOFT]
        self.apps = [self._site(rng) for _ in range(24)]

    def beacon(self, rng: Random) -> Peer:
        """A destination that nothing else contacts; half of them have no name."""
        domain = f"{pick(rng, _FIRST)}-{pick(rng, _SECOND)}{below(rng, 90) + 10}.example"
        return self._public(rng, _BEACON_OCTETS, domain if chance(rng, 0.5) else None)

    def _site(self, rng: Random) -> Peer:
        domain = f"{pick(rng, _LABELS)}{below(rng, 30)}.{pick(rng, _FIRST)}{pick(rng, _SECOND)}.example"
        if chance(rng, 0.08):
            return self._public6(rng, domain)
        return self._public(rng, _SITE_OCTETS, domain if chance(rng, 0.7) else None)

    def _public(self, rng: Random, octets: tuple[int, ...], domain: str | None) -> Peer:
        while True:
            ip = f"{pick(rng, octets)}.{below(rng, 256)}.{below(rng, 256)}.{between(rng, 1, 255)}"
            if ip not in self._taken:
                return self._place(rng, ip, ip, domain)

    def _public6(self, rng: Random, domain: str) -> Peer:
        while True:
            number = _SITE_PREFIX6 << 96 | below(rng, 1 << 16) << 80 | between(rng, 1, 1 << 28)
            ip = str(IPv6Address(number))
            if ip not in self._taken:
                return self._place(rng, ip, long_form(ip), domain)

    def _place(self, rng: Random, ip: str, long_ip: str, domain: str | None) -> Peer:
        self._taken.add(ip)
        port = 443 if chance(rng, 0.93) else 80
        return Peer(ip, long_ip, port, domain, "tcp", pick(rng, _COUNTRIES))


class Servers:
    """Internal servers: private addresses, all excluded by the default hunt."""

    def __init__(self) -> None:
        self.dns = [peer(f"10.20.0.{last}", 53, "dns.nordhavn.example", "udp") for last in (10, 11)]
        self.intranet = [
            peer(f"10.20.4.{last}", 443, f"app{last}.nordhavn.example") for last in range(20, 40)
        ]
        self.intranet += [peer(f"192.168.77.{last}", 8443) for last in (5, 6, 7)]
        self.files = [peer(f"10.20.2.{last}", 445, f"fs{last}.nordhavn.example") for last in (20, 21, 22)]
        self.directory = [peer("10.20.0.10", port, "dc01.nordhavn.example") for port in (389, 88, 636, 135)]
        self.neighbours = [
            peer("ff02::1:3", 5355, None, "udp"),
            peer("ff02::fb", 5353, None, "udp"),
            peer("224.0.0.252", 5355, None, "udp"),
            peer("fe80::4c1:8d2f:77a0:15", 5357),
        ]
        self.loopback = [peer("127.0.0.1", port) for port in (8884, 49670, 6463)]
