"""The Python interface: `streamdetect.backtest`, for notebooks and scripts.

result = streamdetect.backtest("october/", vary={"min_connections_per_hour": [60, 90, 120]})
pandas.DataFrame(result.variants)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from streamdetect.config import NamedSettings, load_expectations, varied
from streamdetect.errors import UsageError
from streamdetect.findings.outcome import Outcome
from streamdetect.model import Alert
from streamdetect.report import dataframes, html, plain
from streamdetect.report.dataframes import TableRow
from streamdetect.service.bounded.backtest import MOST_NEAR, BacktestRequest, Baseline
from streamdetect.service.bounded.backtest import backtest as run
from streamdetect.sinks.atomic_file import packed_file
from streamdetect.sources.files import FileSource

AnyPath = str | os.PathLike[str]


class Backtest:
    """What a backtest found. Its tables are lists of flat dicts, which pandas and polars take as they are."""

    def __init__(self, outcome: Outcome, alerts: Sequence[bytes]) -> None:
        self.outcome = outcome
        """Everything, as objects (`streamdetect.findings.outcome`)."""
        self._alerts = alerts

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts of the base, as `replay` writes them."""
        return [json.loads(body) for body in self._alerts]

    @property
    def episodes(self) -> list[TableRow]:
        """Every episode of every variant; `variant` is `base` for the settings as they are."""
        return dataframes.episode_records(self.outcome)

    @property
    def variants(self) -> list[TableRow]:
        """One row for each set of settings, the base first."""
        return dataframes.variant_records(self.outcome)

    @property
    def near(self) -> list[TableRow]:
        """Keys without an episode in the base, the nearest first, with what each condition lacked."""
        return dataframes.near_records(self.outcome)

    @property
    def diff(self) -> list[TableRow]:
        """What differs: the base against what it was compared with, and each variant against the base."""
        return dataframes.diff_records(self.outcome)

    @property
    def expectations(self) -> list[TableRow]:
        """Each expectation under each variant."""
        return dataframes.verdict_records(self.outcome)

    @property
    def volumes(self) -> list[TableRow]:
        """Records by hour of event time and what became of them."""
        return dataframes.volume_records(self.outcome)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of `replay --summary-json`, for the base."""
        return dict(self.outcome.base.summary)

    def html(self) -> str:
        """The report as one HTML document that loads nothing."""
        return html.page(self.outcome)

    def report(self, path: AnyPath) -> None:
        """Write the report to a file. Raises SinkError when it cannot be written."""
        with packed_file(os.fspath(path)) as stream:
            stream.write(self.html().encode())

    def __repr__(self) -> str:
        return (
            f"<Backtest: {len(self.outcome.base.episodes)} episodes, {len(self.outcome.variants)} variants beside "
            f"the base, {self.summary['consumed']:,} records>"
        )

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return plain.markdown(self.outcome)


class _Kept:
    """An alert sink that keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def write(self, alerts: Sequence[Alert]) -> None:
        self.bodies += [alert.body for alert in alerts]

    def flush(self) -> None:
        """They are where they belong."""

    def close(self) -> None:
        """There is nothing to give back."""


def backtest(  # noqa: PLR0913 - what can be asked for, by name
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
    single settings of `config`, like `{"rules.0.min_duration_hours": 2}`. `vary` gives values to try, of a setting of
    every rule or of a path; several make every combination. `variants` and `against_config` are configuration files,
    `against` a file of earlier alerts, `expect` one of expectations. `progress` is called with the records so far.

    Raises UsageError, ConfigError, InputError; all are `streamdetect.errors.StreamdetectError`, and say what to do.
    """
    if against is not None and against_config is not None:
        raise UsageError("against and against_config exclude each other. Compare with one.")
    sets = [f"{name}={_text(value)}" for name, value in (settings or {}).items()]
    named = varied(
        None if config is None else os.fspath(config),
        sets,
        vary=[(name, _texts(name, values)) for name, values in (vary or {}).items()],
        files=[os.fspath(path) for path in variants],
        required_for="replay",
    )
    compared = Baseline()
    if against_config is not None:
        name = os.fspath(against_config)
        compared = Baseline(
            name, variants=[NamedSettings(name, {"file": name}, varied(name, sets)[0].settings)]
        )
    elif against is not None:
        compared = Baseline(os.fspath(against), path=os.fspath(against))
    expectations = None if expect is None else load_expectations(os.fspath(expect))
    chosen = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    _check(chosen, near, jobs)
    largest = max(one.settings.limits.max_record_bytes for one in [*named, *compared.variants])
    kept = _Kept()
    asked = BacktestRequest(named, compared, expectations, {named[0].name: kept}, jobs, near)
    with closing(FileSource([os.fspath(path) for path in chosen], max_record_bytes=largest)) as source:
        outcome = run(asked, source, size=source.progress()[1], progress=progress)
    if outcome.problem is not None:
        raise outcome.problem
    return Backtest(outcome, kept.bodies)


def _check(paths: Sequence[AnyPath], near: int, jobs: int | None) -> None:
    if not paths:
        raise UsageError("there is nothing to read. Name a file or a directory.")
    if not 0 <= near <= MOST_NEAR:
        raise UsageError(f"near is {near}; it must be 0 to {MOST_NEAR:,}.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be 1 or more, or None for as many as pay.")


def _texts(name: str, values: Iterable[object]) -> list[str]:
    """The values of one setting as texts."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(f"vary[{name!r}] must be a list of values to try, like [60, 90, 120].")
    return [_text(value) for value in values]


def _text(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except TypeError:
        raise UsageError(
            f"{value!r} is no value of a setting; give a number, a text, a list or a dict."
        ) from None
