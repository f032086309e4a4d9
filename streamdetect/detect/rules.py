"""One rule, ready to judge: which events count for it (semantics.md §1), and the limits of its condition (§3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamdetect.config import RuleException, RuleSettings, Settings
from streamdetect.detect.networks import Networks
from streamdetect.model import Connection, Details, Facts

# Why a record is filtered: the field whose condition failed, or an exception of the rule.
PROCESS_NAME = "process.name"
EXCEPTION = "exception"
DIRECTION = "network.direction"
PORT = "destination.port"
ADDRESS = "destination.ip"
FAMILY = "host.os.family"
DATASET = "data_stream.dataset"
FILTER_REASONS = (
    PROCESS_NAME,
    DIRECTION,
    "event.category",
    FAMILY,
    DATASET,
    PORT,
    ADDRESS,
    EXCEPTION,
)


# Verdicts that an event read in full may change: that it counts (None), and those on fields with a fallback, which
# may have hidden the first choice.
MAY_HIDE = frozenset({None, FAMILY, DATASET})


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of a rule's condition, and of time. All times in ms.

    `need` is the fewest events in a window with which the condition can be true.
    """

    interval_ms: int
    lookback_ms: int
    min_connections_per_hour: int
    min_duration_hours: int
    max_hosts: int
    max_processes: int
    renotify_ms: int

    @property
    def need(self) -> int:
        return self.min_connections_per_hour * max(1, self.min_duration_hours)

    def widened(self, max_hosts: int, max_processes: int) -> Limits:
        """The same, for aggregates that others with so many hosts and processes judge, too."""
        return replace(self, max_hosts=max_hosts, max_processes=max_processes)


class Rule:
    """A rule's conditions on one event, in the order that ends soonest."""

    def __init__(self, rule: RuleSettings, settings: Settings) -> None:
        resilient = settings.profile == "resilient"
        self.id = rule.id
        self.name = rule.name
        self.severity = rule.severity
        self.profile = settings.profile
        self.processes = frozenset(name.lower() if resilient else name for name in rule.processes)
        self.limits = Limits(
            interval_ms=settings.time.interval_ms,
            lookback_ms=settings.time.lookback_ms,
            min_connections_per_hour=rule.min_connections_per_hour,
            min_duration_hours=rule.min_duration_hours,
            max_hosts=rule.max_hosts,
            max_processes=rule.max_processes,
            renotify_ms=rule.renotify_ms,
        )
        self._datasets = frozenset(rule.datasets)
        self._ports = frozenset(rule.excluded_ports)
        self._networks = Networks(rule.networks())
        self.exceptions = tuple(Exclusion(exception, resilient=resilient) for exception in rule.exceptions)

    def dismisses(self, direction: str | None, port: int | None, ip: str | None) -> str | None:
        """Why an event with these values (`model.Glance`) cannot count, whatever else it holds; None if it may."""
        if direction != "egress" and direction is not None:
            return DIRECTION
        if port in self._ports:
            return PORT
        if ip is not None and ip in self._networks:
            return ADDRESS
        return None

    def objection(self, event: Connection) -> str | None:
        """Why the event does not count for this rule (one of FILTER_REASONS), or None where it counts.

        Missing (None) and multi-valued (MANY) fields equal nothing, as in ES|QL.
        """
        if event.process_name not in self.processes:
            return PROCESS_NAME
        if event.direction != "egress":
            return DIRECTION
        if event.category != "network":
            return "event.category"
        if event.os_family != "windows":
            return FAMILY
        if event.dataset is not None and event.dataset not in self._datasets:
            return DATASET
        if not isinstance(event.port, int) or event.port in self._ports:
            return PORT
        if not isinstance(event.ip, str) or event.ip in self._networks:
            return ADDRESS
        return None

    def excepts(self, event: Connection, facts: Facts) -> bool:
        """Whether one of the rule's exceptions matches an event that would count."""
        details = Details._make(facts)
        return any(exclusion.matches(event, details) for exclusion in self.exceptions)


class Exclusion:
    """One of a rule's `exceptions`: an event that matches every field given does not count.

    `destination` is an address or name of the key, or the destination's IP, or a network that holds that IP;
    `host` is a host id or name. In `resilient` all compare as keys and ids do: without case and braces.
    """

    def __init__(self, exception: RuleException, *, resilient: bool) -> None:
        self._fold = resilient
        self._network: Networks | None = None
        self._destination: str | None = None
        if exception.destination is not None:
            self._destination = self._comparable(exception.destination)
            try:
                self._network = Networks([exception.destination])
            except ValueError:
                self._network = None
        self._process = None if exception.process is None else self._comparable(exception.process)
        self._host = None if exception.host is None else self._comparable(exception.host)

    def matches(self, event: Connection, details: Details) -> bool:
        """Whether every field given matches."""
        if self._process is not None and event.process_name != self._process:
            return False
        if self._host is not None and self._host not in self._names(details):
            return False
        return self._destination is None or self._goes_there(event)

    def _goes_there(self, event: Connection) -> bool:
        if self._destination in event.addresses:
            return True
        return self._network is not None and isinstance(event.ip, str) and event.ip in self._network

    def _names(self, details: Details) -> set[str]:
        shown = details.host_name
        names = (shown,) if isinstance(shown, str) else shown or ()
        return {*details.hosts, *(self._comparable(name) for name in names)}

    def _comparable(self, text: str) -> str:
        return text.strip("{}").lower() if self._fold else text
