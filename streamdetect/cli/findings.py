"""The findings of a backtest as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from streamdetect.cli.tables import table_text
from streamdetect.findings.outcome import Outcome
from streamdetect.report.dataframes import (
    TableRow,
    diff_records,
    episode_records,
    near_records,
    variant_records,
    verdict_records,
)
from streamdetect.report.words import shift, visible

MOST_ROWS = 50
"""Most rows of a table; the report and the other formats contain all rows."""


def findings_text(outcome: Outcome, console: Console | None = None) -> str:
    """All findings, the most important first."""
    console = console or Console()
    parts = [_stopped(outcome), _variants(outcome, console), _expected(outcome, console)]
    parts += [_differences(outcome, console), _episodes(outcome, console), _near(outcome, console)]
    parts += ["\n".join(f"Note: {visible(remark)}" for remark in outcome.remarks)]
    return "\n\n".join(part for part in parts if part)


def _stopped(outcome: Outcome) -> str:
    return (
        "PARTIAL: stopped before the end of the input; the last windows were not evaluated." * outcome.stopped
    )


def _variants(outcome: Outcome, console: Console) -> str:
    rows = [row | {"alerts_a_day": _rounded(row["alerts_a_day"])} for row in variant_records(outcome)]
    compared = ["appeared", "gone", "moved"] if outcome.variants else []
    expected = ["expectations_held", "expectations_failed"] if outcome.verdicts else []
    names = [
        "variant",
        "episodes",
        "hosts",
        "alerts",
        "alerts_a_day",
        "open_at_the_end",
        *compared,
        *expected,
    ]
    return _table("Variants", names, rows, console)


def _rounded(value: object) -> str | None:
    return f"{value:,.1f}" if isinstance(value, (int, float)) else None


def _expected(outcome: Outcome, console: Console) -> str:
    if not outcome.verdicts:
        return ""
    rows = [row for row in verdict_records(outcome) if row["variant"] == outcome.base.name]
    return _table("Expectations", ["result", "kind", "name", "detail"], rows, console)


def _differences(outcome: Outcome, console: Console) -> str:
    """Differences from the baseline. The differences of variants are numbers in their table."""
    if outcome.diff is None:
        return ""
    diff = outcome.diff
    rows = [
        row | {"opens": _shift(row["by_seconds"])}
        for row in diff_records(outcome)
        if row["variant"] == outcome.base.name
    ]
    head = f"Against {visible(outcome.compared_with or '')}: {len(diff.unchanged)} unchanged" + (
        f", {diff.outside} outside the evaluated time" if diff.outside else ""
    )
    if not rows:
        return f"{head}, no difference"
    names = ["what", "process", "destination", "host", "before_opened", "after_opened", "opens"]
    return _table(head, names, rows, console)


def _episodes(outcome: Outcome, console: Console) -> str:
    rows = [row for row in episode_records(outcome) if row["variant"] == outcome.base.name]
    names = [
        *("opened", "resolved", "reason", "process", "destination", "host"),
        *("number_of_con_per_hour", "duration_hours"),
    ]
    return _table("Episodes", names, rows, console)


def _near(outcome: Outcome, console: Console) -> str:
    if not outcome.near_limit:
        return ""
    rows = [row | {"lacked": _lacked(row)} for row in near_records(outcome)]
    names = ["nearness", "nearest_at", "process", "destination", "host", "lacked"]
    return _table("Near misses", names, rows, console)


def _shift(seconds: object) -> str | None:
    return shift(round(seconds * 1000)) if isinstance(seconds, (int, float)) else None


def _lacked(row: TableRow) -> str:
    missing = [value for name, value in row.items() if name.endswith("_missing") and value is not None]
    return "; ".join(map(str, missing))


def _table(title: str, names: Sequence[str], rows: Sequence[TableRow], console: Console) -> str:
    shown = [[row[name] for name in names] for row in rows[:MOST_ROWS]]
    text = table_text(title, [_heading(name) for name in names], shown, console)
    left = len(rows) - MOST_ROWS
    return f"{text}\n({left:,} more; see --report or --format)" if left > 0 else text


def _heading(name: str) -> str:
    known = {"number_of_con_per_hour": "an hour", "duration_hours": "hours", "open_at_the_end": "open"}
    return known.get(name, name.replace("_", " "))
