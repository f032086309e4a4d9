"""The Python interface for bounded input: `streamdetect.replay` and `streamdetect.backtest`, for notebooks and scripts.

result = streamdetect.backtest("october/", vary={"min_connections_per_hour": [60, 90, 120]})
pandas.DataFrame(result.variants)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from streamdetect.config import NamedSettings, load_expectations, load_settings, varied
from streamdetect.errors import UsageError
from streamdetect.findings.outcome import Outcome
from streamdetect.model import Alert
from streamdetect.report import dataframes, html, plain
from streamdetect.report.dataframes import TableRow
from streamdetect.service.bounded.backtest import MOST_NEAR, BacktestRequest, Baseline
from streamdetect.service.bounded.backtest import backtest as run_backtest
from streamdetect.service.bounded.replay import run_replay
from streamdetect.service.summary import Summary
from streamdetect.sinks.atomic_file import atomic_file
from streamdetect.sinks.files import NullSink
from streamdetect.sources.files import FileSource

AnyPath = str | os.PathLike[str]


class Replay:
    """The result of `replay`: the alerts of a bounded input, and what became of its records."""

    def __init__(self, bodies: Sequence[bytes], summary: Summary) -> None:
        self.bodies = list(bodies)
        """The alerts as JSON text, byte for byte those of the command `streamdetect replay`."""
        self._summary = summary

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts as dicts (docs/reference.md, Alert)."""
        return [json.loads(body) for body in self.bodies]

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of `replay --summary-json`: consumed = counted + filtered + late + dead_lettered."""
        return self._summary.as_dict()

    def __repr__(self) -> str:
        return f"<Replay: {len(self.bodies)} alerts of {self._summary.consumed:,} records>"


class Backtest:
    """The result of `backtest`. Its tables are lists of flat dicts, ready for pandas and polars."""

    def __init__(self, outcome: Outcome, bodies: Sequence[bytes]) -> None:
        self.outcome = outcome
        """The whole result as objects (`streamdetect.findings.outcome`)."""
        self._bodies = bodies

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts of the base, as `replay` writes them."""
        return [json.loads(body) for body in self._bodies]

    @property
    def episodes(self) -> list[TableRow]:
        """Every episode of every variant; `variant` is `base` for the unchanged settings."""
        return dataframes.episode_records(self.outcome)

    @property
    def variants(self) -> list[TableRow]:
        """One row for each set of settings, the base first."""
        return dataframes.variant_records(self.outcome)

    @property
    def near(self) -> list[TableRow]:
        """Near misses: keys without an episode in the base, the closest first, with what each condition lacked."""
        return dataframes.near_records(self.outcome)

    @property
    def diff(self) -> list[TableRow]:
        """All differences: between the base and what it was compared with, and between each variant and the base."""
        return dataframes.diff_records(self.outcome)

    @property
    def expectations(self) -> list[TableRow]:
        """Each expectation under each variant."""
        return dataframes.verdict_records(self.outcome)

    @property
    def volumes(self) -> list[TableRow]:
        """Records by hour of event time and verdict."""
        return dataframes.volume_records(self.outcome)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of `replay --summary-json`, for the base."""
        return dict(self.outcome.base.summary)

    def html(self) -> str:
        """The report as one HTML document that loads nothing from elsewhere."""
        return html.page(self.outcome)

    def report(self, path: AnyPath) -> None:
        """Write the report to a file. Raises SinkError when it cannot be written."""
        with atomic_file(os.fspath(path)) as stream:
            stream.write(self.html().encode())

    def __repr__(self) -> str:
        return (
            f"<Backtest: {len(self.outcome.base.episodes)} episodes, {len(self.outcome.variants)} variants beside "
            f"the base, {self.summary['consumed']:,} records>"
        )

    def _repr_markdown_(self) -> str:
        """The representation in a notebook."""
        return plain.markdown(self.outcome)


class _MemorySink:
    """An alert sink that keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def write(self, alerts: Sequence[Alert]) -> None:
        self.bodies += [alert.body for alert in alerts]

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is open."""


def replay(
    paths: AnyPath | Iterable[AnyPath],
    *,
    config: AnyPath | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Replay:
    """Replay files with one configuration, as `streamdetect replay` does; refused records are only counted.

    `paths` are files or directories, each file a partition. `settings` override single settings of `config`, like
    `{"rules.0.min_duration_hours": 2}`. `progress` is called with the number of records so far.

    Raises UsageError, ConfigError, InputError; all are `streamdetect.StreamdetectError` and say what to do.
    """
    chosen = _chosen(paths)
    name = None if config is None else os.fspath(config)
    loaded = load_settings(name, _overrides(settings), required_for="replay")
    sink = _MemorySink()
    with closing(FileSource(chosen, max_record_bytes=loaded.limits.max_record_bytes)) as source:
        summary = run_replay(
            settings=loaded,
            source=source,
            alert_sink=sink,
            dead_letter_sink=NullSink(),
            progress=None if progress is None else lambda so_far: progress(so_far.consumed),
        )
    return Replay(sink.bodies, summary)


def backtest(  # noqa: PLR0913 - every option has a name
    paths: AnyPath | Iterable[AnyPath],
    *,
    config: AnyPath | None = None,
    settings: Mapping[str, object] | None = None,
    vary: Mapping[str, Iterable[object]] | None = None,
    variants: Iterable[AnyPath] = (),
    against: AnyPath | None = None,
    against_config: AnyPath | None = None,
    expect: AnyPath | None = None,
    near: int = 20,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Backtest:
    """Replay files once, and evaluate these settings and all variants of them.

    `paths` are files or directories as `streamdetect backtest` takes them, each file a partition. `settings` override
    single settings of `config`, like `{"rules.0.min_duration_hours": 2}`. `vary` gives values of a setting of every
    rule, or of a path; several give every combination. `variants` and `against_config` are configuration files,
    `against` a file of earlier alerts, `expect` a file of expectations. `near` is the number of near misses, `jobs`
    that of worker processes (None: as many as pay off). `progress` is called with the number of records so far.

    Raises UsageError, ConfigError, InputError; all are `streamdetect.StreamdetectError` and say what to do.
    """
    if against is not None and against_config is not None:
        raise UsageError("against and against_config exclude each other. Compare with one.")
    sets = _overrides(settings)
    named = varied(
        None if config is None else os.fspath(config),
        sets,
        vary=[(name, _texts(name, values)) for name, values in (vary or {}).items()],
        files=[os.fspath(path) for path in variants],
        required_for="replay",
    )
    baseline = Baseline()
    if against_config is not None:
        name = os.fspath(against_config)
        other = varied(name, sets)[0].settings
        baseline = Baseline(name, variants=[NamedSettings(name, {"file": name}, other)])
    elif against is not None:
        baseline = Baseline(os.fspath(against), path=os.fspath(against))
    expectations = None if expect is None else load_expectations(os.fspath(expect))
    chosen = _chosen(paths)
    _check(near, jobs)
    largest = max(one.settings.limits.max_record_bytes for one in [*named, *baseline.variants])
    sink = _MemorySink()
    request = BacktestRequest(named, baseline, expectations, {named[0].name: sink}, jobs, near)
    with closing(FileSource(chosen, max_record_bytes=largest)) as source:
        outcome = run_backtest(request, source, size=source.progress()[1], progress=progress)
    if outcome.problem is not None:
        raise outcome.problem
    return Backtest(outcome, sink.bodies)


def _chosen(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    chosen = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not chosen:
        raise UsageError("there is nothing to read. Name a file or a directory.")
    return [os.fspath(path) for path in chosen]


def _overrides(settings: Mapping[str, object] | None) -> list[str]:
    """Overrides as `--set` takes them."""
    return [f"{name}={_text(value)}" for name, value in (settings or {}).items()]


def _check(near: int, jobs: int | None) -> None:
    if not 0 <= near <= MOST_NEAR:
        raise UsageError(f"near is {near}; it must be 0 to {MOST_NEAR:,}.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be 1 or more, or None for as many as pay off.")


def _texts(name: str, values: Iterable[object]) -> list[str]:
    """The values of one setting as texts."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(f"vary[{name!r}] must be a list of values, like [60, 90, 120].")
    return [_text(value) for value in values]


def _text(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except TypeError:
        raise UsageError(
            f"{value!r} is not a value of a setting; give a number, a text, a list or a dict."
        ) from None
