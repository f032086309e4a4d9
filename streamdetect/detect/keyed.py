"""One key of one rule on its own: the step of a keyed operator in a distributed engine.

The contract is that of keyed stateful steps: an event comes in, `notify_at` says when to be woken, `on_notify` gives
alerts, `snapshot` gives plain JSON data. The engine around it owns the partition clocks and calls `on_notify` once
every partition's watermark has reached the tick.
"""

from __future__ import annotations

from typing import Any

from streamdetect.detect import serde, windows
from streamdetect.detect.alerts import Key, build
from streamdetect.detect.episodes import EpisodeState, leaves_ms, look
from streamdetect.detect.rules import Rule
from streamdetect.detect.ticks import NEVER, inclusion
from streamdetect.detect.windows import PreAggregate, WindowState
from streamdetect.model import Alert, ContextTuple, address_key_of


class KeyedStep:
    """The state of one key. `state` is an earlier `snapshot()`, or None for a new key."""

    def __init__(self, rule: Rule, key: Key, state: dict[str, Any] | None = None) -> None:
        self._rule = rule
        self._key = key
        self._target = address_key_of(key.address)
        self._history: WindowState | None = None
        self._episode: EpisodeState | None = None
        self._waiting: dict[int, dict[int, PreAggregate]] = {}
        self._again_ms: int | None = None
        self._evaluated_ms: int | None = None
        if state is not None:
            self._restore(state)

    def on_event(self, time_ms: int, watermark_ms: int | None, details: ContextTuple) -> None:
        """Take an event that counts; `watermark_ms` is its partition's before it, None before the first event."""
        limits = self._rule.limits
        watermark_ms = NEVER if watermark_ms is None else watermark_ms
        evaluated_ms = NEVER if self._evaluated_ms is None else self._evaluated_ms
        place = inclusion(time_ms, watermark_ms, evaluated_ms, limits.interval_ms, limits.lookback_ms)
        if place is None:
            return
        tick_ms, pane_ms = place
        panes = self._waiting.setdefault(tick_ms, {})
        partial = panes.get(pane_ms)
        if partial is None:
            panes[pane_ms] = windows.start_partial(time_ms, details)
        else:
            windows.add_event(partial, time_ms, details, self._target, limits)

    def notify_at(self) -> int | None:
        """The next tick at which something may change, None when the key can be dropped."""
        moments = list(self._waiting)
        if self._again_ms is not None:
            moments.append(self._again_ms)
        elif self._history is not None:
            moments.append(leaves_ms(windows.newest_ms(self._history[0]), self._rule.limits))
        return min(moments, default=None)

    def on_notify(self, tick_ms: int) -> list[Alert]:
        """Evaluate a tick. Ticks must be given in order, and none that `notify_at` names may be left out."""
        limits = self._rule.limits
        panes = self._waiting.pop(tick_ms, {})
        for pane_ms in sorted(panes):
            oldest_ms = tick_ms - limits.lookback_ms
            self._history = windows.fold(self._history, panes[pane_ms], self._target, oldest_ms, limits)
        self._evaluated_ms = tick_ms
        found = look(self._history, self._episode, tick_ms, limits)
        self._history, self._episode, self._again_ms = found.history, found.episode, found.again_ms
        return [] if found.action is None else [build(self._rule, self._key, tick_ms, found)]

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain JSON data."""
        rule_id = self._rule.id
        return {
            "evaluated_ms": self._evaluated_ms,
            "again_ms": self._again_ms,
            "key": None
            if self._history is None
            else serde.key_row(rule_id, self._key, self._history, self._episode),
            "waiting": [
                serde.waiting_row(rule_id, self._key, tick_ms, pane_ms, partial)
                for tick_ms, panes in self._waiting.items()
                for pane_ms, partial in panes.items()
            ],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._evaluated_ms, self._again_ms = state["evaluated_ms"], state["again_ms"]
        if state["key"] is not None:
            self._history, self._episode = serde.history_of(state["key"]), serde.episode_of(state["key"])
        for row in state["waiting"]:
            self._waiting.setdefault(row["tick_ms"], {})[row["pane_ms"]] = serde.partial_of(row)
