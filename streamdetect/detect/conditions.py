"""The condition of a rule (semantics.md §3): thresholds, the figures they apply to, and what each of the four requires.

The one home of that arithmetic. The engine, variants, explain, the report and the status page all use it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

_HOUR_MS = 3_600_000
_HALF_HOUR_MS = 1_800_000
_UNKNOWN_CLOSENESS = 0.1  # of a condition on hosts or processes while none is known

ConditionName = Literal["rate", "duration", "hosts", "processes"]


class Figures(NamedTuple):
    """Aggregates of one window; times in ms. Distinct counts above the limit are the limit + 1 ("at least")."""

    events: int
    first_ms: int
    last_ms: int
    hosts: int
    processes: int

    @property
    def span_ms(self) -> int:
        """Time from the first to the last event."""
        return self.last_ms - self.first_ms

    @property
    def duration_hours(self) -> int:
        """The span rounded half up, as ES|QL's TO_INT does: 4 hours begin at 3 h 30 min (semantics.md §3)."""
        return (self.span_ms + _HALF_HOUR_MS) // _HOUR_MS

    @property
    def connections_per_hour(self) -> int:
        """The divisor is at least 1: docs/design.md, decision 6."""
        return self.events // max(1, self.duration_hours)


NO_EVENTS = Figures(0, 0, 0, 0, 0)


class Condition(NamedTuple):
    """One of the four conditions at one tick: its figure, its threshold, and whether it holds."""

    name: ConditionName
    value: int
    threshold: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The four numbers of a rule that its condition compares with."""

    min_connections_per_hour: int
    min_duration_hours: int
    max_hosts: int
    max_processes: int

    @property
    def min_events(self) -> int:
        """The fewest events in a window with which the condition can be true."""
        return self.events_for(self.min_duration_hours)

    @property
    def min_span_ms(self) -> int:
        """The shortest span that rounds to `min_duration_hours`; 0 where no span is required."""
        return max(0, self.min_duration_hours * _HOUR_MS - _HALF_HOUR_MS)

    def events_for(self, duration_hours: int) -> int:
        """The fewest events that reach the rate over a duration."""
        return self.min_connections_per_hour * max(1, duration_hours)

    def rate_holds(self, connections_per_hour: int) -> bool:
        return connections_per_hour >= self.min_connections_per_hour

    def duration_holds(self, duration_hours: int) -> bool:
        return duration_hours >= self.min_duration_hours

    def hosts_hold(self, hosts: int) -> bool:
        return 1 <= hosts <= self.max_hosts

    def processes_hold(self, processes: int) -> bool:
        return 1 <= processes <= self.max_processes

    def hold(self, rate: int, hours: int, hosts: int, processes: int) -> bool:
        """The condition: all four hold."""
        return (
            self.rate_holds(rate)
            and self.duration_holds(hours)
            and self.hosts_hold(hosts)
            and self.processes_hold(processes)
        )

    def check(self, figures: Figures) -> tuple[Condition, ...]:
        """Each of the four conditions for these figures, in the order of semantics.md §3."""
        rate, hours = figures.connections_per_hour, figures.duration_hours
        return self.conditions(rate, hours, figures.hosts, figures.processes)

    def conditions(self, rate: int, hours: int, hosts: int, processes: int) -> tuple[Condition, ...]:
        """Each of the four conditions, in the order of semantics.md §3."""
        return (
            Condition("rate", rate, self.min_connections_per_hour, self.rate_holds(rate)),
            Condition("duration", hours, self.min_duration_hours, self.duration_holds(hours)),
            Condition("hosts", hosts, self.max_hosts, self.hosts_hold(hosts)),
            Condition("processes", processes, self.max_processes, self.processes_hold(processes)),
        )


@dataclass(frozen=True, slots=True)
class Limits(Thresholds):
    """A rule's thresholds, and the times its keys are evaluated by, in ms."""

    interval_ms: int
    lookback_ms: int
    renotify_ms: int

    def widened(self, max_hosts: int, max_processes: int) -> Limits:
        """The same limits for aggregates that other rules with so many hosts and processes share."""
        return replace(self, max_hosts=max_hosts, max_processes=max_processes)


def failed_condition(figures: Figures, thresholds: Thresholds) -> str | None:
    """The first reason of semantics.md §5 why the condition is false, None where it is true."""
    if figures.events == 0:
        return "expired"
    if not thresholds.hosts_hold(figures.hosts) and figures.hosts > 0:
        return "second_host"
    if not thresholds.processes_hold(figures.processes) and figures.processes > 0:
        return "second_process"
    if figures.hosts == 0:
        return "no_host"
    if figures.processes == 0:
        return "no_process"
    if not thresholds.duration_holds(figures.duration_hours):
        return "duration"
    if not thresholds.rate_holds(figures.connections_per_hour):
        return "rate"
    return None


class Closeness(NamedTuple):
    """How much of each condition is met, each from 0 to 1. All four are 1 where the condition is true."""

    rate: float
    span: float
    hosts: float
    processes: float

    @property
    def score(self) -> float:
        """The product of all four, from 0 to 1."""
        return self.rate * self.span * self.hosts * self.processes


def closeness(figures: Figures, thresholds: Thresholds) -> Closeness:
    """How close figures are to the thresholds.

    The share of the rate is the events there are by the events needed over the present span, or over the shortest
    span allowed if the present one is shorter.
    """
    hours = max(figures.duration_hours, thresholds.min_duration_hours)
    min_span_ms = thresholds.min_span_ms
    return Closeness(
        rate=min(1.0, figures.events / thresholds.events_for(hours)),
        span=min(1.0, figures.span_ms / min_span_ms) if min_span_ms else 1.0,
        hosts=_distinct_closeness(figures.hosts, thresholds.max_hosts),
        processes=_distinct_closeness(figures.processes, thresholds.max_processes),
    )


def _distinct_closeness(count: int, limit: int) -> float:
    return _UNKNOWN_CLOSENESS if count == 0 else min(1.0, limit / count)
