"""Which expectations (`config.expectations`) hold for the episodes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

from streamdetect.config import Expectations, KeyPattern, MustNotAlert
from streamdetect.detect.alerts import iso
from streamdetect.findings.episodes import Episode

_NOTHING = "no episode matches"
_CUT_SHORT = "no episode matches so far, and the run was stopped before its end"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation for one key. `holds` is None if it is undecided because the run was stopped early.

    `name` is the name in the file, or is made of the key; `detail` says what was found, with ids and times.
    """

    name: str
    kind: Literal["must_alert", "must_not_alert"]
    holds: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class _Named:
    """An episode with all its names in comparable form, by the fields of a KeyPattern."""

    episode: Episode
    names: dict[str, set[str]]
    addresses: list[IPv4Address | IPv6Address]


def check_expectations(
    expectations: Expectations, episodes: Sequence[Episode], *, stopped: bool = False
) -> list[Verdict]:
    """A verdict for each key: first the keys of `must_alert`, then of `must_not_alert`, in the order of the file.

    A `stopped` run has evaluated only the beginning: an episode that it did not find may have opened later.
    """
    named = [_named(episode) for episode in sorted(episodes, key=_begin_ms)]
    verdicts = []
    for wanted in expectations.must_alert:
        for key in expectations.keys(wanted):
            name = _called(wanted, key) + ("" if wanted.by_ms is None else f", by {iso(wanted.by_ms)}")
            holds, detail = _must_alert(_matching(key, named), wanted.by_ms, stopped=stopped)
            verdicts.append(Verdict(name, "must_alert", holds, detail))
    for unwanted in expectations.must_not_alert:
        for key in expectations.keys(unwanted):
            holds, detail = _must_not_alert(_matching(key, named), stopped=stopped)
            verdicts.append(Verdict(_called(unwanted, key), "must_not_alert", holds, detail))
    return verdicts


def _must_alert(matching: list[Episode], by_ms: int | None, *, stopped: bool) -> tuple[bool | None, str]:
    if not matching:
        return (None, _CUT_SHORT) if stopped else (False, _NOTHING)
    if by_ms is None or _begin_ms(matching[0]) <= by_ms:
        return True, _summary_of(matching)
    # Ticks are evaluated in order: even a stopped run has evaluated every tick before the opening one.
    return False, f"too late: {_summary_of(matching)}"


def _must_not_alert(matching: list[Episode], *, stopped: bool) -> tuple[bool | None, str]:
    if matching:
        return False, _summary_of(matching)
    return (None, _CUT_SHORT) if stopped else (True, _NOTHING)


def _summary_of(matching: list[Episode]) -> str:
    """The number of episodes, and opening, host and figures of the first."""
    first, figures = matching[0], matching[0].figures
    count = "1 episode," if len(matching) == 1 else f"{len(matching)} episodes, the first"
    opened = "opened" if first.opened_ms is not None else "opened at or before"
    return (
        f"{count} {opened} {iso(_begin_ms(first))}: {first.key.process} on {first.host or 'unknown host'}"
        f" to {first.key.address or 'unknown destination'}, rule {first.rule_name};"
        f" {figures['count_connections']} connections over {figures['duration_hours']} h,"
        f" {figures['number_of_con_per_hour']} an hour, hosts {figures['hosts']},"
        f" processes {figures['count_unique_pids']}; episode {first.id}"
    )


def _begin_ms(episode: Episode) -> int:
    """The opening tick, else the first tick at which the episode was open."""
    return episode.first_alert_ms if episode.opened_ms is None else episode.opened_ms


def _called(entry: MustNotAlert, key: KeyPattern) -> str:
    """The name of the entry or label, and the key's own name or one made of its fields."""
    name = key.name
    if name is None:
        name = f"{key.process or 'any process'} to {key.destination or 'any destination'}"
        for word, value in ((" on", key.host), (", rule", key.rule), (", sensor", key.sensor)):
            name += "" if value is None else f"{word} {value}"
    return name if entry.label is None else f"{entry.name or entry.label}: {name}"


def _named(episode: Episode) -> _Named:
    """Whether a pattern matches. Its destination may be the key's address or the IP, as in exceptions of rules."""
    key, host = episode.key, episode.context.get("host", {})
    destinations = {
        _comparable(text)
        for text in (key.address, episode.context.get("destination", {}).get("ip"))
        if isinstance(text, str)
    }
    names = {
        "destination": destinations,
        "process": {_comparable(key.process)},
        "host": {_comparable(text) for name in ("id", "name") for text in _texts(host.get(name))},
        "rule": {_comparable(key.rule_id), _comparable(episode.rule_name)},
        "sensor": {key.sensor or ""},
    }
    addresses = [address for text in destinations if (address := _address(text)) is not None]
    return _Named(episode, names, addresses)


def _texts(value: object) -> list[str]:
    """A value of an alert as a list of texts."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _matching(key: KeyPattern, named: list[_Named]) -> list[Episode]:
    wanted = {name: value for name in key.FIELDS if (value := getattr(key, name)) is not None}
    network = ip_network(wanted.pop("destination")) if "/" in (key.destination or "") else None
    compared = {name: _comparable(value) for name, value in wanted.items()}
    return [
        each.episode
        for each in named
        if all(value in each.names[name] for name, value in compared.items())
        and (network is None or any(address in network for address in each.addresses))
    ]


def _comparable(text: str) -> str:
    """Addresses in canonical form, names and ids without case and braces."""
    address = _address(text)
    return text.strip("{}").lower() if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address of a text; an IPv4-mapped IPv6 address is the IPv4 address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
