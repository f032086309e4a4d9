"""From which tick on an event counts (semantics.md §4): the same for the engine's lanes and for a key on its own."""

from __future__ import annotations

from typing import Final

NEVER: Final = -(1 << 70)  # before any time: minus infinity of §4


def inclusion(
    time_ms: int, watermark_ms: int, evaluated_ms: int, interval_ms: int, lookback_ms: int
) -> tuple[int, int] | None:
    """The first tick T still to come with `T > t` and `T > w_p(e)`, and the pane of t.

    None where no tick is left whose window holds the event: it is counted, and in no window.
    """
    newest_ms = max(time_ms, watermark_ms)
    tick_ms = max(newest_ms - newest_ms % interval_ms, evaluated_ms) + interval_ms
    pane_ms = time_ms - time_ms % interval_ms
    return (tick_ms, pane_ms) if tick_ms <= pane_ms + lookback_ms else None
