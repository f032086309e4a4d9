"""Rules: which events count for them (semantics.md §1), and the limits of their condition (semantics.md §3)."""

from __future__ import annotations

from collections.abc import Sequence

from streamdetect.cache import Cache
from streamdetect.config import RuleException, RuleSettings, Settings
from streamdetect.detect.conditions import Limits
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
FILTER_REASONS = (PROCESS_NAME, DIRECTION, CATEGORY, FAMILY, DATASET, PORT, ADDRESS, EXCEPTION)

_CACHED = 16_384  # filter reasons in one generation of a cache


class Rule:
    """A rule's conditions on one event, cheapest and most selective first."""

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
        self.exceptions = tuple(
            ExceptionMatcher(exception, resilient=resilient) for exception in rule.exceptions
        )

    def filter_flow(self, flow: Flow) -> str | None:
        """Why an event with this flow does not count, one of FILTER_REASONS; None if it may.

        Missing (None) and multi-valued (MANY) fields equal nothing, as in ES|QL.
        """
        if flow.direction != "egress":
            return DIRECTION
        if not isinstance(flow.port, int) or flow.port in self._ports:
            return PORT
        if not isinstance(flow.ip, str) or flow.ip in self._networks:
            return ADDRESS
        return None

    def filter_kind(self, kind: EventKind) -> str | None:
        """Why an event of this kind does not count, one of FILTER_REASONS; None if it may."""
        if kind.process_name not in self.processes:
            return PROCESS_NAME
        if kind.category != "network":
            return CATEGORY
        if kind.os_family != "windows":
            return FAMILY
        if kind.dataset is not None and kind.dataset not in self._datasets:
            return DATASET
        return None

    def filter(self, flow: Flow, kind: EventKind) -> str | None:
        """Why an event does not count, one of FILTER_REASONS; None if it counts unless an exception matches."""
        return self.filter_kind(kind) or self.filter_flow(flow)

    def excepts(self, flow: Flow, kind: EventKind, context: ContextTuple) -> bool:
        """Whether one of the rule's exceptions matches an event that would count."""
        event = EventContext._make(context)
        return any(exception.matches(flow, kind, event) for exception in self.exceptions)


def enabled_rules(settings: Settings) -> tuple[Rule, ...]:
    """The enabled rules, in the order of the configuration."""
    return tuple(Rule(rule, settings) for rule in settings.rules if rule.enabled)


class ProcessRules:
    """The rules for one process name, with cached filter reasons.

    `of_flow[flow]` and `of_kind[kind]` are the reason why none of them counts such an event, None if one may.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._only = None if len(rules) > 1 or rules[0].exceptions else (rules[0],)
        self.of_flow = Cache(self._filter_flow, _CACHED)
        self.of_kind = Cache(self._filter_kind, _CACHED)

    def _filter_flow(self, flow: Flow) -> str | None:
        return _if_all([rule.filter_flow(flow) for rule in self._rules])

    def _filter_kind(self, kind: EventKind) -> str | None:
        return _if_all([rule.filter_kind(kind) for rule in self._rules])

    def matching(self, flow: Flow, kind: EventKind, context: ContextTuple) -> Sequence[Rule] | str:
        """The rules that count an event that passed `of_flow` and `of_kind`, or the reason why none of them does."""
        if self._only is not None:
            return self._only
        reasons = [rule.filter(flow, kind) for rule in self._rules]
        if None not in reasons:
            return reasons[0] or EXCEPTION
        return [
            rule
            for rule, reason in zip(self._rules, reasons, strict=True)
            if reason is None and not (rule.exceptions and rule.excepts(flow, kind, context))
        ] or EXCEPTION


def _if_all(reasons: Sequence[str | None]) -> str | None:
    """The first reason, if every rule has one."""
    return None if None in reasons else reasons[0]


class ExceptionMatcher:
    """One of a rule's `exceptions`: an event that matches every field given does not count.

    `destination` is an address or name of the key, the destination's IP, or a network that contains that IP. `host` is
    a host id or name. In `resilient` all compare without case and braces, as keys and ids do.
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

    def matches(self, flow: Flow, kind: EventKind, context: EventContext) -> bool:
        """Whether every field given matches."""
        if self._process is not None and kind.process_name != self._process:
            return False
        if self._host is not None and self._host not in self._names(context):
            return False
        return self._destination is None or self._matches_destination(flow)

    def _matches_destination(self, flow: Flow) -> bool:
        if self._destination in flow.addresses:
            return True
        return self._network is not None and isinstance(flow.ip, str) and flow.ip in self._network

    def _names(self, context: EventContext) -> set[str]:
        value = context.host_name
        names = (value,) if isinstance(value, str) else value or ()
        return {*context.hosts, *(self._comparable(name) for name in names)}

    def _comparable(self, text: str) -> str:
        return text.strip("{}").lower() if self._fold else text
