"""Flat rows for data frames and other formats: one dict per row, the same keys in each row of a table.

Values are text, numbers, booleans and None for missing, nothing nested, so `pandas.DataFrame(rows)` and
`polars.DataFrame(rows)` accept them unchanged. Times are ISO 8601 text in UTC with milliseconds and `Z`
(`2026-03-02T04:00:00.000Z`, `detect.alerts.iso`): both libraries read it, it sorts as text, and years beyond 9999 fit.
Several values of one field are joined by commas. Lone surrogates, which UTF-8 cannot encode, are written as their code
points; nothing else is changed, so text must be escaped before it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from streamdetect.detect.alerts import figures_block, iso, thresholds_block
from streamdetect.detect.near_misses import MOST_SEEN, TrackedKey
from streamdetect.findings.diff import Diff
from streamdetect.findings.episodes import Episode, KeyName
from streamdetect.findings.expectations import Verdict
from streamdetect.findings.outcome import Outcome, Variant
from streamdetect.report.words import conditions, joined, share, sound

TableRow = dict[str, str | int | float | bool | None]

REFUSED = frozenset({"future_time"})
"""Verdicts of a volume that are dead letters."""

_FIGURES = (
    "count_connections",
    "duration_hours",
    "number_of_con_per_hour",
    "hosts",
    "count_unique_pids",
)
_THRESHOLDS = ("min_connections_per_hour", "min_duration_hours", "max_hosts", "max_processes")
EPISODE_COLUMNS = (
    *("variant", "episode_id", "rule", "destination", "process", "sensor", "rule_name", "severity"),
    *("host", "host_id", "user", "user_domain"),
    *("process_entity_id", "process_pid", "process_executable"),
    *("destination_ip", "destination_port", "destination_domain"),
    *("opened", "resolved", "reason", "first_alert", "last_alert", "alerts"),
    *(*_FIGURES, "first_seen", "last_seen"),
    *(f"last_{name}" for name in (*_FIGURES, "first_seen", "last_seen")),
    *_THRESHOLDS,
    "message",
)
"""Columns of `episode_records`, for a table without rows."""

_OTHER_ROOMS = ("kafka", "http", "alerts", "dead_letters", "checkpoint", "log")


def variants(outcome: Outcome) -> list[Variant]:
    """The base first, then the variants."""
    return [outcome.base, *outcome.variants]


def verdicts_of(outcome: Outcome, variant: Variant) -> Sequence[Verdict]:
    """The verdicts of a variant. The base's verdicts may be on the outcome instead."""
    return (outcome.verdicts or variant.verdicts) if variant is outcome.base else variant.verdicts


def shown_changes(changes: Mapping[str, str]) -> dict[str, str]:
    """Changed settings, path to value, without the values of settings that may be secrets or name machines."""
    return {
        path: "(not shown)" if path.split(".")[0] in _OTHER_ROOMS else value
        for path, value in sorted(changes.items())
    }


def alerts_of(variant: Variant) -> int:
    return sum(variant.summary.get("alerts", {}).values())


def episode_records(outcome: Outcome) -> list[TableRow]:
    """Every episode of every variant. Figures like `count_connections` are of its first alert, `last_…` of its last."""
    return [
        _sound({"variant": variant.name, **_episode(episode)})
        for variant in variants(outcome)
        for episode in variant.episodes
    ]


def _episode(episode: Episode) -> TableRow:
    host, user = episode.context.get("host", {}), episode.context.get("user", {})
    process, destination = episode.context.get("process", {}), episode.context.get("destination", {})
    port, pid = destination.get("port"), process.get("pid")
    return {
        "episode_id": episode.id,
        **_key(episode.key),
        "rule_name": episode.rule_name,
        "severity": episode.severity,
        "host": episode.host,
        "host_id": joined(host.get("id")),
        "user": joined(user.get("name")),
        "user_domain": joined(user.get("domain")),
        "process_entity_id": joined(process.get("entity_id")),
        "process_pid": pid if isinstance(pid, int) else None,
        "process_executable": joined(process.get("executable")),
        "destination_ip": joined(destination.get("ip")),
        "destination_port": port if isinstance(port, int) else None,
        "destination_domain": joined(destination.get("domain")),
        "opened": _time(episode.opened_ms),
        "resolved": _time(episode.resolved_ms),
        "reason": episode.reason,
        "first_alert": _time(episode.first_alert_ms),
        "last_alert": _time(episode.last_alert_ms),
        "alerts": episode.alerts,
        **_figures(episode.figures, ""),
        **_figures(episode.last_figures, "last_"),
        **{name: episode.thresholds.get(name) for name in _THRESHOLDS},
        "message": episode.message,
    }


def _figures(figures: Mapping[str, int], prefix: str) -> TableRow:
    found: TableRow = {f"{prefix}{name}": figures.get(name) for name in _FIGURES}
    found[f"{prefix}first_seen"] = _time(figures.get("first_seen_ms"))
    found[f"{prefix}last_seen"] = _time(figures.get("last_seen_ms"))
    return found


def variant_records(outcome: Outcome) -> list[TableRow]:
    """One row for each set of settings, the base first; the base has no differences against itself (None)."""
    rows = []
    for variant in variants(outcome):
        verdicts, diff, alerts = verdicts_of(outcome, variant), variant.diff, alerts_of(variant)
        changes = shown_changes(variant.changes)
        rows.append(
            _sound(
                {
                    "variant": variant.name,
                    "changes": ", ".join(f"{path}={value}" for path, value in changes.items()),
                    "episodes": len(variant.episodes),
                    "hosts": variant.hosts,
                    "alerts": alerts,
                    "alerts_a_day": round(alerts / outcome.days, 3) if outcome.days else None,
                    "open_at_the_end": sum(episode.resolved_ms is None for episode in variant.episodes),
                    "appeared": None if diff is None else len(diff.appeared),
                    "gone": None if diff is None else len(diff.gone),
                    "moved": None if diff is None else len(diff.moved),
                    "ended_otherwise": None if diff is None else len(diff.ended_otherwise),
                    "unchanged": None if diff is None else len(diff.unchanged),
                    "outside": None if diff is None else diff.outside,
                    "expectations_held": sum(verdict.holds is True for verdict in verdicts),
                    "expectations_failed": sum(verdict.holds is False for verdict in verdicts),
                    "expectations_undecided": sum(verdict.holds is None for verdict in verdicts),
                }
            )
        )
    return rows


def near_records(outcome: Outcome) -> list[TableRow]:
    """Near misses of the base, the closest first: each condition, and what it lacked."""
    return [_sound(_near(tracked)) for tracked in outcome.near]


def _near(tracked: TrackedKey) -> TableRow:
    point, context = tracked.closest, tracked.context
    row: TableRow = {
        **_key(KeyName(tracked.rule.id, *tracked.key)),
        "rule_name": tracked.rule.name,
        "host": joined(context.host_name or context.host_id),
        "host_id": joined(context.host_id),
        "nearest_at": iso(point.tick_ms),
        "nearness": share(tracked.closeness.score, 6),
        "objection": point.failed,
        **_figures(figures_block(point.figures), ""),
    }
    for condition in conditions(
        figures_block(point.figures), thresholds_block(tracked.rule.limits), MOST_SEEN
    ):
        row |= {
            f"{condition.name}_value": condition.value,
            f"{condition.name}_threshold": condition.threshold,
            f"{condition.name}_holds": condition.holds,
            f"{condition.name}_missing": condition.missing,
        }
    return row


def diff_records(outcome: Outcome) -> list[TableRow]:
    """All differences: the base against `compared_with`, then each variant against the base; no unchanged episodes.

    `before_…` is None for an episode that appeared, `after_…` for one that is gone; `by_seconds` is how much later it
    opens now.
    """
    rows: list[TableRow] = []
    if outcome.diff is not None:
        rows += difference_records(outcome.base.name, outcome.compared_with or "", outcome.diff)
    for variant in outcome.variants:
        if variant.diff is not None:
            rows += difference_records(variant.name, outcome.base.name, variant.diff)
    return rows


def difference_records(variant: str, against: str, diff: Diff) -> Iterator[TableRow]:
    """The rows of one diff; `variant` is its `after` side."""
    pairs: list[tuple[str, Episode | None, Episode | None]] = [
        *(("appeared", None, episode) for episode in diff.appeared),
        *(("gone", episode, None) for episode in diff.gone),
        *(("moved", moved.before, moved.after) for moved in diff.moved),
        *(("ended_otherwise", ended.before, ended.after) for ended in diff.ended_otherwise),
    ]
    for what, before, after in pairs:
        shown = after or before
        assert shown is not None  # noqa: S101 - each pair has one of the two
        yield _sound(
            {
                "variant": variant,
                "against": against,
                "what": what,
                **_key(shown.key),
                "host": shown.host,
                "by_seconds": _later(before, after) if what == "moved" else None,
                **_side("before", before),
                **_side("after", after),
            }
        )


def _later(before: Episode | None, after: Episode | None) -> float | None:
    if before is None or after is None or before.opened_ms is None or after.opened_ms is None:
        return None
    return (after.opened_ms - before.opened_ms) / 1000


def _side(prefix: str, episode: Episode | None) -> TableRow:
    return {
        f"{prefix}_episode_id": None if episode is None else episode.id,
        f"{prefix}_opened": None if episode is None else _time(episode.opened_ms),
        f"{prefix}_resolved": None if episode is None else _time(episode.resolved_ms),
        f"{prefix}_reason": None if episode is None else episode.reason,
    }


def verdict_records(outcome: Outcome) -> list[TableRow]:
    """Every expectation under every variant: `held`, `failed` or `undecided`."""
    return [
        _sound(
            {
                "variant": variant.name,
                "name": verdict.name,
                "kind": verdict.kind,
                "result": result_of(verdict),
                "detail": verdict.detail,
            }
        )
        for variant in variants(outcome)
        for verdict in verdicts_of(outcome, variant)
    ]


def result_of(verdict: Verdict) -> str:
    return "undecided" if verdict.holds is None else "held" if verdict.holds else "failed"


def volume_records(outcome: Outcome) -> list[TableRow]:
    """One row for each hour of event time and verdict. `outcome` is counted, filtered, late or refused.

    `reason` says why a record was filtered or refused.
    """
    return [
        _sound(
            {
                "start": iso(volume.start_ms),
                "outcome": (kind := fate(verdict)),
                "reason": verdict if kind in ("filtered", "refused") else None,
                "records": records,
            }
        )
        for volume in outcome.reading.volumes
        for verdict, records in sorted(volume.by_verdict.items())
    ]


def fate(verdict: str) -> str:
    """The group of a verdict: counted, filtered, late or refused."""
    if verdict in ("counted", "late"):
        return verdict
    return "refused" if verdict in REFUSED else "filtered"


def _key(key: KeyName) -> TableRow:
    return {
        "rule": key.rule_id,
        "destination": key.address,
        "process": key.process,
        "sensor": key.sensor,
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)


def _sound(row: TableRow) -> TableRow:
    return {name: sound(value) if isinstance(value, str) else value for name, value in row.items()}
