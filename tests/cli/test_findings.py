"""Findings and explanations on a terminal: no value of an event, a file or a setting may act on it."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from outcomes import HARMLESS, Texts, outcome
from product import event
from rich.console import Console

from checkpoint_work import Work
from streamdetect.cli import entry
from streamdetect.cli.explain import explanation_text
from streamdetect.cli.findings import findings_text
from streamdetect.cli.tables import table_text
from streamdetect.config import Settings
from streamdetect.findings.diff import Diff
from streamdetect.findings.outcome import Outcome
from streamdetect.model import Partition
from streamdetect.service.inspect.explain import ExplainQuery, Explanation, explain_source
from streamdetect.testing import MemorySource

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
HOSTILE = "\x1b[2J\x00\u202e\n\nEpisodes: none\r\x9b31m\u2028\ud800\u200b[bold]x[/bold]"
NASTY = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\x1b\x00\n\r\t\u202e\u2066\x9b\u2028[]/"),
    max_size=40,
)
QUICK = hypothesis_settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def plain() -> Console:
    return Console(file=io.StringIO(), width=100)


def terminal() -> Console:
    """One without colours, so that every escape would be that of a value; wide, so that no value is folded."""
    return Console(file=io.StringIO(), force_terminal=True, width=4_000, color_system=None)


def asked(texts: Texts) -> Outcome:
    """Every table: variants, expectations, differences, episodes and near misses."""
    return replace(outcome(texts, episodes=3, variants=2, near=2, hours=3), near_limit=2)


def hidden(text: str) -> set[str]:
    """What acts on a terminal, or hides in it."""
    return {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, NASTY)))
@example(Texts.all(HOSTILE))
@example(Texts.all("\n"))
def test_no_value_acts_on_the_terminal(texts: Texts) -> None:
    """Each table has the lines that it has for harmless values, and nothing but their ends is a control."""
    known = findings_text(asked(HARMLESS), plain())
    text = findings_text(asked(texts), plain())
    text.encode()
    assert hidden(text) <= {"\n"}
    assert text.count("\n") == known.count("\n")
    drawn = findings_text(asked(texts), terminal())
    drawn.encode()
    assert hidden(drawn) <= {"\n"}


def test_what_is_written_out_can_be_read() -> None:
    """A forged table is one long value, and what looks like markup of rich is shown as it is, in titles too."""
    text = findings_text(asked(Texts.all(HOSTILE)), terminal())
    assert "⟨U+001B⟩[2J⟨U+0000⟩⟨U+202E⟩⟨U+000A⟩⟨U+000A⟩Episodes: none⟨U+000D⟩" in text
    assert "Against ⟨U+001B⟩[2J" in text
    assert "Note: ⟨U+001B⟩[2J" in text
    heads = [line for line in text.splitlines() if line.startswith("Against")]
    assert "[bold]x[/bold]: 1 unchanged" in heads[0]


def test_a_comparison_without_a_difference_is_harmless() -> None:
    """The one line that is no table."""
    one = replace(asked(Texts.all(HOSTILE)), diff=Diff())
    text = findings_text(one, plain())
    assert "Against ⟨U+001B⟩" in text
    assert hidden(text) <= {"\n"}


def test_numbers_stand_to_the_right() -> None:
    """Also those that are text already; a column with one other text does not."""
    rows = [["1.5", "3+", "1.5", 7], ["1,234.0", 12, "x", None]]
    text = table_text("t", ["a day", "hosts", "name", "count"], rows, plain())
    assert text.splitlines()[1:] == [
        "    a day  hosts  name  count",
        "      1.5     3+  1.5       7",
        "  1,234.0     12  x         -",
    ]


def explained(process: str, **more: Any) -> Explanation:
    """4 events of a program, asked for by its name."""
    own = Settings.model_validate({"rules": [{"name": "\x1bany", "processes": [process]}]})
    source = MemorySource([Partition("file-0")], 7)
    for number in range(4):
        document = json.loads(event(START_MS + number * 60_000)) | more
        document["process"] = {"name": process, "entity_id": "p1"}
        source.add(Partition("file-0"), json.dumps(document).encode())
    return explain_source(settings=own, source=source, query=ExplainQuery("45.83.64.1", process))


@pytest.mark.parametrize("console", [plain, terminal])
@pytest.mark.parametrize(
    "process", ["a\x1b[2J\x00b.exe", "a\u202eexe.b", "a\n  holds  all\r.exe", "a\x9b31m"]
)
def test_no_name_acts_on_the_terminal_in_an_explanation(process: str, console: Any) -> None:
    """As many lines as for a harmless name, which end where the layout ends them."""
    known = explanation_text(explained("a.exe"), 300_000, console())
    found = explained(process)
    assert found.keys
    text = explanation_text(found, 300_000, console())
    assert hidden(text) == {"\n"}
    assert text.count("\n") == known.count("\n")
    assert text.splitlines()[1:] == known.splitlines()[1:]


def test_a_name_that_nobody_knows_is_harmless_too() -> None:
    """What was asked for stands in the answer that there is none; its lines stay."""
    found = replace(
        explained("a.exe"), keys=(), remarks=["No event of a\x1b[2J\u202e counts.\nIs it spelled so?"]
    )
    text = explanation_text(found, 300_000, plain())
    assert text == "No event of a⟨U+001B⟩[2J⟨U+202E⟩ counts.\nIs it spelled so?"


def test_no_name_acts_on_the_terminal_out_of_a_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real command over a real store, for a program with an event and for one without."""
    process = "a\x1b[2m\u202eb.exe"
    own = Settings.model_validate({"rules": [{"name": "any", "processes": [process]}]})
    document = json.loads(event(START_MS)) | {"process": {"name": process, "entity_id": "p1"}}
    made = Work(tmp_path, own, [[json.dumps(document).encode()]])
    made.read(0, 1)
    made.save()
    for name, told in ((process, "(sensor endpoint), rule "), (f"{process}x", "No event of")):
        asks = ("explain", "--destination", "45.83.64.1", "--process", name, "--checkpoint", str(tmp_path))
        assert entry.run(asks) == 0
        text = capfd.readouterr().out
        assert told in text
        assert "a⟨U+001B⟩[2m⟨U+202E⟩b.exe" in text
        assert hidden(text) == {"\n"}
