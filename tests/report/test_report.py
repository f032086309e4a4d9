"""The report: its content, that no value can become markup, and that a real browser renders it without violations."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from outcomes import DAY_MS, HARMLESS, HOUR_MS, PANE_MS, START_MS, Texts, outcome

from streamdetect.config import Settings
from streamdetect.detect.alerts import figures_block
from streamdetect.detect.conditions import Figures
from streamdetect.detect.near_misses import MOST_SEEN, Point
from streamdetect.findings.diff import Diff
from streamdetect.findings.outcome import InputSummary, Outcome, Variant, Volume
from streamdetect.report.comparisons import MOST_BARS, variant_figures
from streamdetect.report.dataframes import (
    EPISODE_COLUMNS,
    diff_records,
    episode_records,
    near_records,
    variant_records,
    verdict_records,
    volume_records,
)
from streamdetect.report.html import key_page, page
from streamdetect.report.plain import csv_text, json_text, markdown
from streamdetect.report.plot_data import (
    gaps_between,
    gaps_of,
    number_marks,
    pane_rows,
    span_marks,
    steps,
    thinned,
    time_marks,
    volumes_of,
)
from streamdetect.report.plots import fitting, gaps_plot
from streamdetect.report.views import MOST_PLOTTED, page_view
from streamdetect.report.words import ConditionText, conditions, exact, moment, share, span, visible
from tools import need

VOID = {"meta", "link", "br", "img", "input", "hr"}
BROWSER = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"),
)
HOSTILE = (
    "\u202e<script src=http://beacon.test/a.js>alert(1)</script>\"'$]]>--> &lt;\n| `x` [a](http://beacon.test/b) "
    "<img src=http://beacon.test/c onerror=alert(1)> www.beacon.test "
    "\ud800\x00\ufffe\u2028a\u0301\u0302\u0303\u0304 {{ 7*7 }} "
)
LONG = HOSTILE + "A" * 1_000
HOSTILE_TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("<>&\"'`|\\=$]{}%\n\r\t\u202e\ud800"), max_size=40
)
# An outcome is large: shrinking one would take minutes.
QUICK = hypothesis_settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SECRETS = ("never-shown", "of-nobody", "127.0.0.9")


@dataclass
class Document(HTMLParser):
    """Tags, attributes and texts of a page, with the markup problems found while parsing."""

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, text: str) -> Document:
        found = cls()
        found.feed(text)
        found.close()
        found.problems += [f"<{tag}> is never closed" for tag in found.opened]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if len({name for name, _ in attrs}) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.texts.append(" ")
        if not self.opened or self.opened.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.problems.append(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        self.problems.append(f"a declaration: {data}")

    def handle_pi(self, data: str) -> None:
        self.problems.append(f"an instruction: {data}")

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]

    @property
    def names(self) -> set[tuple[str, str]]:
        return {(tag, name) for tag, name, _ in self.attributes}

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def small_outcome(texts: Texts = HARMLESS) -> Outcome:
    """One of each element: quick to render."""
    return outcome(texts, episodes=1, variants=1, near=1, hours=3)


def empty_outcome() -> Outcome:
    """A run over files without records."""
    settings = Settings()
    base = Variant("base", {}, settings, {}, [])
    return Outcome(
        settings=settings,
        reading=InputSummary((), None, None, {}, []),
        base=base,
        variants=[],
        near=[],
        tracked_keys={},
        first_tick_ms=None,
        last_tick_ms=None,
        seconds=0.0,
    )


@pytest.fixture(scope="module")
def harmless() -> Document:
    """The page of an ordinary outcome; one host has a long name, so the attributes include a title."""
    return Document.of(page(outcome(replace(HARMLESS, host="W" * 100, remark="R" * 600))))


def assert_harmless(found: Document, known: Document) -> None:
    """Only tags and attributes that the harmless page has too, and nothing that would load a resource."""
    assert found.problems == []
    assert found.tags.keys() <= known.tags.keys()
    assert found.names <= known.names
    assert not {
        name for _, name in found.names if name.startswith("on") or name in ("src", "style", "srcset")
    }
    assert all(value.startswith("#") or value == "data:," for value in found.values("href"))


# -- the page


def test_the_page_is_well_formed_and_its_links_resolve(harmless: Document) -> None:
    """Tags are balanced, ids are unique, and every link targets an id of the page."""
    assert harmless.problems == []
    ids = harmless.values("id")
    assert len(ids) == len(set(ids))
    links = {href for href in harmless.values("href") if href != "data:,"}
    assert len(links) > 5
    assert links <= {f"#{name}" for name in ids}


def test_the_page_loads_and_runs_nothing(harmless: Document) -> None:
    """No script, no address to load, and a policy that allows the single style sheet by its hash."""
    assert_harmless(harmless, harmless)
    assert "script" not in harmless.tags
    assert harmless.tags["style"] == 1
    text = page(outcome())
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|expression|http", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = policy[1].replace("&#39;", "'")
    assert rules.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    assert "unsafe" not in rules


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, HOSTILE_TEXT)))
@example(Texts.all(LONG))
@example(Texts.all(""))
@example(Texts.all("-->"))
def test_no_value_becomes_markup(harmless: Document, texts: Texts) -> None:
    """With any values in the events, tags and attributes are those of a harmless page."""
    found = Document.of(page(small_outcome(texts)))
    assert_harmless(found, harmless)


def test_invisible_characters_are_escaped() -> None:
    """Bidi controls, zero-width characters, controls and surrogates appear as code points only."""
    text = page(small_outcome(Texts.all(HOSTILE)))
    assert "⟨U+202E⟩" in text
    hidden = {
        char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }
    assert hidden == {"\n"}
    text.encode()


def test_long_values_are_cut_and_complete_in_the_title() -> None:
    """A name of 1,000 characters is cut to 80; the title attribute has all of it."""
    found = Document.of(page(small_outcome(replace(HARMLESS, user="H" * 1_000, domain=""))))
    assert "H" * 80 + "…" in found.text
    assert "H" * 81 not in found.text
    assert "H" * 1_000 in found.values("title")


def test_every_number_of_the_alerts_is_shown() -> None:
    """Figures, thresholds, times and pane counts of an episode are in its section."""
    whole = page(outcome())
    for episode in outcome().base.episodes:
        section = whole.partition(f'<article id="e-{episode.id}">')[2].partition("</article>")[0]
        text = Document.of(section).text
        for figures in (episode.figures, episode.last_figures):
            for condition in conditions(figures, episode.thresholds):
                assert condition.sentence in text
        assert episode.opened_ms is not None
        assert moment(episode.opened_ms) in text
        for start_ms, events in (episode.panes or {}).items():
            row_ms = start_ms - start_ms % (12 * PANE_MS)
            cells = re.search(rf"counts by pane.*? {moment(row_ms)}((?: [\d,]+)+)", text)
            assert cells is not None
            assert f"{events}" in cells[1].split()


def test_the_arithmetic_is_in_words() -> None:
    """524 // 4 = 131; 12,599.999 s is 1 ms short of 3 h 30 min and rounds to 3 h."""
    figures = {
        "count_connections": 524,
        "duration_hours": 4,
        "number_of_con_per_hour": 131,
        "hosts": 1,
        "count_unique_pids": 2,
        "first_seen_ms": START_MS,
        "last_seen_ms": START_MS + 12_600_000,
    }
    limits = {"min_connections_per_hour": 120, "min_duration_hours": 4, "max_hosts": 1, "max_processes": 1}
    rate, duration, hosts, processes = conditions(figures, limits)
    assert rate.sentence == "524 connections // 4 h = 131 an hour, at least 120"
    assert duration.sentence == (
        "2026-03-02T00:00:00.000Z to 2026-03-02T03:30:00.000Z is 12,600.000 s, rounded 4 h, at least 4"
    )
    assert hosts.sentence == "1 host (allowed: 1)"
    assert processes.sentence == "at least 2 process instances (allowed: 1)"
    assert [condition.holds for condition in (rate, duration, hosts, processes)] == [True, True, True, False]
    short = figures | {"duration_hours": 3, "last_seen_ms": START_MS + 12_599_999, "count_connections": 300}
    rate, duration, *_ = conditions(short | {"number_of_con_per_hour": 100}, limits)
    assert duration.missing == "1 ms more from the first to the last event"
    assert rate.missing == "60 connections more at 3 h"  # 120 * 3 - 300


@pytest.mark.parametrize(
    ("hosts", "limit", "expected"),
    [
        (2, 1, "at most 1 host, seen 2"),
        (MOST_SEEN, 1, f"at most 1 host, seen {MOST_SEEN}"),
        (MOST_SEEN + 1, 1, f"at most 1 host, seen at least {MOST_SEEN + 1}"),
        (MOST_SEEN + 1, MOST_SEEN + 1, None),
        (MOST_SEEN + 2, MOST_SEEN + 1, f"at most {MOST_SEEN + 1} hosts, seen at least {MOST_SEEN + 2}"),
    ],
)
def test_host_counts_are_exact_up_to_a_limit(hosts: int, limit: int, expected: str | None) -> None:
    """Exact up to MOST_SEEN, or to the limit where that is higher; above that, "at least"."""
    limits = {"min_connections_per_hour": 1, "min_duration_hours": 1, "max_hosts": limit, "max_processes": 1}
    found = {condition.name: condition for condition in conditions({"hosts": hosts}, limits, MOST_SEEN)}
    assert found["hosts"].missing == expected


def milliseconds(text: str) -> Fraction:
    """The duration of a text such as `3 h 5 min 0.5 s`."""
    units = {"ms": 1, "s": 1_000, "min": 60_000, "h": HOUR_MS, "d": DAY_MS}
    words = text.split(" ")
    return sum(
        (Fraction(count) * units[unit] for count, unit in zip(words[::2], words[1::2], strict=True)),
        Fraction(),
    )


@given(st.integers(1, 48), st.integers(0, 48 * HOUR_MS))
@example(4, 10_790_000)
def test_the_missing_duration_is_exact(hours: int, width_ms: int) -> None:
    """With the missing time the span rounds up to the threshold; with 1 ms less it does not."""
    limits = {"min_connections_per_hour": 1, "min_duration_hours": hours, "max_hosts": 1, "max_processes": 1}

    def duration(duration_ms: int) -> ConditionText:
        seen = Figures(9, START_MS, START_MS + duration_ms, 1, 1)
        return conditions(figures_block(seen), limits)[1]

    missing = duration(width_ms).missing
    if missing is not None:
        missing_ms = milliseconds(missing.removesuffix(" more from the first to the last event"))
        assert missing_ms == int(missing_ms)
        assert duration(width_ms + int(missing_ms)).holds
        assert not duration(width_ms + int(missing_ms) - 1).holds


def test_exact_durations_and_shares_by_hand() -> None:
    """4 h need 3 h 30 min: 12,600 s - 10,790 s = 1,810 s. A share of 0.9999999 is not rounded up to 1."""
    assert exact(1_810_000) == "30 min 10 s"
    expected = {340: "340 ms", 27_500: "27.5 s", 300_002: "5 min 0.002 s", HOUR_MS: "1 h", 0: "0 ms"}
    expected |= {90 * 60_000: "1 h 30 min", 2 * DAY_MS + HOUR_MS: "2 d 1 h", 47 * HOUR_MS + 1: "47 h 0.001 s"}
    assert {ms: exact(ms) for ms in expected} == expected
    assert (share(0.9999999, 6), share(0.999, 2), share(1.0, 6)) == (0.999999, 0.99, 1.0)
    assert share(0.84375, 6) == 0.84375


def grid(count: int, **settings: int) -> list[Variant]:
    """Variants of `--vary`: a first setting with `count` values, the others fixed."""
    base = outcome(episodes=1, variants=0, near=0).base
    found = []
    for number in range(count):
        changes = {"min_connections_per_hour": f"{60 + number}", **{k: f"{v}" for k, v in settings.items()}}
        name = " ".join(f"{path}={value}" for path, value in changes.items())
        found.append(replace(base, name=name, changes=changes, diff=Diff()))
    return found


def bars_of(result: Outcome) -> tuple[str, list[str]]:
    """Caption and labels of the first plot of variants."""
    figure = variant_figures(result)[0]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.plot)
    return figure.caption, texts


def test_bar_labels_show_the_differences() -> None:
    """Shared settings of a grid are named once in the caption, their values next to the bars; files have names."""
    result = outcome(episodes=1, variants=0, near=0)
    result.variants = [
        *grid(2, max_hosts=1),
        replace(result.base, name="new.yaml", changes={"file": "new.yaml"}),
    ]
    caption, labels = bars_of(result)
    assert caption == "Episodes by min_connections_per_hour · max_hosts"
    assert {"base", "60 · 1", "61 · 1", "new.yaml"} <= set(labels)
    other = replace(result.base, name="max_hosts=2", changes={"max_hosts": "2"}, diff=Diff())
    result.variants = [*grid(2, max_hosts=1), other]  # not a grid: full names
    caption, labels = bars_of(result)
    assert caption == "Episodes"
    assert "max_hosts=2" in labels


def test_a_thousand_variants_are_in_the_table() -> None:
    """1,001 with the base: 60 have a bar, and the caption says that 941 do not."""
    result = outcome(episodes=1, variants=0, near=0)
    result.variants = grid(1_000)
    caption, labels = bars_of(result)
    assert MOST_BARS == 60
    assert caption.endswith("; the first 60 variants, 941 more are only in the table")
    assert {"60", "118"} <= set(labels)  # 59 variants besides the base: 60 to 118
    assert "119" not in labels
    assert "min_connections_per_hour=1059" in Document.of(page(result)).text


@given(st.lists(st.text("ab漢=_. ", min_size=1, max_size=60), max_size=30, unique=True))
@example(["min_connections_per_hour=60 max_hosts=1", "min_connections_per_hour=60 max_hosts=2"])
@example([f"{'a' * 30}{middle}{'z' * 30}" for middle in "bcd"])
def test_bar_labels_are_distinct(names: list[str]) -> None:
    """However long and similar the names are, each bar has its own label, which fits next to it."""
    labels = fitting(names)
    assert len(set(labels)) == len(names)
    assert all(len(label) <= 23 for label in labels)


def test_many_episodes_stay_readable() -> None:
    """50 have a section, 950 a row, and the page gives the number of the rest; links to rows work too."""
    found = Document.of(page(outcome(episodes=1_203, variants=0, near=0)))
    assert found.problems == []
    sections = [value for tag, name, value in found.attributes if (tag, name) == ("article", "id")]
    rows = [value for tag, name, value in found.attributes if (tag, name) == ("tr", "id")]
    assert (len(sections), len(rows)) == (MOST_PLOTTED, 1_000 - MOST_PLOTTED)
    assert "and 203 more episodes" in found.text
    assert "The first 50 by opening" in found.text
    assert {href for href in found.values("href") if href.startswith("#e-")} <= {
        f"#{name}" for name in found.values("id")
    }


def test_a_large_report_stays_small() -> None:
    """50 plotted episodes and 40 variants take less than 3 MB."""
    assert len(page(outcome(episodes=60, variants=40, near=25, hours=24 * 40))) < 3_000_000


def test_a_partial_run_is_marked() -> None:
    """Every human-readable format, and JSON, marks a run that was stopped early."""
    assert "Partial: the run was stopped" in Document.of(page(outcome(stopped=True))).text
    assert "Partial" not in Document.of(page(outcome())).text
    assert "**Partial" in markdown(outcome(stopped=True))
    assert json.loads(json_text(outcome(stopped=True)))["stopped"] is True


def test_an_empty_run_has_a_report() -> None:
    """Without records or findings, every format is still valid."""
    found = Document.of(page(empty_outcome()))
    assert found.problems == []
    assert "None." in found.text
    assert csv_text(empty_outcome()).splitlines() == [",".join(EPISODE_COLUMNS)]
    assert json.loads(json_text(empty_outcome()))["episodes"] == []
    assert "None." in markdown(empty_outcome())


def test_episodes_without_a_timeline_or_an_opening() -> None:
    """A timeline that was not kept is not plotted, and a missing opening is stated."""
    result = outcome(episodes=1, variants=0, near=0, plain=True)
    episode = result.base.episodes[0]
    bare = replace(
        result,
        tracked_keys={},
        base=replace(result.base, episodes=[replace(episode, panes=None, opened_ms=None)]),
    )
    text = Document.of(page(bare)).text
    assert "Its timeline was not kept" in text
    assert "Its opening alert is not among the alerts" in text
    panes_only = page(replace(result, tracked_keys={}))
    assert panes_only.count("<svg") == 2  # events in each pane, and what was read
    assert page(result).count("<svg") == 5  # and rate, hours, gaps


def test_reasons_are_in_words() -> None:
    """The end of an episode is explained in words, followed by the alert's reason code."""
    text = Document.of(page(small_outcome(replace(HARMLESS, reason="second_host")))).text
    assert "more hosts than the rule allows had contacted it (second_host)." in text


def test_the_same_outcome_gives_the_same_bytes() -> None:
    """A report contains no clock time, randomness or memory address."""
    for render in (page, markdown, csv_text, json_text):
        assert render(outcome()) == render(outcome())


def test_plots_have_captions_and_labels(harmless: Document) -> None:
    """Each plot has a caption, and a label for screen readers."""
    labels = [value for tag, name, value in harmless.attributes if (tag, name) == ("svg", "aria-label")]
    assert harmless.tags["svg"] == harmless.tags["figcaption"] == len(labels)
    assert all(labels)
    assert harmless.values("role").count("img") == len(labels)


def test_unrelated_settings_are_not_shown() -> None:
    """Brokers, users and passwords are in no format, even when a variant changed them."""
    for render in (page, markdown, csv_text, json_text):
        text = render(outcome())
        assert not [secret for secret in SECRETS if secret in text], render
    assert "(not shown)" in json_text(outcome())


def test_the_page_of_a_key() -> None:
    """The timeline alone, for `explain --report`, with a hostile title."""
    result = outcome()
    tracked_keys = [*result.near, *result.tracked_keys.values()]
    text = key_page(HOSTILE, tracked_keys, PANE_MS)
    found = Document.of(text)
    assert_harmless(found, Document.of(page(outcome(replace(HARMLESS, host="W" * 100)))))
    assert found.tags["article"] == len(tracked_keys)
    assert "All four conditions held at" in found.text
    assert "Closest at" in found.text
    assert "No key was tracked." in Document.of(key_page("x", [], PANE_MS)).text


# -- records and the text formats


def tables(result: Outcome) -> dict[str, list[dict[str, Any]]]:
    makers = (episode_records, variant_records, near_records, diff_records, verdict_records, volume_records)
    return {make.__name__: list(make(result)) for make in makers}


def test_records_are_flat() -> None:
    """Each row has the same keys, and only text, numbers, booleans and None as values."""
    for name, rows in tables(outcome()).items():
        assert rows, name
        assert len({tuple(row) for row in rows}) == 1, name
        assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}
    assert tuple(episode_records(outcome())[0]) == EPISODE_COLUMNS


def test_records_match_the_outcome() -> None:
    """One outcome by hand: 3 episodes, 5 in the two variants, one difference of each kind."""
    result = outcome(episodes=3, variants=2)
    assert [row["variant"] for row in episode_records(result)] == ["base"] * 3 + ["rate 60 0"] * 3 + [
        "rate 60 1"
    ] * 2
    base, same, fewer = variant_records(result)
    assert (base["gone"], same["gone"], fewer["gone"]) == (None, 0, 1)
    assert base["alerts"] == 7  # 3 opened, 2 resolved, 2 updated
    assert base["alerts_a_day"] == 7.0  # 288 ticks of 5 min
    assert [base[f"expectations_{what}"] for what in ("held", "failed", "undecided")] == [1, 1, 1]
    assert [row["what"] for row in diff_records(result)] == [
        "appeared",
        "gone",
        "moved",
        "ended_otherwise",
        "gone",
    ]
    moved = diff_records(result)[2]
    assert moved["by_seconds"] == 900.0  # 3 panes of 5 min
    near = near_records(result)[1]
    assert (near["hosts_value"], near["hosts_threshold"], near["hosts_holds"]) == (2, 1, False)
    assert near["hosts_missing"] == "at most 1 host, seen 2"  # 2 <= MOST_SEEN, so they were counted
    hour = [row for row in volume_records(result) if row["start"] == "2026-03-02T00:00:00.000Z"]
    assert {(row["outcome"], row["reason"]) for row in hour} == {
        ("counted", None),
        ("late", None),
        ("filtered", "process.name"),
        ("filtered", "network.direction"),
        ("refused", "future_time"),
    }


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, HOSTILE_TEXT)))
@example(Texts.all(HOSTILE))
def test_csv_round_trips(texts: Texts) -> None:
    """A CSV parser returns the records, except for the apostrophe before text that looks like a formula."""
    result = small_outcome(texts)
    text = csv_text(result)
    text.encode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [
        {name: "" if value is None else formula_guarded(str(value)) for name, value in row.items()}
        for row in episode_records(result)
    ]
    assert rows == expected
    assert not [
        cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    ]


def formula_guarded(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and text else text


def test_formulas_are_guarded() -> None:
    """A spreadsheet shows a destination that looks like a formula without evaluating it."""
    text = csv_text(small_outcome(replace(HARMLESS, address='=HYPERLINK("http://beacon.test")', host="-1+1")))
    row = next(csv.DictReader(io.StringIO(text)))
    assert row["destination"] == '\'=HYPERLINK("http://beacon.test")'
    assert row["host"] == "'-1+1"


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, HOSTILE_TEXT)))
@example(Texts.all(HOSTILE))
def test_json_can_be_parsed(texts: Texts) -> None:
    """One UTF-8 object whose records equal the tables."""
    result = small_outcome(texts)
    found = json.loads(json_text(result).encode())
    assert found["episodes"] == episode_records(result)
    assert found["near"] == near_records(result)
    assert found["diff"] == diff_records(result)
    assert list(found) == sorted(found)


def test_only_the_seconds_of_json_vary() -> None:
    """Two runs over the same events differ only in their duration."""
    result, two = outcome(), outcome()
    two.seconds = 99.0
    lines = zip(json_text(result).splitlines(), json_text(two).splitlines(), strict=True)
    assert [(a, b) for a, b in lines if a != b] == [(' "seconds": 6.5,', ' "seconds": 99.0,')]


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, HOSTILE_TEXT)))
@example(Texts.all(HOSTILE))
@example(Texts.all("\\"))
@example(Texts.all("|`\\|`"))
def test_markdown_tables_are_intact(texts: Texts) -> None:
    """Each row has as many bars as its header, no bar is escaped, and no value outside a code span is markup."""
    text = markdown(small_outcome(texts))
    text.encode()
    for table in tables_of(text):
        assert {line.count("|") for line in table} == {table[0].count("|")}
    outside = re.sub(r"`[^`]*`", "", text)
    assert "`" not in outside
    assert not re.search(r"[<>\[\]]|\bwww\.|https?:", outside)


def tables_of(text: str) -> Iterator[list[str]]:
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield block.splitlines()


# -- plot data


@given(
    st.dictionaries(
        st.integers(0, 5_000).map(lambda pane: START_MS + pane * PANE_MS), st.integers(1, 50), min_size=1
    ),
    st.integers(0, 2_000),
)
def test_steps_keep_every_event(panes: dict[int, int], length: int) -> None:
    """Each event in the range is in exactly one step, and there are at most 600 steps."""
    start_ms, end_ms = START_MS + 7 * PANE_MS, START_MS + (8 + length) * PANE_MS
    found = steps(panes, PANE_MS, start_ms, end_ms)
    within = sum(events for pane_ms, events in panes.items() if start_ms <= pane_ms < end_ms)
    assert sum(found.counts.values()) == within
    assert (end_ms - start_ms) / found.width_ms <= 600
    assert all((step_ms - start_ms) % found.width_ms == 0 for step_ms in found.counts)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=3_000))
def test_thinning_keeps_the_extremes(rates: list[int]) -> None:
    """A line over thousands of ticks has at most 480 points, including the lowest and the highest."""
    points = [
        Point(START_MS + index * PANE_MS, Figures(rate, 0, 0, 1, 1), None) for index, rate in enumerate(rates)
    ]
    found = thinned(points, lambda point: point.figures.events)
    values = [value for _, value in found]
    assert (min(values), max(values)) == (min(rates), max(rates))
    assert len(found) <= 480
    assert [ms for ms, _ in found] == sorted({ms for ms, _ in found})


def test_gaps_by_hand() -> None:
    """10 gaps of 30 s, 1 of 37 s, 1 of 100 s: the median is 30 s, and 10 of 12 are within 24 to 36 s."""
    found = gaps_of(Counter({30_000: 10, 37_000: 1, 100_000: 1}))
    assert found is not None
    assert (found.total, found.median_ms) == (12, 30_000)
    assert found.near_median == 10 / 12
    assert gaps_of(Counter()) is None
    even = gaps_of(Counter({10: 1, 20: 1}))
    assert even is not None
    assert even.median_ms == 15


@given(st.dictionaries(st.integers(0, 10**8), st.integers(1, 1_000), min_size=1))
def test_gaps_keep_every_gap(counts: dict[int, int]) -> None:
    """Bins, shorter and longer add up to all gaps, in at most 82 bins."""
    found = gaps_of(Counter(counts))
    assert found is not None
    assert sum(found.bins.values()) + found.shorter + found.longer == found.total == sum(counts.values())
    assert found.shorter + found.longer <= found.total * 0.02
    assert len(found.bins) <= 82


@given(st.dictionaries(st.integers(0, 10**8), st.integers(1, 1_000), min_size=1, max_size=20))
@example({300_000: 40})
@example({0: 1})
@example({27_501: 5})
def test_gap_labels_are_distinct(counts: dict[int, int]) -> None:
    """The axis has 2 to 6 labels, distinct and exact, and covers all bins and the median."""
    found = gaps_of(counts)
    assert found is not None
    first_ms, last_ms = gaps_between(found)
    marks = span_marks(first_ms, last_ms)
    assert 2 <= len(marks) <= 6
    assert len({text for _, text in marks}) == len(marks)
    assert all(first_ms <= ms <= last_ms and milliseconds(text) == ms for ms, text in marks)
    assert first_ms <= min(found.bins)
    assert max(found.bins) + found.width_ms <= last_ms
    assert first_ms <= found.median_ms <= last_ms


def test_equal_gaps_have_a_readable_axis() -> None:
    """A beacon of exactly 5 min: 20 % to each side, 4 min to 6 min."""
    found = gaps_of({300_000: 40})
    assert found is not None
    assert [text for _, text in span_marks(*gaps_between(found))] == [
        "4 min",
        "4 min 30 s",
        "5 min",
        "5 min 30 s",
        "6 min",
    ]
    plotted = gaps_plot(found, "x")
    labels = [
        text for text in re.findall(r"<text[^>]*>([^<]*)</text>", plotted) if text.endswith(("s", "min"))
    ]
    assert len(labels) == len(set(labels)) == 5


@given(st.integers(-(10**12), 10**15), st.integers(1, 10**14))
def test_time_axes_have_few_labels(start_ms: int, range_ms: int) -> None:
    """From one second up to the year 9999, an axis has at most seven labels, all within its range."""
    found = time_marks(start_ms, start_ms + range_ms)
    assert len(found) <= 7
    assert all(start_ms <= ms <= start_ms + range_ms and text for ms, text in found)


@given(st.integers(0, 10**9))
def test_number_axes_reach_the_highest_value(highest: int) -> None:
    """Whole numbers from 0 to the highest value or slightly above."""
    found = number_marks(highest)
    assert found[0] == 0
    assert highest <= found[-1]
    assert 2 <= len(found) <= 7


def test_volumes_are_combined() -> None:
    """40 days of hours become at most 72 steps with the same sums; one wild clock does not compress them."""
    hours = [Volume(START_MS + hour * HOUR_MS, {"counted": 10, "x": 5, "late": 1}) for hour in range(24 * 40)]
    found = volumes_of(hours)
    assert found is not None
    assert len(found.starts_ms) <= 72
    assert {name: sum(counts) for name, counts in found.by_fate.items()} == {
        "counted": 9_600,
        "filtered": 4_800,
        "late": 960,
        "refused": 0,
    }
    wild = volumes_of([*hours, Volume(253_402_300_000_000, {"counted": 1})])
    assert wild is not None
    assert wild.outside >= 1
    assert wild.starts_ms[-1] < START_MS + 41 * DAY_MS
    plotted = sum(sum(counts) for counts in wild.by_fate.values())
    assert plotted + wild.outside == 24 * 40 * 16 + 1
    assert volumes_of([]) is None


def test_wild_times_do_not_compress_the_volumes() -> None:
    """A day of hours, one in eight records in 1970 or 9999: the evaluated range is plotted, the rest counted."""
    result = outcome(episodes=1, variants=0, near=0)
    hours = result.reading.volumes
    total = sum(sum(hour.by_verdict.values()) for hour in hours)
    wild = [
        Volume(0, {"counted": total // 16}),
        Volume(253_402_300_800_000 - HOUR_MS, {"future_time": total // 16}),
    ]
    # 2 hours within the lookback of the first tick are plotted; the hour before them is not.
    assert result.first_tick_ms == START_MS + PANE_MS
    before = [Volume(START_MS - DAY_MS + hour * HOUR_MS, {"late": 1}) for hour in (-1, 0, 1)]
    result.reading.volumes = [*hours, *wild, *before]
    read = page_view(result).read
    outside = 2 * (total // 16) + 1
    assert read.volumes is not None
    assert f"{outside:,} with times outside this range are not drawn" in read.volumes.caption
    plotted = sum(sum(counts) for _, counts in read.volume_rows)
    assert plotted == total + 2
    assert read.volume_rows[0][0] == moment(START_MS - DAY_MS)
    assert read.volume_rows[-1][0] == moment(START_MS + 23 * HOUR_MS)
    assert sum(row["records"] for row in tables(result)["volume_records"]) == plotted + outside


def test_volumes_are_plotted_without_an_evaluated_range() -> None:
    """If no volume lies in the evaluated range, or nothing was evaluated, all volumes are plotted."""
    hours = [Volume(START_MS, {"counted": 3})]
    for between in (None, (0, HOUR_MS)):
        found = volumes_of(hours, between)
        assert found is not None
        assert (found.outside, sum(found.by_fate["counted"])) == (0, 3)
    long = [Volume(START_MS + day * DAY_MS, {"counted": 1}) for day in range(400)]
    found = volumes_of(long, (START_MS, START_MS + 400 * DAY_MS))
    assert found is not None
    assert found.outside == 0  # a long history is not a wild clock


def test_pane_rows_contain_each_pane() -> None:
    """Twelve 5 min panes per hour; hours without events have no row."""
    found = pane_rows({START_MS: 3, START_MS + 11 * PANE_MS: 4, START_MS + 3 * HOUR_MS: 5}, PANE_MS, 10)
    assert [start for start, _ in found.rows] == [START_MS, START_MS + 3 * HOUR_MS]
    assert list(found.rows[0][1]) == [3, *[None] * 10, 4]
    assert pane_rows({START_MS: 1, START_MS + DAY_MS: 1}, PANE_MS, 1).more == 1


def test_durations_and_times() -> None:
    """Rounded where that is enough, exact where it is not."""
    expected = {340: "340 ms", 27_500: "27.5 s", 60_000: "60 s", HOUR_MS: "1 h", 90 * 60_000: "90 min"}
    expected |= {3 * HOUR_MS + 5 * 60_000: "3 h 5 min", DAY_MS: "24 h", 4 * DAY_MS + 2 * HOUR_MS: "4 d 2 h"}
    assert {ms: span(ms) for ms in expected} == expected
    assert moment(START_MS) == "2026-03-02 00:00"
    assert moment(START_MS + 12_345) == "2026-03-02 00:00:12"
    assert visible("a\u202eb") == "a⟨U+202E⟩b"


# -- a real browser


def open_in_browser(tmp_path: Path, text: str) -> tuple[str, str, str]:
    """The DOM, the console output, and the network log of a page opened in Chromium."""
    need("chromium")
    tmp_path.mkdir(exist_ok=True)
    file, log = tmp_path / "report.html", tmp_path / "net.json"
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            *BROWSER,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console, log.read_text(encoding="utf-8")


def test_a_browser_shows_the_report(tmp_path: Path) -> None:
    """Opened from disk, the hostile report makes no request and does not violate its policy."""
    dom, console, network_log = open_in_browser(tmp_path, page(outcome(Texts.all(LONG), stopped=True)))
    assert console == ""
    assert "beacon.test" not in network_log
    assert_harmless(
        Document.of(dom), Document.of(page(outcome(replace(HARMLESS, host="W" * 100), stopped=True)))
    )


def test_the_browser_reports_violations(tmp_path: Path) -> None:
    """The same page with an added image and style: the policy blocks both, and the console reports it."""
    injected = '<img src="http://beacon.test/x.png"><p style="color:red">'
    text = page(small_outcome()).replace("<main>", f"<main>{injected}", 1)
    _, console, _ = open_in_browser(tmp_path, text)
    assert console.count("Content Security Policy") >= 2
    bare = re.sub(r"<meta http-equiv[^>]*>", "", text)
    assert "beacon.test" in open_in_browser(tmp_path / "bare", bare)[2]
