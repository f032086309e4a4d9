"""Words that every room uses: partitions, records, batches, alerts, dead letters.

Nothing here decides anything. Times are whole milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType, Protocol, cast


class Partition(NamedTuple):
    """One ordered log: a Kafka topic partition, or a file (`topic` is its path, `number` 0)."""

    topic: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read, whole: what a dead letter has to keep.

    `timestamp_ms` is None where the medium has none (files).
    """

    partition: Partition
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Batch:
    """Records of one partition in offset order, as columns.

    `timestamps_ms` is None where the medium has none. `offsets` may have gaps (compaction, transactions).
    `keys` and `headers` are None where no record has one.
    """

    partition: Partition
    values: Sequence[bytes | None]
    offsets: Sequence[int]
    timestamps_ms: Sequence[int | None] | None = None
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[tuple[tuple[str, bytes], ...]] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def record(self, index: int) -> Record:
        """The record at `index`, whole."""
        return Record(
            partition=self.partition,
            offset=self.offsets[index],
            timestamp_ms=None if self.timestamps_ms is None else self.timestamps_ms[index],
            key=None if self.keys is None else self.keys[index],
            value=self.values[index],
            headers=() if self.headers is None else self.headers[index],
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was refused, why (`REFUSAL_REASONS`), and a detail a person can act on."""

    record: Record
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: `body` is its JSON text (keys sorted, UTF-8), the rest is for routing and counting."""

    id: str
    episode_id: str
    rule_id: str
    action: str
    tick_ms: int
    body: bytes = field(repr=False)


REFUSAL_REASONS = ("not_json", "not_an_object", "too_large", "no_time", "future_time")
ALERT_ACTIONS = ("opened", "updated", "resolved")


ContextValue = str | tuple[str, ...] | None


class EventContext(NamedTuple):
    """What an alert says of an event beyond its key, and the ids its hosts and processes are compared by.

    Shown values are as they arrived: a text, several distinct ones as a sorted tuple, None where missing. `ip` is None
    where it equals the key's address. They travel as `ContextTuple`, one object for all events of a process instance to
    a port.
    """

    hosts: tuple[str, ...]
    processes: tuple[str, ...]
    host_id: ContextValue
    host_name: ContextValue
    entity_id: ContextValue
    pid: int | None
    executable: ContextValue
    user_name: ContextValue
    user_domain: ContextValue
    domain: ContextValue
    port: int
    ip: str | None


class Many:
    """The mark of a multi-valued field: comparing it is null in ES|QL, so nothing equals it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MANY"


MANY = Many()


AddressKey = NewType("AddressKey", object)
"""A key's address as it is remembered, equal where the addresses are: a canonical IPv4 address as a number, which
takes half the memory of its text; any other text as it is; None. Made by `address_key_of` alone."""


def address_key_of(address: str | None) -> AddressKey:
    if address is None:
        return AddressKey(None)
    try:
        a, b, c, d = map(int, address.split("."))
    except ValueError:
        return AddressKey(address)
    number = AddressKey(a << 24 | b << 16 | c << 8 | d)
    # Not what only looks like one: 010.0.0.1, 1.2.3.256, digits of other scripts.
    return number if address_of(number) == address else AddressKey(address)


def address_of(address_key: AddressKey) -> str | None:
    if isinstance(address_key, int):
        return f"{address_key >> 24}.{address_key >> 16 & 255}.{address_key >> 8 & 255}.{address_key & 255}"
    return cast("str | None", address_key)


class Flow(NamedTuple):
    """Where an event went, as one profile reads it; a comparison sees one value, None or MANY.

    `ip` is canonical text. `addresses` are the groups the event falls into (None: no destination.address),
    `address_keys` the same as keys remember them.
    """

    direction: str | Many | None
    port: int | Many | None
    ip: str | Many | None
    addresses: tuple[str | None, ...]
    address_keys: tuple[AddressKey, ...]

    @classmethod
    def to(
        cls,
        direction: str | Many | None,
        port: int | Many | None,
        ip: str | Many | None,
        addresses: tuple[str | None, ...],
    ) -> Flow:
        """With the targets that these addresses are."""
        return cls(direction, port, ip, addresses, tuple(map(address_key_of, addresses)))


class EventKind(NamedTuple):
    """What sort of event it is, and of which process; a comparison sees one value, None or MANY.

    `sysmon` says that a Sysmon sensor saw it; `sensor` is part of the key in `resilient` and None in `strict`.
    """

    dataset: str | Many | None
    os_family: str | Many | None
    category: str | Many | None
    process_name: str | Many | None
    sensor: str | None
    sysmon: bool


# Details as an exact tuple, which Python's garbage collector leaves alone; `EventContext._make` gives them their names
# back. The first two places are what hosts and processes are compared by.
ContextTuple = tuple[Any, ...]


class Event(Protocol):
    """A record with a usable time. The rest of it is read only as far as somebody asks.

    A flow or kind is mostly the same object as that of an equal event before: few make most of the traffic.
    """

    @property
    def time_ms(self) -> int: ...

    @property
    def process_name(self) -> str | Many | None: ...

    def flow(self) -> Flow:
        """Where it went."""

    def kind(self) -> EventKind:
        """What it is."""

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        """What an alert shows of an event that counts, beyond its key; `flow` and `kind` are the event's own."""

    def host(self) -> str | None:
        """Whose clock this is: host.id, else host.name, else the computer name (semantics.md §4)."""
