"""Types that every room uses: partitions, records, batches, events, alerts, dead letters.

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
    """One whole record as it was read, as a dead letter keeps it. `timestamp_ms` is None for files."""

    partition: Partition
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Batch:
    """Records of one partition in offset order, as columns.

    `timestamps_ms` is None for files. `offsets` may have gaps (compaction, transaction markers). `keys` and `headers`
    are None where no record has one.
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
        """The whole record at `index`."""
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
    """A refused record, the reason (one of `REFUSAL_REASONS`), and a detail that tells a person what to do."""

    record: Record
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `body` is its JSON text (keys sorted, UTF-8); the other fields are for routing and counting."""

    id: str
    episode_id: str
    rule_id: str
    action: str
    tick_ms: int
    body: bytes = field(repr=False)


REFUSAL_REASONS = ("not_json", "not_an_object", "too_large", "no_time", "future_time")
ALERT_ACTIONS = ("opened", "updated", "resolved")


ContextValue = str | tuple[str, ...] | None
"""A value as it arrived: a text, several distinct ones as a sorted tuple, None where missing."""


class EventContext(NamedTuple):
    """What an alert shows of an event beyond its key, and the ids by which its hosts and processes are told apart.

    `hosts` and `processes` are the ids as they are compared. `ip` is None where it equals the key's address.
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


ContextTuple = tuple[Any, ...]
"""An `EventContext` as a plain tuple, which the garbage collector ignores; `EventContext._make` gives the names back.
All events of one process instance to one port share one object. The first two places are `hosts` and `processes`."""


class Many:
    """The value of a multi-valued field in a comparison: null in ES|QL, so it equals nothing."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MANY"


MANY = Many()


AddressKey = NewType("AddressKey", object)
"""A key's address in memory, made by `address_key_of` only: a canonical IPv4 address as an integer, which takes half
the memory of its text; any other text unchanged; None. Equal exactly where the addresses are equal."""


def address_key_of(address: str | None) -> AddressKey:
    if address is None:
        return AddressKey(None)
    try:
        a, b, c, d = map(int, address.split("."))
    except ValueError:
        return AddressKey(address)
    number = AddressKey(a << 24 | b << 16 | c << 8 | d)
    # Excludes texts that only look canonical: 010.0.0.1, 1.2.3.256, 256.0.0.0, -1.0.0.0, digits of other scripts.
    return number if 0 <= a <= 255 and address_of(number) == address else AddressKey(address)


def address_of(address_key: AddressKey) -> str | None:
    if isinstance(address_key, int):
        return f"{address_key >> 24}.{address_key >> 16 & 255}.{address_key >> 8 & 255}.{address_key & 255}"
    return cast("str | None", address_key)


class Flow(NamedTuple):
    """Direction and destination of an event under one profile. A comparison sees one value, None or MANY.

    `ip` is canonical text. `addresses` are those of the event's keys (None: no destination.address), `address_keys` the
    same in memory.
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
        """A flow with the address keys of its addresses."""
        return cls(direction, port, ip, addresses, tuple(map(address_key_of, addresses)))


class EventKind(NamedTuple):
    """Dataset, category, operating system, process name and sensor of an event.

    A comparison sees one value, None or MANY. `sysmon` is True for a Sysmon event. `sensor` is part of the key in
    `resilient` and None in `strict`.
    """

    dataset: str | Many | None
    os_family: str | Many | None
    category: str | Many | None
    process_name: str | Many | None
    sensor: str | None
    sysmon: bool


class Event(Protocol):
    """A record with a usable time. Everything else is derived on demand: most records are filtered by process name.

    Equal flows and kinds are usually the same object, because they are cached.
    """

    @property
    def time_ms(self) -> int: ...

    @property
    def process_name(self) -> str | Many | None: ...

    def flow(self) -> Flow:
        """Direction and destination."""

    def kind(self) -> EventKind:
        """Dataset, category, operating system and sensor."""

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        """What an alert shows of this event if it counts; `flow` and `kind` are the event's own."""

    def host(self) -> str | None:
        """The host whose clock made `time_ms`: host.id, else host.name, else the computer name (semantics.md §4)."""
