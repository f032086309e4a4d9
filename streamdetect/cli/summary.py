"""The summary of a run as text."""

from __future__ import annotations

from collections.abc import Mapping

from streamdetect.service.summary import Summary


def summary_text(summary: Summary, *, stopped: bool = False) -> str:
    """A few lines: the verdicts on records, the alerts, and warnings."""
    rate = summary.consumed / max(summary.seconds, 0.001)
    lines = [f"{summary.consumed:,} records in {summary.seconds:.1f} s, {rate:,.0f} a second"]
    groups: tuple[tuple[str, int, dict[str, int]], ...] = (
        ("counted", summary.counted, {}),
        ("filtered", sum(summary.filtered.values()), summary.filtered),
        ("late", summary.late, {}),
        ("dead letters", sum(summary.dead_lettered.values()), summary.dead_lettered),
    )
    width = len(f"{summary.consumed:,}")
    for name, count, parts in groups:
        lines.append(f"  {name:<12} {count:>{width},}  {_parts(parts)}".rstrip())
    lines.append(f"  {'alerts':<12} {_parts(summary.alerts) or 'none'}")
    lines.append(f"  {'ticks':<12} {summary.ticks:,}, at most {summary.keys_peak:,} keys")
    return "\n".join(lines + _remarks(summary, stopped=stopped))


def _parts(counts: Mapping[str, int]) -> str:
    """Counts, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in ordered if count)


def _remarks(summary: Summary, *, stopped: bool) -> list[str]:
    remarks = []
    if stopped:
        remarks.append("Stopped before the end: the last windows were not evaluated.")
    if summary.suspect_leaps:
        remarks.append(
            f"{summary.suspect_leaps:,} partition{'s' if summary.suspect_leaps > 1 else ''} ended with records too far "
            "ahead to be believed (time.max_future_jump); check the clocks of their hosts."
        )
    if summary.evicted:
        remarks.append(
            f"{summary.evicted:,} keys were evicted to stay within limits.max_keys: alerts may be missing. "
            "Raise it, or read the events of fewer hosts."
        )
    return remarks
