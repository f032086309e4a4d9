"""The report: what it says, that no value can become markup, and that a real browser takes it as it is."""

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
NASTY = st.text(
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
    """Tags in balance, attributes and texts of a page."""

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


def small(texts: Texts = HARMLESS) -> Outcome:
    """One of each: quick to draw."""
    return outcome(texts, episodes=1, variants=1, near=1, hours=3)


def nothing() -> Outcome:
    """A run over files without a record."""
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
    """The page of a usual outcome; one host has a long name, so that a title is among the attributes."""
    return Document.of(page(outcome(replace(HARMLESS, host="W" * 100, remark="R" * 600))))


def ours_only(found: Document, known: Document) -> None:
    """Nothing but the tags and attributes that the harmless page has, and nothing that would load."""
    assert found.problems == []
    assert found.tags.keys() <= known.tags.keys()
    assert found.names <= known.names
    assert not {
        name for _, name in found.names if name.startswith("on") or name in ("src", "style", "srcset")
    }
    assert all(value.startswith("#") or value == "data:," for value in found.values("href"))


# -- the page


def test_the_page_is_well_formed_and_its_links_lead_somewhere(harmless: Document) -> None:
    """Tags are balanced, ids are unique, and every link ends on the page."""
    assert harmless.problems == []
    ids = harmless.values("id")
    assert len(ids) == len(set(ids))
    links = {href for href in harmless.values("href") if href != "data:,"}
    assert len(links) > 5
    assert links <= {f"#{one}" for one in ids}


def test_nothing_loads_and_nothing_runs(harmless: Document) -> None:
    """No script, no address to load, and a policy that takes the one style sheet by its hash."""
    ours_only(harmless, harmless)
    assert "script" not in harmless.tags
    assert harmless.tags["style"] == 1
    text = page(outcome())
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|expression|http", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    told = policy[1].replace("&#39;", "'")
    assert told.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")
    assert "unsafe" not in told


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, NASTY)))
@example(Texts.all(LONG))
@example(Texts.all(""))
@example(Texts.all("-->"))
def test_no_value_becomes_markup(harmless: Document, texts: Texts) -> None:
    """Whatever stands in the events, tags and attributes are those of a harmless page."""
    found = Document.of(page(small(texts)))
    ours_only(found, harmless)


def test_no_hidden_character_gets_through() -> None:
    """Bidi controls, zero widths, controls and surrogates are on the page as code points only."""
    text = page(small(Texts.all(HOSTILE)))
    assert "⟨U+202E⟩" in text
    hidden = {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    assert hidden == {"\n"}
    text.encode()


def test_long_values_are_cut_with_the_whole_text_in_the_title() -> None:
    """A name of a thousand characters takes 80, and hovering shows all of it."""
    found = Document.of(page(small(replace(HARMLESS, user="H" * 1_000, domain=""))))
    assert "H" * 80 + "…" in found.text
    assert "H" * 81 not in found.text
    assert "H" * 1_000 in found.values("title")


def test_every_number_of_the_alerts_is_there() -> None:
    """Figures, thresholds, times and pane counts of an episode can all be read in its section."""
    whole = page(outcome())
    for episode in outcome().base.episodes:
        section = whole.partition(f'<article id="e-{episode.id}">')[2].partition("</article>")[0]
        told = Document.of(section).text
        for figures in (episode.figures, episode.last_figures):
            for condition in conditions(figures, episode.thresholds):
                assert condition.sentence in told
        assert episode.opened_ms is not None
        assert moment(episode.opened_ms) in told
        for start_ms, events in (episode.panes or {}).items():
            row_ms = start_ms - start_ms % (12 * PANE_MS)
            cells = re.search(rf"counts by pane.*? {moment(row_ms)}((?: [\d,]+)+)", told)
            assert cells is not None
            assert f"{events}" in cells[1].split()


def test_the_arithmetic_is_in_words() -> None:
    """524 // 4 = 131; 03:29:59.999 after 00:00:00 is 12,599.999 s, half a millisecond from 4 h, and rounds to 3."""
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
    assert [one.holds for one in (rate, duration, hosts, processes)] == [True, True, True, False]
    short = figures | {"duration_hours": 3, "last_seen_ms": START_MS + 12_599_999, "count_connections": 300}
    rate, duration, *_ = conditions(short | {"number_of_con_per_hour": 100}, limits)
    assert duration.missing == "1 ms more from the first to the last event"
    assert rate.missing == "60 connections more at 3 h"  # 120 * 3 - 300


@pytest.mark.parametrize(
    ("hosts", "limit", "told"),
    [
        (2, 1, "at most 1 host, seen 2"),
        (MOST_SEEN, 1, f"at most 1 host, seen {MOST_SEEN}"),
        (MOST_SEEN + 1, 1, f"at most 1 host, seen at least {MOST_SEEN + 1}"),
        (MOST_SEEN + 1, MOST_SEEN + 1, None),
        (MOST_SEEN + 2, MOST_SEEN + 1, f"at most {MOST_SEEN + 1} hosts, seen at least {MOST_SEEN + 2}"),
    ],
)
def test_hosts_are_told_as_surely_as_they_were_counted(hosts: int, limit: int, told: str | None) -> None:
    """Up to MOST_SEEN, or the limit where it is higher, they are told apart; one more says "at least"."""
    limits = {"min_connections_per_hour": 1, "min_duration_hours": 1, "max_hosts": limit, "max_processes": 1}
    found = {one.name: one for one in conditions({"hosts": hosts}, limits, MOST_SEEN)}
    assert found["hosts"].missing == told


def milliseconds(told: str) -> Fraction:
    """What `3 h 5 min 0.5 s` comes to."""
    units = {"ms": 1, "s": 1_000, "min": 60_000, "h": HOUR_MS, "d": DAY_MS}
    words = told.split(" ")
    return sum(
        (Fraction(count) * units[unit] for count, unit in zip(words[::2], words[1::2], strict=True)),
        Fraction(),
    )


@given(st.integers(1, 48), st.integers(0, 48 * HOUR_MS))
@example(4, 10_790_000)
def test_who_adds_what_is_missing_alerts(hours: int, width_ms: int) -> None:
    """The missing time is neither cut nor too much: with it the span rounds up to the threshold, with 1 ms less not."""
    limits = {"min_connections_per_hour": 1, "min_duration_hours": hours, "max_hosts": 1, "max_processes": 1}

    def duration(wide_ms: int) -> ConditionText:
        seen = Figures(9, START_MS, START_MS + wide_ms, 1, 1)
        return conditions(figures_block(seen), limits)[1]

    missing = duration(width_ms).missing
    if missing is not None:
        lack = milliseconds(missing.removesuffix(" more from the first to the last event"))
        assert lack == int(lack)
        assert duration(width_ms + int(lack)).holds
        assert not duration(width_ms + int(lack) - 1).holds


def test_what_is_missing_by_hand() -> None:
    """4 h need 3 h 30 min: 12,600 s - 10,790 s = 1,810 s. A share of 0.9999999 is not the whole."""
    assert exact(1_810_000) == "30 min 10 s"
    told = {340: "340 ms", 27_500: "27.5 s", 300_002: "5 min 0.002 s", HOUR_MS: "1 h", 0: "0 ms"}
    told |= {90 * 60_000: "1 h 30 min", 2 * DAY_MS + HOUR_MS: "2 d 1 h", 47 * HOUR_MS + 1: "47 h 0.001 s"}
    assert {ms: exact(ms) for ms in told} == told
    assert (share(0.9999999, 6), share(0.999, 2), share(1.0, 6)) == (0.999999, 0.99, 1.0)
    assert share(0.84375, 6) == 0.84375


def grid(count: int, **settings: int) -> list[Variant]:
    """Variants of `--vary`: a first setting in `count` values, the others fixed."""
    base = outcome(episodes=1, variants=0, near=0).base
    found = []
    for number in range(count):
        changes = {"min_connections_per_hour": f"{60 + number}", **{k: f"{v}" for k, v in settings.items()}}
        name = " ".join(f"{path}={value}" for path, value in changes.items())
        found.append(replace(base, name=name, changes=changes, diff=Diff()))
    return found


def bars_of(one: Outcome) -> tuple[str, list[str]]:
    """Caption and labels of the first plot of variants."""
    figure = variant_figures(one)[0]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.plot)
    return figure.caption, texts


def test_bars_show_what_differs() -> None:
    """The settings that a grid shares stand in the caption once, their values beside the bars; files have names."""
    one = outcome(episodes=1, variants=0, near=0)
    one.variants = [*grid(2, max_hosts=1), replace(one.base, name="new.yaml", changes={"file": "new.yaml"})]
    caption, labels = bars_of(one)
    assert caption == "Episodes by min_connections_per_hour · max_hosts"
    assert {"base", "60 · 1", "61 · 1", "new.yaml"} <= set(labels)
    other = replace(one.base, name="max_hosts=2", changes={"max_hosts": "2"}, diff=Diff())
    one.variants = [*grid(2, max_hosts=1), other]  # no grid: whole names
    caption, labels = bars_of(one)
    assert caption == "Episodes"
    assert "max_hosts=2" in labels


def test_a_thousand_variants_are_in_the_table() -> None:
    """1,001 with the base: 60 have a bar, the caption says that 941 have not."""
    one = outcome(episodes=1, variants=0, near=0)
    one.variants = grid(1_000)
    caption, labels = bars_of(one)
    assert MOST_BARS == 60
    assert caption.endswith("; the first 60 variants, 941 more are only in the table")
    assert {"60", "118"} <= set(labels)  # 60 and 58 more, beside the base
    assert "119" not in labels
    assert "min_connections_per_hour=1059" in Document.of(page(one)).text


@given(st.lists(st.text("ab漢=_. ", min_size=1, max_size=60), max_size=30, unique=True))
@example(["min_connections_per_hour=60 max_hosts=1", "min_connections_per_hour=60 max_hosts=2"])
@example([f"{'a' * 30}{middle}{'z' * 30}" for middle in "bcd"])
def test_labels_of_bars_differ(names: list[str]) -> None:
    """However long names are and however much alike, each bar has a label of its own that fits beside it."""
    labels = fitting(names)
    assert len(set(labels)) == len(names)
    assert all(len(label) <= 23 for label in labels)


def test_many_episodes_stay_readable() -> None:
    """50 have a section, 1,000 a row, and the page says how many more there are; links to rows work too."""
    found = Document.of(page(outcome(episodes=1_203, variants=0, near=0)))
    assert found.problems == []
    sections = [value for tag, name, value in found.attributes if (tag, name) == ("article", "id")]
    rows = [value for tag, name, value in found.attributes if (tag, name) == ("tr", "id")]
    assert (len(sections), len(rows)) == (MOST_PLOTTED, 1_000 - MOST_PLOTTED)
    assert "and 203 more episodes" in found.text
    assert "The first 50 by opening" in found.text
    assert {href for href in found.values("href") if href.startswith("#e-")} <= {
        f"#{one}" for one in found.values("id")
    }


def test_a_busy_report_stays_small() -> None:
    """50 plotted episodes and 40 variants are a few megabytes."""
    assert len(page(outcome(episodes=60, variants=40, near=25, hours=24 * 40))) < 3_000_000


def test_a_partial_run_says_so() -> None:
    """What was stopped early is loud about it, in every format that people read."""
    assert "Partial: the run was stopped" in Document.of(page(outcome(stopped=True))).text
    assert "Partial" not in Document.of(page(outcome())).text
    assert "**Partial" in markdown(outcome(stopped=True))
    assert json.loads(json_text(outcome(stopped=True)))["stopped"] is True


def test_an_empty_run_has_a_report() -> None:
    """Nothing read, nothing found: every format still says so."""
    found = Document.of(page(nothing()))
    assert found.problems == []
    assert "None." in found.text
    assert csv_text(nothing()).splitlines() == [",".join(EPISODE_COLUMNS)]
    assert json.loads(json_text(nothing()))["episodes"] == []
    assert "None." in markdown(nothing())


def test_episodes_without_a_track_or_an_opening() -> None:
    """What was not kept is not drawn, and an episode whose opening is missing says so."""
    one = outcome(episodes=1, variants=0, near=0, plain=True)
    episode = one.base.episodes[0]
    bare = replace(
        one, tracked_keys={}, base=replace(one.base, episodes=[replace(episode, panes=None, opened_ms=None)])
    )
    told = Document.of(page(bare)).text
    assert "Its timeline was not kept" in told
    assert "Its opening alert is not among the alerts" in told
    panes_only = page(replace(one, tracked_keys={}))
    assert panes_only.count("<svg") == 2  # events in each pane, and what was read
    assert page(one).count("<svg") == 5  # and rate, hours, gaps


def test_reasons_are_in_words() -> None:
    """An analyst reads why an episode ended, with the code of the alert behind it."""
    told = Document.of(page(small(replace(HARMLESS, reason="second_host")))).text
    assert "more hosts than the rule allows had contacted it (second_host)." in told


def test_the_same_outcome_gives_the_same_bytes() -> None:
    """Nothing of the clock, of chance or of memory addresses is in a report."""
    for show in (page, markdown, csv_text, json_text):
        assert show(outcome()) == show(outcome())


def test_plots_say_what_they_show(harmless: Document) -> None:
    """Each plot has a caption and a label for those who cannot see it."""
    labels = [value for tag, name, value in harmless.attributes if (tag, name) == ("svg", "aria-label")]
    assert harmless.tags["svg"] == harmless.tags["figcaption"] == len(labels)
    assert all(labels)
    assert harmless.values("role").count("img") == len(labels)


def test_no_setting_of_other_rooms_is_shown() -> None:
    """Brokers, users and passwords are in no format, not even when a variant changed them."""
    for show in (page, markdown, csv_text, json_text):
        text = show(outcome())
        assert not [secret for secret in SECRETS if secret in text], show
    assert "(not shown)" in json_text(outcome())


def test_the_page_of_a_key() -> None:
    """The course alone, for `explain --report`, with a hostile title."""
    one = outcome()
    tracked_keys = [*one.near, *one.tracked_keys.values()]
    text = key_page(HOSTILE, tracked_keys, PANE_MS)
    found = Document.of(text)
    ours_only(found, Document.of(page(outcome(replace(HARMLESS, host="W" * 100)))))
    assert found.tags["article"] == len(tracked_keys)
    assert "All four conditions held at" in found.text
    assert "Closest at" in found.text
    assert "No key was tracked." in Document.of(key_page("x", [], PANE_MS)).text


# -- records and the plain formats


def tables(one: Outcome) -> dict[str, list[dict[str, Any]]]:
    makers = (episode_records, variant_records, near_records, diff_records, verdict_records, volume_records)
    return {make.__name__: list(make(one)) for make in makers}


def test_records_are_flat() -> None:
    """The same keys in each row, and nothing but text, numbers, booleans and None."""
    for name, rows in tables(outcome()).items():
        assert rows, name
        assert len({tuple(row) for row in rows}) == 1, name
        assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}
    assert tuple(episode_records(outcome())[0]) == EPISODE_COLUMNS


def test_records_say_what_the_outcome_says() -> None:
    """One outcome by hand: 3 episodes, 5 of which in two variants, one difference of each kind."""
    one = outcome(episodes=3, variants=2)
    assert [row["variant"] for row in episode_records(one)] == ["base"] * 3 + ["rate 60 0"] * 3 + [
        "rate 60 1"
    ] * 2
    base, same, fewer = variant_records(one)
    assert (base["gone"], same["gone"], fewer["gone"]) == (None, 0, 1)
    assert base["alerts"] == 7  # 3 opened, 2 resolved, 2 updated
    assert base["alerts_a_day"] == 7.0  # 288 ticks of 5 min
    assert [base[f"expectations_{what}"] for what in ("held", "failed", "undecided")] == [1, 1, 1]
    assert [row["what"] for row in diff_records(one)] == [
        "appeared",
        "gone",
        "moved",
        "ended_otherwise",
        "gone",
    ]
    moved = diff_records(one)[2]
    assert moved["by_seconds"] == 900.0  # 3 panes of 5 min
    near = near_records(one)[1]
    assert (near["hosts_value"], near["hosts_threshold"], near["hosts_holds"]) == (2, 1, False)
    assert near["hosts_missing"] == "at most 1 host, seen 2"  # 2 <= MOST_SEEN, so they were counted
    hour = [row for row in volume_records(one) if row["start"] == "2026-03-02T00:00:00.000Z"]
    assert {(row["outcome"], row["reason"]) for row in hour} == {
        ("counted", None),
        ("late", None),
        ("filtered", "process.name"),
        ("filtered", "network.direction"),
        ("refused", "future_time"),
    }


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, NASTY)))
@example(Texts.all(HOSTILE))
def test_csv_comes_back(texts: Texts) -> None:
    """What a CSV reader reads is what the records say, but for the apostrophe before what looks like a formula."""
    one = small(texts)
    text = csv_text(one)
    text.encode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [
        {name: "" if value is None else guarded(str(value)) for name, value in row.items()}
        for row in episode_records(one)
    ]
    assert rows == expected
    assert not [
        cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    ]


def guarded(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and text else text


def test_formulas_are_guarded() -> None:
    """A spreadsheet shows a destination that looks like a formula, and does not run it."""
    text = csv_text(small(replace(HARMLESS, address='=HYPERLINK("http://beacon.test")', host="-1+1")))
    row = next(csv.DictReader(io.StringIO(text)))
    assert row["destination"] == '\'=HYPERLINK("http://beacon.test")'
    assert row["host"] == "'-1+1"


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, NASTY)))
@example(Texts.all(HOSTILE))
def test_json_can_be_read(texts: Texts) -> None:
    """One object in UTF-8, its records equal to the tables."""
    one = small(texts)
    found = json.loads(json_text(one).encode())
    assert found["episodes"] == episode_records(one)
    assert found["near"] == near_records(one)
    assert found["diff"] == diff_records(one)
    assert list(found) == sorted(found)


def test_only_the_seconds_of_json_vary() -> None:
    """Two runs over the same events differ in how long they took, and in nothing else."""
    one, two = outcome(), outcome()
    two.seconds = 99.0
    lines = zip(json_text(one).splitlines(), json_text(two).splitlines(), strict=True)
    assert [(a, b) for a, b in lines if a != b] == [(' "seconds": 6.5,', ' "seconds": 99.0,')]


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, NASTY)))
@example(Texts.all(HOSTILE))
@example(Texts.all("\\"))
@example(Texts.all("|`\\|`"))
def test_markdown_tables_hold(texts: Texts) -> None:
    """Each row has as many bars as its head, no bar is escaped, and outside of code spans no value is markup."""
    text = markdown(small(texts))
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


# -- making ready for drawing


@given(
    st.dictionaries(
        st.integers(0, 5_000).map(lambda pane: START_MS + pane * PANE_MS), st.integers(1, 50), min_size=1
    ),
    st.integers(0, 2_000),
)
def test_steps_lose_no_event(panes: dict[int, int], length: int) -> None:
    """However many panes go into a step, each event in the range is in one step, and the steps can be seen."""
    start_ms, end_ms = START_MS + 7 * PANE_MS, START_MS + (8 + length) * PANE_MS
    found = steps(panes, PANE_MS, start_ms, end_ms)
    within = sum(events for pane_ms, events in panes.items() if start_ms <= pane_ms < end_ms)
    assert sum(found.counts.values()) == within
    assert (end_ms - start_ms) / found.width_ms <= 600
    assert all((step_ms - start_ms) % found.width_ms == 0 for step_ms in found.counts)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=3_000))
def test_thinning_keeps_the_extremes(rates: list[int]) -> None:
    """A line over thousands of ticks has a few hundred points, the lowest and the highest among them."""
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
def test_gaps_lose_none(counts: dict[int, int]) -> None:
    """In the bins, shorter and longer: together all of them, and few enough bins to see."""
    found = gaps_of(Counter(counts))
    assert found is not None
    assert sum(found.bins.values()) + found.shorter + found.longer == found.total == sum(counts.values())
    assert found.shorter + found.longer <= found.total * 0.02
    assert len(found.bins) <= 82


@given(st.dictionaries(st.integers(0, 10**8), st.integers(1, 1_000), min_size=1, max_size=20))
@example({300_000: 40})
@example({0: 1})
@example({27_501: 5})
def test_labels_of_gaps_differ(counts: dict[int, int]) -> None:
    """The axis has 2 to 6 labels, each another and exact, and all bins and the median lie on it."""
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
    """A beacon on the spot of every 5 min: 20 % to each side, 4 min to 6 min."""
    found = gaps_of({300_000: 40})
    assert found is not None
    assert [text for _, text in span_marks(*gaps_between(found))] == [
        "4 min",
        "4 min 30 s",
        "5 min",
        "5 min 30 s",
        "6 min",
    ]
    drawn = gaps_plot(found, "x")
    labels = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn) if text.endswith(("s", "min"))]
    assert len(labels) == len(set(labels)) == 5


@given(st.integers(-(10**12), 10**15), st.integers(1, 10**14))
def test_time_axes_have_few_marks(start_ms: int, range_ms: int) -> None:
    """From a second to the year 9999, an axis has at most seven labels, all inside."""
    found = time_marks(start_ms, start_ms + range_ms)
    assert len(found) <= 7
    assert all(start_ms <= ms <= start_ms + range_ms and text for ms, text in found)


@given(st.integers(0, 10**9))
def test_number_axes_reach_the_highest(highest: int) -> None:
    """Whole numbers from 0 to the highest value or just above."""
    found = number_marks(highest)
    assert found[0] == 0
    assert highest <= found[-1]
    assert 2 <= len(found) <= 7


def test_volumes_are_put_together() -> None:
    """40 days of hours become at most 72 steps with the same sums; one wild clock does not press them flat."""
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
    drawn = sum(sum(counts) for counts in wild.by_fate.values())
    assert drawn + wild.outside == 24 * 40 * 16 + 1
    assert volumes_of([]) is None


def test_wild_times_do_not_squash_the_volumes() -> None:
    """A day of hours, one in eight records of 1970 or of 9999: only the evaluated time is drawn, the rest is told."""
    one = outcome(episodes=1, variants=0, near=0)
    hours = one.reading.volumes
    total = sum(sum(hour.by_verdict.values()) for hour in hours)
    wild = [
        Volume(0, {"counted": total // 16}),
        Volume(253_402_300_800_000 - HOUR_MS, {"future_time": total // 16}),
    ]
    # 2 hours within the lookback of the first tick are drawn, the 5 min before it are not.
    assert one.first_tick_ms == START_MS + PANE_MS
    before = [Volume(START_MS - DAY_MS + hour * HOUR_MS, {"late": 1}) for hour in (-1, 0, 1)]
    one.reading.volumes = [*hours, *wild, *before]
    read = page_view(one).read
    outside = 2 * (total // 16) + 1
    assert read.volumes is not None
    assert f"{outside:,} with times outside this range are not drawn" in read.volumes.caption
    drawn = sum(sum(counts) for _, counts in read.volume_rows)
    assert drawn == total + 2
    assert read.volume_rows[0][0] == moment(START_MS - DAY_MS)
    assert read.volume_rows[-1][0] == moment(START_MS + 23 * HOUR_MS)
    assert sum(row["records"] for row in tables(one)["volume_records"]) == drawn + outside


def test_volumes_are_drawn_somehow() -> None:
    """Where nothing lies in the evaluated time, or nothing was evaluated, what there is is drawn."""
    hours = [Volume(START_MS, {"counted": 3})]
    for between in (None, (0, HOUR_MS)):
        found = volumes_of(hours, between)
        assert found is not None
        assert (found.outside, sum(found.by_fate["counted"])) == (0, 3)
    long = [Volume(START_MS + day * DAY_MS, {"counted": 1}) for day in range(400)]
    found = volumes_of(long, (START_MS, START_MS + 400 * DAY_MS))
    assert found is not None
    assert found.outside == 0  # a long history is no wild clock


def test_pane_rows_hold_each_pane() -> None:
    """Twelve panes of 5 min to an hour; hours without events have no row."""
    found = pane_rows({START_MS: 3, START_MS + 11 * PANE_MS: 4, START_MS + 3 * HOUR_MS: 5}, PANE_MS, 10)
    assert [start for start, _ in found.rows] == [START_MS, START_MS + 3 * HOUR_MS]
    assert list(found.rows[0][1]) == [3, *[None] * 10, 4]
    assert pane_rows({START_MS: 1, START_MS + DAY_MS: 1}, PANE_MS, 1).more == 1


def test_spans_and_moments() -> None:
    """Short where it can be, exact where it must."""
    told = {340: "340 ms", 27_500: "27.5 s", 60_000: "60 s", HOUR_MS: "1 h", 90 * 60_000: "90 min"}
    told |= {3 * HOUR_MS + 5 * 60_000: "3 h 5 min", DAY_MS: "24 h", 4 * DAY_MS + 2 * HOUR_MS: "4 d 2 h"}
    assert {ms: span(ms) for ms in told} == told
    assert moment(START_MS) == "2026-03-02 00:00"
    assert moment(START_MS + 12_345) == "2026-03-02 00:00:12"
    assert visible("a\u202eb") == "a⟨U+202E⟩b"


# -- a real browser


def browse(tmp_path: Path, text: str) -> tuple[str, str, str]:
    """The DOM, what the console said, and every address that the browser asked for."""
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


def test_a_real_browser_shows_it(tmp_path: Path) -> None:
    """Opened from disk, the hostile report asks nobody for anything, and its policy has nothing to object to."""
    dom, console, asked = browse(tmp_path, page(outcome(Texts.all(LONG), stopped=True)))
    assert console == ""
    assert "beacon.test" not in asked
    ours_only(Document.of(dom), Document.of(page(outcome(replace(HARMLESS, host="W" * 100), stopped=True))))


def test_the_browser_would_have_told(tmp_path: Path) -> None:
    """The same with a picture and a style of somebody else: the policy stops both, and the console says so."""
    planted = '<img src="http://beacon.test/x.png"><p style="color:red">'
    text = page(small()).replace("<main>", f"<main>{planted}", 1)
    _, console, _ = browse(tmp_path, text)
    assert console.count("Content Security Policy") >= 2
    bare = re.sub(r"<meta http-equiv[^>]*>", "", text)
    assert "beacon.test" in browse(tmp_path / "bare", bare)[2]
