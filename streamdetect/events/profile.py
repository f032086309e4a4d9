"""What a document's fields mean under a profile (semantics.md §7): comparable values, keys, ids, details to show.

`strict` is the document as Elasticsearch would hold it; `resilient` is what an analyst means.
"""

from __future__ import annotations

from typing import Any

from streamdetect.cache import Cache
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
from streamdetect.model import ContextTuple, ContextValue, EventKind, Flow, Many

_DIRECTIONS = {"outbound": "egress", "inbound": "ingress"}
_NO_DOMAIN = ("", "-")
_SHARED_DETAILS = 32_768
_SHARED_PARTS = 32_768


class ProfileReader:
    """The reading of one profile. Pure but for bounded memories of what it has seen."""

    def __init__(self, *, resilient: bool) -> None:
        self._resilient = resilient
        self._addresses = AddressReader()
        # One object for equal details, so that keys of one process instance share it; and for what hosts share.
        self._shared: Cache[ContextTuple, ContextTuple] = Cache(_itself, _SHARED_DETAILS)
        self._ids: Cache[tuple[str, ...], tuple[str, ...]] = Cache(_itself, _SHARED_PARTS)
        self._texts: Cache[ContextValue, ContextValue] = Cache(_itself, _SHARED_PARTS)

    def process_name(self, value: object) -> str | Many | None:
        """process.name as it is compared: without case in `resilient`."""
        if type(value) is str and len(value) <= SURELY_A_KEYWORD:
            return self.name_of(value)
        names = distinct_keywords(value)
        return only(_distinct(name.lower() for name in names) if self._resilient else names)

    def name_of(self, name: str) -> str:
        """A process name that is surely a keyword, as it is compared."""
        return name.lower() if self._resilient else name

    def flow(self, direction: object, found_port: object, ip: object, address: object) -> Flow:
        """Where an event went, from network.direction and destination.port, .ip and .address."""
        ips = self._addresses.distinct(ip)
        return Flow.to(
            direction=self._direction(direction),
            port=port(found_port),
            ip=only(ips),
            addresses=self._groups(address, ips),
        )

    def kind(self, fields: Fields, process_name: str | Many | None) -> EventKind:
        """What the event is; the process name is as it is compared."""
        family = one(fields.os_family)
        sensor = None
        if self._resilient:
            sensor = "sysmon" if fields.sysmon else "endpoint"
            if family is None:
                family = one(fields.os_type) or ("windows" if fields.sysmon else None)
        return EventKind(
            one(fields.dataset), family, one(fields.category), process_name, sensor, fields.sysmon
        )

    def _direction(self, value: object) -> str | Many | None:
        """Older words for egress and ingress; several values may turn out to be one."""
        found = one(value)
        if not self._resilient or found is None:
            return found
        if isinstance(found, str):
            return _DIRECTIONS.get(found, found)
        return only(_distinct(_DIRECTIONS.get(text, text) for text in distinct_keywords(value)))

    def leap_host(self, host_id: object, host_name: object, computer_name: object) -> str | None:
        """Whose clock a record shows: host.id, else host.name, else the computer name; compared as ids are."""
        for value in (host_id, host_name, computer_name):
            names = self._comparable(distinct_keywords(value))
            if names:
                return "\0".join(names)
        return None

    def _groups(self, address: object, ips: tuple[str, ...]) -> tuple[str | None, ...]:
        """The distinct destination addresses; a missing one is a key value of its own (§2)."""
        texts = distinct_keywords(address)
        if self._resilient:
            if not texts:
                return ips or (None,)
            if texts == ips:
                return ips
            texts = _distinct(self._addresses.canonical[text] or text.lower() for text in texts)
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

    def context(self, instance: ContextTuple, domain: ContextValue, flow: Flow) -> ContextTuple:
        """What an alert shows of an event that counts: what `instance` gives, and where it went."""
        ip, port = flow.ip, flow.port
        own_ip = ip if isinstance(ip, str) and flow.addresses != (ip,) else None
        # As in model.Details.
        return self._shared[(*instance, domain, port if isinstance(port, int) else 0, own_ip)]

    def domain(self, value: object) -> ContextValue:
        """destination.domain, as it is shown."""
        if value is None:
            return None
        found = distinct_keywords(value)
        return _shown(tuple(text for text in found if text not in _NO_DOMAIN) if self._resilient else found)

    def instance(self, fields: Fields) -> ContextTuple:
        """The places of `model.EventContext` that tell a process instance and its host: all but the last three."""
        host_id, host_name = self._host(fields)
        hosts = distinct_keywords(host_id)
        processes = distinct_keywords(fields.entity_id)
        texts = self._texts
        return (
            self._ids[self._comparable(hosts)],
            self._comparable(processes),
            texts[_shown(hosts)],
            texts[_shown(distinct_keywords(host_name))],
            _shown(processes),
            _pid(fields.pid),
            texts[_shown(distinct_keywords(fields.executable))],
            texts[_shown(distinct_keywords(fields.user_name))],
            texts[_shown(distinct_keywords(fields.user_domain))],
        )

    def _comparable(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Ids as they are compared: without braces and case in `resilient`; sorted, so that equal sets are equal."""
        if self._resilient:
            ids = _distinct(_same_or(text, text.strip("{}").lower()) for text in ids)
        return ids if len(ids) < 2 else tuple(sorted(ids))


def _itself(value: Any) -> Any:
    return value


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


def _shown(values: tuple[str, ...]) -> ContextValue:
    if len(values) < 2:
        return values[0] if values else None
    return tuple(sorted(values))


def _pid(value: object) -> int | None:
    numbers = [item for item in flatten(value) if type(item) is int and is_long(item)]
    return numbers[0] if len(numbers) == 1 else None
