"""A complete backtest: variants, a comparison with a baseline, expectations, and remarks on the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from streamdetect.config import Expectations, NamedSettings, Settings, format_duration
from streamdetect.errors import InputError
from streamdetect.findings.diff import diff
from streamdetect.findings.episodes import Episode, Episodes, NotAnAlertError
from streamdetect.findings.expectations import check_expectations
from streamdetect.findings.outcome import Outcome, Variant
from streamdetect.service.bounded.parallel_replay import jobs_for
from streamdetect.service.bounded.variant_replay import ReplayOptions, run_backtest
from streamdetect.sinks import AlertSink
from streamdetect.sources import Source
from streamdetect.sources.files import FileSource

MOST_NEAR = 1_000
"""Most near misses that may be requested."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the base is compared with: alerts in a file or a topic, or other settings."""

    name: str = ""
    path: str | None = None
    topic: str | None = None
    variants: Sequence[NamedSettings] = ()


@dataclass(frozen=True, slots=True)
class BacktestRequest:
    """`variants[0]` is the base. `sinks` receive the alerts of variants by name. `jobs` None: see `jobs_for`."""

    variants: Sequence[NamedSettings]
    against: Baseline = field(default_factory=Baseline)
    expectations: Expectations | None = None
    sinks: Mapping[str, AlertSink] = field(default_factory=dict)
    jobs: int | None = None
    near: int = 20


def backtest(
    request: BacktestRequest,
    source: Source,
    *,
    size: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run a backtest. `size` is the size of the input in bytes, if known.

    Raises what the source and the sinks raise; InputError or KafkaError for earlier alerts that cannot be read.
    """
    against, expectations = request.against, request.expectations
    before = _earlier_episodes(against, request.variants[0].settings)
    outcome = run_backtest(
        variants=[*request.variants, *against.variants],
        source=source,
        sinks=request.sinks,
        progress=progress,
        stop=stop,
        options=ReplayOptions(jobs=jobs_for(request.jobs, source, size), near=request.near),
    )
    if against.variants:
        *others, other = outcome.variants
        outcome.variants, before = others, list(other.episodes)
    _compare(outcome, against, before)
    if expectations is not None:
        for variant in (outcome.base, *outcome.variants):
            variant.verdicts = check_expectations(expectations, variant.episodes, stopped=outcome.stopped)
        outcome.verdicts = outcome.base.verdicts
    outcome.remarks += _remarks(outcome)
    if before is not None:
        outcome.remarks += _comparison_remarks(before, against.name, outcome)
    if expectations is not None:
        outcome.remarks += _expectation_remarks(expectations, outcome.settings)
    return outcome


def _compare(outcome: Outcome, against: Baseline, before: Sequence[Episode] | None) -> None:
    if before is None:
        return
    evaluated = None
    if not against.variants:
        first_ms, last_ms = outcome.first_tick_ms, outcome.last_tick_ms
        evaluated = (first_ms or 0, last_ms or 0) if first_ms is not None else (0, -1)
    outcome.diff = diff(before, outcome.base.episodes, evaluated=evaluated)
    outcome.compared_with = against.name


def _earlier_episodes(against: Baseline, settings: Settings) -> list[Episode] | None:
    """The episodes of an earlier run, None if the baseline is not one."""
    if against.path is not None:
        return _episodes_in_file(against.path)
    if against.topic is not None:
        from streamdetect.sources.readback import alerts_in_topic  # noqa: PLC0415 - files need no Kafka client

        return _episodes(against.topic, alerts_in_topic(settings.kafka, against.topic, 0))
    return None


def _episodes_in_file(path: str) -> list[Episode]:
    source = FileSource([path], max_record_bytes=1 << 26)
    try:
        bodies: list[bytes] = []
        while not source.at_end():
            for batch in source.poll((), 500):
                bodies += [value for value in batch.values if value is not None]
    finally:
        source.close()
    return _episodes(path, bodies)


def _episodes(name: str, bodies: Iterable[bytes]) -> list[Episode]:
    episodes = Episodes()
    for number, body in enumerate(bodies, start=1):
        try:
            episodes.take(body)
        except NotAnAlertError as problem:
            raise InputError(
                f"{name}, record {number}: {problem}. Name a file or topic of alerts that `replay` or `run` wrote."
            ) from None
    return episodes.listed()


def _remarks(outcome: Outcome) -> list[str]:
    """What may make the numbers misleading."""
    remarks = []
    if not outcome.base.summary["consumed"]:
        remarks.append("No record was read: the input is empty.")
    lookback = format_duration(outcome.settings.time.lookback_ms)
    first_ms = outcome.first_tick_ms
    if outcome.diff is not None and outcome.diff.gone and first_ms is not None:
        limit_ms = first_ms + outcome.settings.time.lookback_ms
        early = sum((episode.opened_ms or 0) < limit_ms for episode in outcome.diff.gone)
        if early:
            remarks.append(
                f"{early} of the episodes that are gone opened in the first {lookback} of this input, when its "
                "windows were still incomplete. If the other run began earlier, that alone may be the cause."
            )
    evicted = [variant.name for variant in _all(outcome) if variant.summary.get("evicted")]
    if evicted:
        remarks.append(
            f"limits.max_keys was exceeded ({', '.join(evicted[:5])}): alerts may be missing, and near misses are only "
            "those before the first eviction. Raise it, or read less input."
        )
    return remarks


def _comparison_remarks(before: Sequence[Episode], name: str, outcome: Outcome) -> list[str]:
    """Why a comparison may be meaningless."""
    if not before:
        return [f"{name} holds no alerts, so every episode has appeared."]
    theirs, ours = {episode.key.rule_id for episode in before}, {rule.id for rule in outcome.settings.rules}
    if theirs & ours:
        return []
    return [
        f"No alert in {name} belongs to a rule of this backtest (rules there: {', '.join(sorted(theirs)[:3])}; here: "
        f"{', '.join(sorted(ours)[:3])}), so no episode can be unchanged."
    ]


def _expectation_remarks(expectations: Expectations, settings: Settings) -> list[str]:
    """Expectations whose verdict does not depend on the input, which are probably typing errors."""
    rules = {name.lower() for rule in settings.enabled_rules() for name in (rule.id, rule.name)}
    entries = (*expectations.must_alert, *expectations.must_not_alert)
    patterns = [pattern for entry in entries for pattern in expectations.keys(entry)]
    unknown = sorted({p.rule for p in patterns if p.rule is not None and p.rule.lower() not in rules})
    starred = sorted(
        {
            text
            for p in patterns
            for text in (p.destination, p.process, p.host)
            if text and ("*" in text or "?" in text)
        }
    )
    remarks = [f"No enabled rule is called {rule!r}, which an expectation names." for rule in unknown]
    return remarks + [
        f"{text!r} in an expectation is compared literally: * and ? are not wildcards." for text in starred
    ]


def _all(outcome: Outcome) -> list[Variant]:
    return [outcome.base, *outcome.variants]
