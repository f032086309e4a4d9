"""One key of one rule on its own: the step of a keyed operator in a distributed engine.

The contract is the contract of keyed stateful steps: `on_event` takes an event, `notify_at` returns the next timer,
`on_notify` returns alerts, `snapshot` returns plain JSON data. The surrounding engine owns the partition clocks and
calls `on_notify` once every partition's watermark has reached the tick.
"""

from __future__ import annotations

from typing import Any

from streamdetect.detect import preaggregate, serde
from streamdetect.detect.alerts import Key, build
from streamdetect.detect.episodes import EpisodeState, evaluate
from streamdetect.detect.preaggregate import PreAggregate
from streamdetect.detect.rules import Rule
from streamdetect.detect.ticks import NEVER, first_including_tick
from streamdetect.detect.windows import WindowState, fold, leaves_ms, newest_event_ms
from streamdetect.model import Alert, ContextTuple, address_key_of


class KeyedStep:
    """The state of one key. `state` is an earlier `snapshot()`, or None for a new key."""

    def __init__(self, rule: Rule, key: Key, state: dict[str, Any] | None = None) -> None:
        self._rule = rule
        self._key = key
        self._address_key = address_key_of(key.address)
        self._state: WindowState | None = None
        self._episode: EpisodeState | None = None
        self._waiting: dict[int, dict[int, PreAggregate]] = {}
        self._timer_ms: int | None = None
        self._evaluated_ms: int | None = None
        if state is not None:
            self._restore(state)

    def on_event(self, time_ms: int, watermark_ms: int | None, context: ContextTuple) -> None:
        """Process an event that counts. `watermark_ms` is its partition's before it, None before the first event."""
        limits = self._rule.limits
        watermark_ms = NEVER if watermark_ms is None else watermark_ms
        evaluated_ms = NEVER if self._evaluated_ms is None else self._evaluated_ms
        place = first_including_tick(
            time_ms, watermark_ms, evaluated_ms, limits.interval_ms, limits.lookback_ms
        )
        if place is None:
            return
        tick_ms, pane_ms = place
        panes = self._waiting.setdefault(tick_ms, {})
        pre = panes.get(pane_ms)
        if pre is None:
            panes[pane_ms] = preaggregate.start(time_ms, context)
        else:
            preaggregate.add_event(pre, time_ms, context, self._address_key, limits)

    def notify_at(self) -> int | None:
        """The next tick to evaluate, None when the key can be dropped."""
        timers = list(self._waiting)
        if self._timer_ms is not None:
            timers.append(self._timer_ms)
        elif self._state is not None:
            timers.append(leaves_ms(newest_event_ms(self._state[0]), self._rule.limits))
        return min(timers, default=None)

    def on_notify(self, tick_ms: int) -> list[Alert]:
        """Evaluate a tick. Ticks must be passed in order, including every one that `notify_at` returns."""
        limits = self._rule.limits
        panes = self._waiting.pop(tick_ms, {})
        for pane_ms in sorted(panes):
            oldest_ms = tick_ms - limits.lookback_ms
            self._state = fold(self._state, panes[pane_ms], self._address_key, oldest_ms, limits)
        self._evaluated_ms = tick_ms
        outcome = evaluate(self._state, self._episode, tick_ms, limits)
        self._state, self._episode, self._timer_ms = outcome.state, outcome.episode, outcome.next_timer_ms
        return [] if outcome.action is None else [build(self._rule, self._key, tick_ms, outcome)]

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain JSON data."""
        rule_id = self._rule.id
        return {
            "evaluated_ms": self._evaluated_ms,
            "again_ms": self._timer_ms,
            "key": None
            if self._state is None
            else serde.key_row(rule_id, self._key, self._state, self._episode),
            "waiting": [
                serde.waiting_row(rule_id, self._key, tick_ms, pane_ms, pre)
                for tick_ms, panes in self._waiting.items()
                for pane_ms, pre in panes.items()
            ],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._evaluated_ms, self._timer_ms = state["evaluated_ms"], state["again_ms"]
        if state["key"] is not None:
            self._state, self._episode = serde.state_of(state["key"]), serde.episode_of(state["key"])
        for row in state["waiting"]:
            self._waiting.setdefault(row["tick_ms"], {})[row["pane_ms"]] = serde.pre_aggregate_of(row)
