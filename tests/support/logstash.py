"""A strict parser of Logstash configurations, following the grammar in logstash-core's `grammar.treetop`.

Conditions are taken as text up to their brace: here they only need to be balanced and not empty.
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
    """One plugin with its settings; `codec => json { ... }` is a plugin as well."""

    kind: str
    name: str
    settings: dict[str, Any]
    conditions: tuple[str, ...] = ()


class Parser:
    """Recursive descent parser over one text; raises ValueError with the line number."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0

    def parse(self) -> list[Plugin]:
        """All plugins of the file, in order."""
        found: list[Plugin] = []
        self._skip_blank()
        while self._position < len(self._text):
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
        while not self._accept("}"):
            word = self._match(_NAME)
            if word == "if" or (word == "else" and previous):
                found += self._block(kind, (*conditions, self._condition(word)))
                previous = True
                continue
            found.append(Plugin(kind, word, self._settings(), conditions))
            previous = False
        return found

    def _condition(self, word: str) -> str:
        condition = word
        while (piece := _CONDITION.match(self._text, self._position)) is not None:
            condition += " " + piece.group().strip()
            self._position = piece.end()
        if (
            condition == "if"
            or condition.count("[") != condition.count("]")
            or condition.count("(") != condition.count(")")
        ):
            self._fail("a condition")
        self._brace()
        return condition

    def _settings(self) -> dict[str, Any]:
        self._brace()
        found: dict[str, Any] = {}
        while not self._accept("}"):
            name = self._match(_NAME)
            if name in found:
                self._fail(f"{name} only once")
            self._expect("=>")
            found[name] = self._value()
        return found

    def _value(self) -> Any:
        if self._accept("["):
            return self._array()
        if self._accept("{"):
            return self._hash()
        if (text := self._try(_STRING)) is not None:
            return text[1:-1]
        if (number := self._try(_NUMBER)) is not None:
            return float(number)
        word = self._match(_BAREWORD)
        return Plugin("codec", word, self._settings()) if self._peek("{") else word

    def _array(self) -> list[Any]:
        found: list[Any] = []
        while not self._accept("]"):
            if found:
                self._expect(",")
            found.append(self._value())
        return found

    def _hash(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._accept("}"):
            key = self._value()
            self._expect("=>")
            found[str(key)] = self._value()
        return found

    # -- the text

    def _skip_blank(self) -> None:
        blank = _BLANK.match(self._text, self._position)
        assert blank is not None
        self._position = blank.end()

    def _peek(self, token: str) -> bool:
        return self._text.startswith(token, self._position)

    def _accept(self, token: str) -> bool:
        if not self._peek(token):
            return False
        self._position += len(token)
        self._skip_blank()
        return True

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            self._fail(token)

    def _brace(self) -> None:
        self._expect("{")

    def _try(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._text, self._position)
        if found is None:
            return None
        self._position = found.end()
        self._skip_blank()
        return found.group()

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = self._try(pattern)
        if found is None:
            self._fail(pattern.pattern)
        return found

    def _fail(self, expected: str) -> NoReturn:
        line = self._text.count("\n", 0, self._position) + 1
        raise ValueError(f"line {line}: expected {expected}")
