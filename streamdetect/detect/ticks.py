"""The first window that includes an event (semantics.md §4): the same rule for the engine and for a key on its own."""

from __future__ import annotations

from typing import Final

NEVER: Final = -(1 << 70)  # before any time: minus infinity of semantics.md §4


def first_including_tick(
    time_ms: int, watermark_ms: int, evaluated_ms: int, interval_ms: int, lookback_ms: int
) -> tuple[int, int] | None:
    """The first tick T after `evaluated_ms` with `T > t` and `T > w_p(e)`, and the start of the pane of t.

    None if no later window includes the event: it is counted, and in no window.
    """
    newest_ms = max(time_ms, watermark_ms)
    tick_ms = max(newest_ms - newest_ms % interval_ms, evaluated_ms) + interval_ms
    pane_ms = time_ms - time_ms % interval_ms
    return (tick_ms, pane_ms) if tick_ms <= pane_ms + lookback_ms else None
