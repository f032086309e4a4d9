"""A strict reader of Logstash configurations, after the grammar in logstash-core's `grammar.treetop`.

Conditions are read as text up to their brace: here they only need to be balanced and not empty.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn

_BLANK = re.compile(r"(?:\s+|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BAREWORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
_STRING = re.compile(r"\"((?:\\\"|[^\"])*)\"|'((?:\\'|[^'])*)'", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?")
_CONDITION = re.compile(r"[^{}#\"']+|\"[^\"]*\"|'[^']*'")


class Plugin(NamedTuple):
    """One plugin with its settings; `codec => json { ... }` is a plugin too."""

    kind: str
    name: str
    settings: dict[str, Any]
    conditions: tuple[str, ...] = ()


class Reader:
    """Recursive descent over one text; a ValueError names the line."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def read(self) -> list[Plugin]:
        """All plugins of the file, in order."""
        found: list[Plugin] = []
        self._blank()
        while self._at < len(self._text):
            kind = self._match(_NAME)
            if kind not in ("input", "filter", "output"):
                self._fail("input, filter or output")
            self._brace()
            found += self._block(kind, ())
        if not found:
            self._fail("a section")
        return found

    def _block(self, kind: str, conditions: tuple[str, ...]) -> list[Plugin]:
        found: list[Plugin] = []
        previous = False
        while not self._take("}"):
            word = self._match(_NAME)
            if word == "if" or (word == "else" and previous):
                found += self._block(kind, (*conditions, self._condition(word)))
                previous = True
                continue
            found.append(Plugin(kind, word, self._settings(), conditions))
            previous = False
        return found

    def _condition(self, word: str) -> str:
        told = word
        while (piece := _CONDITION.match(self._text, self._at)) is not None:
            told += " " + piece.group().strip()
            self._at = piece.end()
        if told == "if" or told.count("[") != told.count("]") or told.count("(") != told.count(")"):
            self._fail("a condition")
        self._brace()
        return told

    def _settings(self) -> dict[str, Any]:
        self._brace()
        found: dict[str, Any] = {}
        while not self._take("}"):
            name = self._match(_NAME)
            if name in found:
                self._fail(f"{name} only once")
            self._need("=>")
            found[name] = self._value()
        return found

    def _value(self) -> Any:
        if self._take("["):
            return self._array()
        if self._take("{"):
            return self._hash()
        if (text := self._try(_STRING)) is not None:
            return text[1:-1]
        if (number := self._try(_NUMBER)) is not None:
            return float(number)
        word = self._match(_BAREWORD)
        return Plugin("codec", word, self._settings()) if self._peek("{") else word

    def _array(self) -> list[Any]:
        found: list[Any] = []
        while not self._take("]"):
            if found:
                self._need(",")
            found.append(self._value())
        return found

    def _hash(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._take("}"):
            key = self._value()
            self._need("=>")
            found[str(key)] = self._value()
        return found

    # -- the text

    def _blank(self) -> None:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        self._at = blank.end()

    def _peek(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _take(self, mark: str) -> bool:
        if not self._peek(mark):
            return False
        self._at += len(mark)
        self._blank()
        return True

    def _need(self, mark: str) -> None:
        if not self._take(mark):
            self._fail(mark)

    def _brace(self) -> None:
        self._need("{")

    def _try(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        self._blank()
        return found.group()

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = self._try(pattern)
        if found is None:
            self._fail(pattern.pattern)
        return found

    def _fail(self, expected: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        raise ValueError(f"line {line}: expected {expected}")
