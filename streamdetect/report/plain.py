"""An outcome as JSON for programs, as Markdown for a ticket, and its episodes as CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

from streamdetect import __version__
from streamdetect.detect.alerts import iso
from streamdetect.findings.outcome import Outcome
from streamdetect.report.dataframes import (
    EPISODE_COLUMNS,
    TableRow,
    diff_records,
    difference_records,
    episode_records,
    near_records,
    variant_records,
    verdict_records,
    volume_records,
)
from streamdetect.report.words import cut, destination_text, moment, number, shift, sound, visible

_MOST_ROWS = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SPECIAL = frozenset("\\`*_{}[]<>()#!|~$@:&")


def json_text(outcome: Outcome) -> str:
    """One JSON object with sorted keys. Equal outcomes give equal bytes, except `seconds`."""
    reading = outcome.reading
    document = {
        "version": __version__,
        "profile": outcome.settings.profile,
        "stopped": outcome.stopped,
        "seconds": outcome.seconds,
        "days": round(outcome.days, 6),
        "first_tick": _time(outcome.first_tick_ms),
        "last_tick": _time(outcome.last_tick_ms),
        "compared_with": None if outcome.compared_with is None else sound(outcome.compared_with),
        "remarks": [sound(remark) for remark in outcome.remarks],
        "read": {
            "inputs": [sound(name) for name in reading.inputs],
            "first": _time(reading.first_ms),
            "last": _time(reading.last_ms),
            "shapes": {sound(name): count for name, count in reading.shapes.items()},
            "summary": dict(outcome.base.summary),
            "volumes": volume_records(outcome),
        },
        "settings": outcome.settings.model_dump(
            mode="json", by_alias=True, include={"profile", "time", "rules"}
        ),
        "variants": [
            row | {"summary": dict(variant.summary)}
            for row, variant in zip(variant_records(outcome), [outcome.base, *outcome.variants], strict=True)
        ],
        "episodes": episode_records(outcome),
        "near": near_records(outcome),
        "diff": diff_records(outcome),
        "expectations": verdict_records(outcome),
    }
    return json.dumps(document, sort_keys=True, ensure_ascii=False, indent=1) + "\n"


def csv_text(outcome: Outcome) -> str:
    """Every episode of every variant, after a header; missing values are empty; line ends as in RFC 4180.

    A spreadsheet would run text that begins with = + - @ tab or carriage return as a formula, so it is prefixed with an
    apostrophe. For unchanged values use `json_text`.
    """
    rows = episode_records(outcome)
    text = io.StringIO()
    writer = csv.DictWriter(text, EPISODE_COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def markdown(outcome: Outcome) -> str:
    """Tables for a ticket or pull request. Values of events are in code spans, where nothing is markup."""
    parts = [
        *_head(outcome),
        *_variants(outcome),
        *_expectations(outcome),
        *_differences(outcome),
        *_episodes(outcome),
        *_near(outcome),
        *_read(outcome),
        f"streamdetect {__version__}; all times are UTC.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(outcome: Outcome) -> Iterable[str]:
    base = variant_records(outcome)[0]
    yield "# Backtest"
    if outcome.stopped:
        yield "**Partial: the run was stopped before the end of the input.**"
    reading = outcome.reading
    if reading.first_ms is not None and reading.last_ms is not None:
        yield f"Events from {moment(reading.first_ms)} to {moment(reading.last_ms)}."
    yield "\n".join(f"- {_prose(remark)}" for remark in outcome.remarks)
    yield _table(
        ("episodes", "hosts", "alerts", "alerts a day", "open at the end", "records read"),
        [
            [
                _plain(base[name])
                for name in ("episodes", "hosts", "alerts", "alerts_a_day", "open_at_the_end")
            ]
            + [number(outcome.base.summary.get("consumed", 0))]
        ],
    )


def _variants(outcome: Outcome) -> Iterable[str]:
    if not outcome.variants:
        return
    names = ("episodes", "hosts", "alerts", "alerts_a_day", "appeared", "gone", "moved")
    yield "## Variants"
    yield _table(
        ("variant", "changes", *(name.replace("_", " ") for name in names), "expectations failed"),
        [
            [
                _code(row["variant"]),
                _code(row["changes"]),
                *(_plain(row[name]) for name in names),
                _plain(row["expectations_failed"]),
            ]
            for row in variant_records(outcome)
        ],
    )


def _expectations(outcome: Outcome) -> Iterable[str]:
    rows = verdict_records(outcome)
    if rows:
        yield "## Expectations"
        yield from _cut_table(
            ("variant", "expectation", "kind", "result", "detail"),
            [
                [
                    _code(row["variant"]),
                    _code(row["name"]),
                    str(row["kind"]).replace("_", " "),
                    str(row["result"]),
                    _prose(str(row["detail"])),
                ]
                for row in rows
            ],
        )


def _differences(outcome: Outcome) -> Iterable[str]:
    if outcome.diff is None:
        return
    diff, against = outcome.diff, outcome.compared_with or ""
    yield f"## Against {_code(against)}"
    yield f"{number(len(diff.unchanged))} unchanged, {number(diff.outside)} outside the range that both evaluated."
    rows = list(difference_records(outcome.base.name, against, diff))
    if rows:
        yield from _cut_table(
            ("what", "destination", "process", "host", "before", "after", "opens"),
            [
                [
                    str(row["what"]).replace("_", " "),
                    _code(destination_text(_text(row["destination"]))),
                    _code(row["process"]),
                    _code(row["host"]),
                    _ends(row, "before"),
                    _ends(row, "after"),
                    "-" if row["by_seconds"] is None else shift(round(float(row["by_seconds"]) * 1000)),
                ]
                for row in rows
            ],
        )


def _ends(row: TableRow, side: str) -> str:
    if row[f"{side}_episode_id"] is None:
        return "-"
    end = (
        "open"
        if row[f"{side}_resolved"] is None
        else f"{row[f'{side}_resolved']} {_code(row[f'{side}_reason'])}"
    )
    return f"{row[f'{side}_opened'] or '?'} to {end}"


def _episodes(outcome: Outcome) -> Iterable[str]:
    rows = episode_records(outcome)[: len(outcome.base.episodes)]
    yield "## Episodes"
    if not rows:
        yield "None."
        return
    yield from _cut_table(
        ("opened", "resolved", "destination", "process", "host", "connections", "an hour", "hours", "alerts"),
        [
            [
                str(row["opened"] or "-"),
                "open" if row["resolved"] is None else f"{row['resolved']} {_code(row['reason'])}",
                _code(destination_text(_text(row["destination"]))),
                _code(row["process"]),
                _code(row["host"]),
                _plain(row["count_connections"]),
                _plain(row["number_of_con_per_hour"]),
                _plain(row["duration_hours"]),
                _plain(row["alerts"]),
            ]
            for row in rows
        ],
    )


def _near(outcome: Outcome) -> Iterable[str]:
    rows = near_records(outcome)
    if not rows:
        return
    yield "## Near misses"
    names = ("rate", "duration", "hosts", "processes")
    yield from _cut_table(
        ("destination", "process", "host", "nearest at", "lacked"),
        [
            [
                _code(destination_text(_text(row["destination"]))),
                _code(row["process"]),
                _code(row["host"]),
                str(row["nearest_at"]),
                "; ".join(lack for name in names if (lack := _text(row[f"{name}_missing"]))) or "nothing",
            ]
            for row in rows
        ],
    )


def _read(outcome: Outcome) -> Iterable[str]:
    summary = outcome.base.summary
    rows = [["read", number(summary.get("consumed", 0))], ["counted", number(summary.get("counted", 0))]]
    rows += _reasons("filtered", summary.get("filtered", {}))
    rows += [["late", number(summary.get("late", 0))]]
    rows += _reasons("refused", summary.get("dead_lettered", {}))
    yield "## Input"
    yield _table(("records", "count"), rows)


def _reasons(what: str, counts: Mapping[str, int]) -> list[list[str]]:
    return [[f"{what}: {_code(reason)}", number(count)] for reason, count in sorted(counts.items())]


def _cut_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    yield _table(head, rows[:_MOST_ROWS])
    if len(rows) > _MOST_ROWS:
        yield f"and {number(len(rows) - _MOST_ROWS)} more"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: str | float | None) -> str:
    return "-" if value is None or isinstance(value, str) else number(value)


def _code(value: str | float | None) -> str:
    """A code span. A backtick would end it and a bar the cell, so both are written as code points."""
    text = "" if value is None else cut(visible(str(value)))
    text = text.replace("`", "⟨U+0060⟩").replace("|", "⟨U+007C⟩").strip()
    return f"`{text}`" if text else "-"


def _prose(text: str) -> str:
    """A sentence that may contain values: Markdown syntax is written as character references."""
    escaped = "".join(f"&#{ord(one)};" if one in _SPECIAL else one for one in visible(text))
    return escaped.replace("www.", "www&#46;")


def _text(value: str | float | None) -> str | None:
    return None if value is None else str(value)


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)
