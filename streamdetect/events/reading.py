"""What a document's fields mean under a profile (semantics.md §7): comparable values, keys, ids, details to show.

`strict` is the document as Elasticsearch would hold it; `resilient` is what an analyst means.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from streamdetect.events.generic import Fields
from streamdetect.events.values import (
    SURELY_A_KEYWORD,
    AddressReader,
    distinct_keywords,
    flatten,
    is_long,
    one,
    only,
    port,
)
from streamdetect.model import Connection, Details, Facts, Glance, Many, Shown

_DIRECTIONS = {"outbound": "egress", "inbound": "ingress"}
_SHARED_DETAILS = 262_144  # one object for equal details, so that keys of one process instance share it
_KNOWN_ORIGINS = 32_768

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Pool(Generic[Key, Value]):
    """A bounded memory in two generations: when the young one is full it becomes the old one.

    What is still in use comes back young; what is forgotten is only worked out, or kept, again.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def get(self, key: Key) -> Value | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: Key, value: Value) -> Value:
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value
        return value


class Reading:
    """The reading of one profile. Pure but for bounded memories of what it has seen."""

    def __init__(self, *, resilient: bool) -> None:
        self._resilient = resilient
        self._addresses = AddressReader()
        self._shared: Pool[Facts, Facts] = Pool(_SHARED_DETAILS)
        self._origins: Pool[tuple[Hashable, ...], Facts] = Pool(_KNOWN_ORIGINS)

    def process_name(self, value: object) -> str | Many | None:
        """process.name as it is compared: without case in `resilient`."""
        if type(value) is str and len(value) <= SURELY_A_KEYWORD:
            return value.lower() if self._resilient else value
        names = distinct_keywords(value)
        return only(_distinct(name.lower() for name in names) if self._resilient else names)

    def glance(self, direction: object, found_port: object, ip: object) -> Glance:
        """The three values as they are compared; None for what is missing or malformed."""
        if self._resilient:
            direction = _DIRECTIONS.get(direction, direction)  # type: ignore[call-overload]  # any hashable
        number = found_port if type(found_port) is int else port(found_port)
        return (
            direction if type(direction) is str and len(direction) <= SURELY_A_KEYWORD else None,
            number if type(number) is int else None,
            self._addresses.canonical(ip) if type(ip) is str else None,
        )

    def connection(self, fields: Fields) -> Connection:
        """Everything that rules and keys need."""
        ips = self._addresses.distinct(fields.ip)
        family, direction = one(fields.os_family), one(fields.direction)
        sensor = None
        if self._resilient:
            sensor = "sysmon" if fields.sysmon else "endpoint"
            if family is None:
                family = one(fields.os_type) or ("windows" if fields.sysmon else None)
            direction = self._direction(direction, fields)
        return Connection(
            dataset=one(fields.dataset),
            os_family=family,
            category=one(fields.category),
            direction=direction,
            process_name=self.process_name(fields.process_name),
            port=port(fields.port),
            ip=only(ips),
            addresses=self._groups(fields, ips),
            sensor=sensor,
        )

    def _direction(self, direction: str | Many | None, fields: Fields) -> str | Many | None:
        """Older words for egress and ingress; several values may turn out to be one."""
        if isinstance(direction, str):
            return _DIRECTIONS.get(direction, direction)
        if direction is None:
            return None
        return only(_distinct(_DIRECTIONS.get(text, text) for text in distinct_keywords(fields.direction)))

    def details(self, fields: Fields) -> Facts:
        """What an alert shows of an event that counts: it has one port and one address."""
        ips = self._addresses.distinct(fields.ip)
        found_port = port(fields.port)
        own_ip = ips[0] if ips and self._groups(fields, ips) != ips else None
        number = found_port if isinstance(found_port, int) else 0
        if not fields.plain:
            return self._details(fields, number, own_ip)
        origin = fields.origin()
        identity = (*origin, number, own_ip)
        known = self._origins.get(identity)
        return known or self._origins.put(identity, self._details(fields, number, own_ip))

    def leap_host(self, fields: Fields) -> str | None:
        """Whose clock a record shows: host.id, else host.name, else the computer name; compared as ids are."""
        for value in (fields.host_id, fields.host_name, fields.computer_name):
            names = self._comparable(distinct_keywords(value))
            if names:
                return "\0".join(names)
        return None

    def _groups(self, fields: Fields, ips: tuple[str, ...]) -> tuple[str | None, ...]:
        """The distinct destination addresses; a missing one is a key value of its own (§2)."""
        texts = distinct_keywords(fields.address)
        if self._resilient:
            if not texts:
                return ips or (None,)
            if texts == ips:
                return ips
            texts = _distinct(self._addresses.canonical(text) or text.lower() for text in texts)
        return texts or (None,)

    def _host(self, fields: Fields) -> tuple[object, object]:
        """(id, name) of the endpoint, as they arrived; behind a collector the host block is the collector's (§7)."""
        if not self._resilient:
            return fields.host_id, fields.host_name
        computer = fields.computer_name
        if fields.sysmon and (fields.forwarded or _names_differ(fields.host_name, computer)):
            return computer, computer
        name = fields.host_name if distinct_keywords(fields.host_name) else computer
        for value in (fields.host_id, computer, fields.agent_id):
            if distinct_keywords(value):
                return value, name
        return None, name

    def _details(self, fields: Fields, found_port: int, own_ip: str | None) -> Facts:
        host_id, host_name = self._host(fields)
        hosts = distinct_keywords(host_id)
        processes = distinct_keywords(fields.entity_id)
        domain = distinct_keywords(fields.domain)
        if self._resilient:
            domain = tuple(text for text in domain if text not in ("", "-"))
        details: Facts = tuple(
            Details(
                hosts=self._comparable(hosts),
                processes=self._comparable(processes),
                host_id=_shown(hosts),
                host_name=_shown(distinct_keywords(host_name)),
                entity_id=_shown(processes),
                pid=_pid(fields.pid),
                executable=_shown(distinct_keywords(fields.executable)),
                user_name=_shown(distinct_keywords(fields.user_name)),
                user_domain=_shown(distinct_keywords(fields.user_domain)),
                domain=_shown(domain),
                port=found_port,
                ip=own_ip,
            )
        )
        return self._shared.get(details) or self._shared.put(details, details)

    def _comparable(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Ids as they are compared: without braces and case in `resilient`; sorted, so that equal sets are equal."""
        if self._resilient:
            ids = _distinct(_same_or(text, text.strip("{}").lower()) for text in ids)
        return ids if len(ids) < 2 else tuple(sorted(ids))


def _distinct(texts: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))  # type: ignore[call-overload]  # an iterator of str


def _same_or(text: str, changed: str) -> str:
    """The text itself where nothing changed: one object less for each process instance."""
    return text if changed == text else changed


def _names_differ(host_name: object, computer_name: object) -> bool:
    """Whether a host name and the computer name are two machines: first labels, compared without case."""
    names = [_first_label(text) for text in distinct_keywords(host_name)]
    computers = [_first_label(text) for text in distinct_keywords(computer_name)]
    return bool(names) and bool(computers) and not set(names) & set(computers)


def _first_label(name: str) -> str:
    return name.partition(".")[0].lower()


def _shown(values: tuple[str, ...]) -> Shown:
    if len(values) < 2:
        return values[0] if values else None
    return tuple(sorted(values))


def _pid(value: object) -> int | None:
    numbers = [item for item in flatten(value) if type(item) is int and is_long(item)]
    return numbers[0] if len(numbers) == 1 else None
