"""Findings and explanations on a terminal: no value from an event, file or setting can act on the terminal."""

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

from checkpoint_work import SavedRun
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
HOSTILE_TEXT = st.text(
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
    """A terminal without colours, so any escape comes from a value; wide enough that no value is wrapped."""
    return Console(file=io.StringIO(), force_terminal=True, width=4_000, color_system=None)


def with_all_tables(texts: Texts) -> Outcome:
    """An outcome with every table: variants, expectations, differences, episodes and near misses."""
    return replace(outcome(texts, episodes=3, variants=2, near=2, hours=3), near_limit=2)


def invisible_characters(text: str) -> set[str]:
    """The control, format and other invisible characters of a text."""
    return {
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }


@QUICK
@given(st.builds(Texts, **dict.fromkeys(Texts.__dataclass_fields__, HOSTILE_TEXT)))
@example(Texts.all(HOSTILE))
@example(Texts.all("\n"))
def test_no_value_acts_on_the_terminal(texts: Texts) -> None:
    """Each table has as many lines as with harmless values, and line ends are its only control characters."""
    known = findings_text(with_all_tables(HARMLESS), plain())
    text = findings_text(with_all_tables(texts), plain())
    text.encode()
    assert invisible_characters(text) <= {"\n"}
    assert text.count("\n") == known.count("\n")
    terminal_text = findings_text(with_all_tables(texts), terminal())
    terminal_text.encode()
    assert invisible_characters(terminal_text) <= {"\n"}


def test_escaped_values_are_readable() -> None:
    """A forged table is one long value, and rich markup is shown literally, in titles too."""
    text = findings_text(with_all_tables(Texts.all(HOSTILE)), terminal())
    assert "⟨U+001B⟩[2J⟨U+0000⟩⟨U+202E⟩⟨U+000A⟩⟨U+000A⟩Episodes: none⟨U+000D⟩" in text
    assert "Against ⟨U+001B⟩[2J" in text
    assert "Note: ⟨U+001B⟩[2J" in text
    heads = [line for line in text.splitlines() if line.startswith("Against")]
    assert "[bold]x[/bold]: 1 unchanged" in heads[0]


def test_a_comparison_without_differences_is_escaped() -> None:
    """The one line that is not in a table."""
    character = replace(with_all_tables(Texts.all(HOSTILE)), diff=Diff())
    text = findings_text(character, plain())
    assert "Against ⟨U+001B⟩" in text
    assert invisible_characters(text) <= {"\n"}


def test_numbers_are_right_aligned() -> None:
    """Including numbers given as text; a column with any other text is left-aligned."""
    rows = [["1.5", "3+", "1.5", 7], ["1,234.0", 12, "x", None]]
    text = table_text("t", ["a day", "hosts", "name", "count"], rows, plain())
    assert text.splitlines()[1:] == [
        "    a day  hosts  name  count",
        "      1.5     3+  1.5       7",
        "  1,234.0     12  x         -",
    ]


def explanation_of(process: str, **more: Any) -> Explanation:
    """An explanation of 4 events of a process, queried by its name."""
    settings = Settings.model_validate({"rules": [{"name": "\x1bany", "processes": [process]}]})
    source = MemorySource([Partition("file-0")], 7)
    for number in range(4):
        document = json.loads(event(START_MS + number * 60_000)) | more
        document["process"] = {"name": process, "entity_id": "p1"}
        source.add(Partition("file-0"), json.dumps(document).encode())
    return explain_source(settings=settings, source=source, query=ExplainQuery("45.83.64.1", process))


@pytest.mark.parametrize("console", [plain, terminal])
@pytest.mark.parametrize(
    "process", ["a\x1b[2J\x00b.exe", "a\u202eexe.b", "a\n  holds  all\r.exe", "a\x9b31m"]
)
def test_no_name_acts_on_the_terminal_in_an_explanation(process: str, console: Any) -> None:
    """As many lines as for a harmless name, with line breaks only where the layout has them."""
    known = explanation_text(explanation_of("a.exe"), 300_000, console())
    explanation = explanation_of(process)
    assert explanation.keys
    text = explanation_text(explanation, 300_000, console())
    assert invisible_characters(text) == {"\n"}
    assert text.count("\n") == known.count("\n")
    assert text.splitlines()[1:] == known.splitlines()[1:]


def test_an_unknown_name_is_escaped_too() -> None:
    """The queried name is part of the remark that no event was found; the remark's own lines are kept."""
    explanation = replace(
        explanation_of("a.exe"), keys=(), remarks=["No event of a\x1b[2J\u202e counts.\nIs it spelled so?"]
    )
    text = explanation_text(explanation, 300_000, plain())
    assert text == "No event of a⟨U+001B⟩[2J⟨U+202E⟩ counts.\nIs it spelled so?"


def test_no_name_acts_on_the_terminal_when_explained_from_a_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real command on a real store, for a process with an event and for one without."""
    process = "a\x1b[2m\u202eb.exe"
    settings = Settings.model_validate({"rules": [{"name": "any", "processes": [process]}]})
    document = json.loads(event(START_MS)) | {"process": {"name": process, "entity_id": "p1"}}
    saved_run = SavedRun(tmp_path, settings, [[json.dumps(document).encode()]])
    saved_run.read(0, 1)
    saved_run.save()
    for name, expected in ((process, "(sensor endpoint), rule "), (f"{process}x", "No event of")):
        arguments = (
            "explain",
            "--destination",
            "45.83.64.1",
            "--process",
            name,
            "--checkpoint",
            str(tmp_path),
        )
        assert entry.run(arguments) == 0
        text = capfd.readouterr().out
        assert expected in text
        assert "a⟨U+001B⟩[2m⟨U+202E⟩b.exe" in text
        assert invisible_characters(text) == {"\n"}
