"""One rule, ready to judge: which events count for it (semantics.md §1), and the limits of its condition (§3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from streamdetect.cache import Cache
from streamdetect.config import RuleException, RuleSettings, Settings
from streamdetect.detect.networks import Networks
from streamdetect.model import ContextTuple, EventContext, EventKind, Flow

# Why a record is filtered: the field whose condition failed, or an exception of the rule.
PROCESS_NAME = "process.name"
EXCEPTION = "exception"
DIRECTION = "network.direction"
CATEGORY = "event.category"
PORT = "destination.port"
ADDRESS = "destination.ip"
FAMILY = "host.os.family"
DATASET = "data_stream.dataset"
FILTER_REASONS = (
    PROCESS_NAME,
    DIRECTION,
    CATEGORY,
    FAMILY,
    DATASET,
    PORT,
    ADDRESS,
    EXCEPTION,
)

_REMEMBERED = 16_384  # verdicts that a table holds in a generation


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

    def objection_to_flow(self, flow: Flow) -> str | None:
        """Why an event that went there does not count, one of FILTER_REASONS; None where the rest decides.

        Missing (None) and multi-valued (MANY) fields equal nothing, as in ES|QL.
        """
        if flow.direction != "egress":
            return DIRECTION
        if not isinstance(flow.port, int) or flow.port in self._ports:
            return PORT
        if not isinstance(flow.ip, str) or flow.ip in self._networks:
            return ADDRESS
        return None

    def objection_to_kind(self, kind: EventKind) -> str | None:
        """Why an event of a kind does not count; None where the rest decides."""
        if kind.process_name not in self.processes:
            return PROCESS_NAME
        if kind.category != "network":
            return CATEGORY
        if kind.os_family != "windows":
            return FAMILY
        if kind.dataset is not None and kind.dataset not in self._datasets:
            return DATASET
        return None

    def objection(self, flow: Flow, kind: EventKind) -> str | None:
        """Why the event does not count for this rule, or None where it counts."""
        return self.objection_to_kind(kind) or self.objection_to_flow(flow)

    def excepts(self, flow: Flow, kind: EventKind, facts: ContextTuple) -> bool:
        """Whether one of the rule's exceptions matches an event that would count."""
        details = EventContext._make(facts)
        return any(exclusion.matches(flow, kind, details) for exclusion in self.exceptions)


class ProcessRules:
    """Rules that want one process name, and what they said of flows and kinds before.

    `of_flow[flow]` and `of_kind[kind]` are the reason why none of them counts such an event, None where one may.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._only = None if len(rules) > 1 or rules[0].exceptions else (rules[0],)
        self.of_flow = Cache(self._of_flow, _REMEMBERED)
        self.of_kind = Cache(self._of_kind, _REMEMBERED)

    def _of_flow(self, flow: Flow) -> str | None:
        return _all_object([rule.objection_to_flow(flow) for rule in self._rules])

    def _of_kind(self, kind: EventKind) -> str | None:
        return _all_object([rule.objection_to_kind(kind) for rule in self._rules])

    def counting(self, flow: Flow, kind: EventKind, details: ContextTuple) -> Sequence[Rule] | str:
        """The rules that count an event to whose flow and kind not all object; else why none of them does."""
        if self._only is not None:
            return self._only
        objections = [rule.objection(flow, kind) for rule in self._rules]
        if None not in objections:
            return objections[0] or EXCEPTION
        return [
            rule
            for rule, objection in zip(self._rules, objections, strict=True)
            if objection is None and not (rule.exceptions and rule.excepts(flow, kind, details))
        ] or EXCEPTION


def _all_object(objections: Sequence[str | None]) -> str | None:
    return None if None in objections else objections[0]


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

    def matches(self, flow: Flow, kind: EventKind, details: EventContext) -> bool:
        """Whether every field given matches."""
        if self._process is not None and kind.process_name != self._process:
            return False
        if self._host is not None and self._host not in self._names(details):
            return False
        return self._destination is None or self._goes_there(flow)

    def _goes_there(self, flow: Flow) -> bool:
        if self._destination in flow.addresses:
            return True
        return self._network is not None and isinstance(flow.ip, str) and flow.ip in self._network

    def _names(self, details: EventContext) -> set[str]:
        shown = details.host_name
        names = (shown,) if isinstance(shown, str) else shown or ()
        return {*details.hosts, *(self._comparable(name) for name in names)}

    def _comparable(self, text: str) -> str:
        return text.strip("{}").lower() if self._fold else text
