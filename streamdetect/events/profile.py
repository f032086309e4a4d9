"""The fields of a document under a profile (docs/semantics.md §7): comparable values, keys, ids, event context.

`strict` is the document as Elasticsearch stores it; `resilient` is what an analyst means.
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
    single,
    single_keyword,
    single_long,
)
from streamdetect.model import ContextTuple, ContextValue, EventKind, Flow, Many

_DIRECTIONS = {"outbound": "egress", "inbound": "ingress"}
_NO_DOMAIN = ("", "-")
_CONTEXT_CACHE_SIZE = 32_768
_VALUE_CACHE_SIZE = 32_768


class ProfileReader:
    """Interprets fields under one profile. Pure except for bounded caches."""

    def __init__(self, *, resilient: bool) -> None:
        self._resilient = resilient
        self._addresses = AddressReader()
        # These caches intern equal values: keys of one process instance share their context, and hosts their ids.
        self._contexts: Cache[ContextTuple, ContextTuple] = Cache(_identity, _CONTEXT_CACHE_SIZE)
        self._ids: Cache[tuple[str, ...], tuple[str, ...]] = Cache(_identity, _VALUE_CACHE_SIZE)
        self._texts: Cache[ContextValue, ContextValue] = Cache(_identity, _VALUE_CACHE_SIZE)

    def process_name(self, value: object) -> str | Many | None:
        """process.name for comparisons: without case in `resilient`."""
        if type(value) is str and len(value) <= SURELY_A_KEYWORD:
            return self.comparable_name(value)
        names = distinct_keywords(value)
        return single(_distinct(name.lower() for name in names) if self._resilient else names)

    def comparable_name(self, name: str) -> str:
        """A process name within the length limit of a keyword, for comparisons."""
        return name.lower() if self._resilient else name

    def flow(self, direction: object, port: object, ip: object, address: object) -> Flow:
        """Direction and destination, from network.direction and destination.port, .ip and .address."""
        ips = self._addresses.distinct(ip)
        return Flow.to(
            direction=self._direction(direction),
            port=single_long(port),
            ip=single(ips),
            addresses=self._key_addresses(address, ips),
        )

    def kind(self, fields: Fields, process_name: str | Many | None) -> EventKind:
        """The kind of an event; `process_name` is the comparable one."""
        family = single_keyword(fields.os_family)
        sensor = None
        if self._resilient:
            sensor = "sysmon" if fields.sysmon else "endpoint"
            if family is None:
                family = single_keyword(fields.os_type) or ("windows" if fields.sysmon else None)
        return EventKind(
            single_keyword(fields.dataset),
            family,
            single_keyword(fields.category),
            process_name,
            sensor,
            fields.sysmon,
        )

    def _direction(self, value: object) -> str | Many | None:
        """network.direction; `resilient` maps older names to egress and ingress, so several values may become one."""
        found = single_keyword(value)
        if not self._resilient or found is None:
            return found
        if isinstance(found, str):
            return _DIRECTIONS.get(found, found)
        return single(_distinct(_DIRECTIONS.get(text, text) for text in distinct_keywords(value)))

    def clock_host(self, host_id: object, host_name: object, computer_name: object) -> str | None:
        """The host whose clock made the time: host.id, else host.name, else the computer name; compared like ids."""
        for value in (host_id, host_name, computer_name):
            names = self._comparable(distinct_keywords(value))
            if names:
                return "\0".join(names)
        return None

    def _key_addresses(self, address: object, ips: tuple[str, ...]) -> tuple[str | None, ...]:
        """The distinct destination addresses; a missing address is a key value of its own (semantics.md §2)."""
        texts = distinct_keywords(address)
        if self._resilient:
            if not texts:
                return ips or (None,)
            if texts == ips:
                return ips
            texts = _distinct(self._addresses.canonical[text] or text.lower() for text in texts)
        return texts or (None,)

    def _host(self, fields: Fields) -> tuple[object, object]:
        """(id, name) of the endpoint, unchanged; in a forwarded event `host` is the collector (semantics.md §7)."""
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
        """The event context of an event that counts: the values of `instance`, and the destination."""
        ip, port = flow.ip, flow.port
        own_ip = ip if isinstance(ip, str) and flow.addresses != (ip,) else None
        # In the order of `model.EventContext`.
        return self._contexts[(*instance, domain, port if isinstance(port, int) else 0, own_ip)]

    def domain(self, value: object) -> ContextValue:
        """destination.domain, for the event context."""
        if value is None:
            return None
        found = distinct_keywords(value)
        return _context_value(
            tuple(text for text in found if text not in _NO_DOMAIN) if self._resilient else found
        )

    def instance(self, fields: Fields) -> ContextTuple:
        """The process instance and its host: all values of `model.EventContext` but the last three."""
        host_id, host_name = self._host(fields)
        hosts = distinct_keywords(host_id)
        processes = distinct_keywords(fields.entity_id)
        texts = self._texts
        return (
            self._ids[self._comparable(hosts)],
            self._comparable(processes),
            texts[_context_value(hosts)],
            texts[_context_value(distinct_keywords(host_name))],
            _context_value(processes),
            _pid(fields.pid),
            texts[_context_value(distinct_keywords(fields.executable))],
            texts[_context_value(distinct_keywords(fields.user_name))],
            texts[_context_value(distinct_keywords(fields.user_domain))],
        )

    def _comparable(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Ids for comparisons: without braces and case in `resilient`; sorted, so that equal sets are equal."""
        if self._resilient:
            ids = _distinct(_reuse(text, text.strip("{}").lower()) for text in ids)
        return ids if len(ids) < 2 else tuple(sorted(ids))


def _identity(value: Any) -> Any:
    return value


def _distinct(texts: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))  # type: ignore[call-overload]  # an iterator of str


def _reuse(text: str, changed: str) -> str:
    """`text` itself if nothing changed: saves one object per process instance."""
    return text if changed == text else changed


def _names_differ(host_name: object, computer_name: object) -> bool:
    """Whether host name and computer name are different machines, by their first labels without case."""
    names = [_first_label(text) for text in distinct_keywords(host_name)]
    computers = [_first_label(text) for text in distinct_keywords(computer_name)]
    return bool(names) and bool(computers) and not set(names) & set(computers)


def _first_label(name: str) -> str:
    return name.partition(".")[0].lower()


def _context_value(values: tuple[str, ...]) -> ContextValue:
    if len(values) < 2:
        return values[0] if values else None
    return tuple(sorted(values))


def _pid(value: object) -> int | None:
    numbers = [item for item in flatten(value) if type(item) is int and is_long(item)]
    return numbers[0] if len(numbers) == 1 else None
