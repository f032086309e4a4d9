"""Tables: drawn on a terminal, plain columns elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamdetect.report.words import visible

Rows = Sequence[Sequence[object]]

_NUMBER = re.compile(r"-?[0-9]{1,3}(,?[0-9]{3})*(\.[0-9]+)?\+?")


def table_text(title: str, head: Sequence[str], rows: Rows, console: Console) -> str:
    """A table as text for this console: numbers right-aligned, None as `-`. Without rows only the title.

    No value can end a line, move the cursor or reorder text: such characters are written as their code points.
    """
    title = visible(title)
    if not rows:
        return f"{title}: none"
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_are_numbers([row[place] for row in rows]) for place in range(len(head))]
    if not console.is_terminal:
        return f"{title}:\n{_plain(head, cells, right)}"
    table = Table(title=Text(title, "bold"), title_justify="left")
    for name, is_right in zip(head, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))  # values of events are not markup
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def _plain(head: Sequence[str], cells: list[list[str]], right: list[bool]) -> str:
    lines = [list(head), *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            ["", *(cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in columns)]
        ).rstrip()
        for columns in (zip(line, widths, right, strict=True) for line in lines)
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else visible(str(value))


def _are_numbers(column: list[object]) -> bool:
    there = [value for value in column if value is not None]
    return bool(there) and all(_is_number(value) for value in there)


def _is_number(value: object) -> bool:
    """Whether a cell is a number, also as text: `1,234.5`, or `3+` for at least 3."""
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)
