"""YAML for settings: plain values of YAML 1.2, no duplicate keys, the line of every setting.

YAML 1.1 reads `12:30` as 750, `no` as false and a time as an object; here a value other than a number, `true`, `false`
or `null` is text. Errors never quote the file: the line might contain a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from streamdetect.config.names import SettingPath
from streamdetect.errors import ConfigError

_PLAIN = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (r"<<", ["<"]),
}
_QUOTED = re.compile(r"""\s*['"].*['"]""", re.DOTALL)


_OWN_TOKEN = re.compile(r"""['"](<[a-z ]+>|[-,:?\[\]{}])['"]""")


class YamlError(Exception):
    """The text is not usable YAML: `line` (from 1, or None) and what is wrong, without quoting the text."""

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the values of YAML 1.2; refuses duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise YamlError(
                        line, f"{key.value!r} is set twice (first in line {seen[key.value]}); keep one"
                    )
                seen[key.value] = line
        return super().construct_mapping(node, deep)


for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def read_yaml_file(path: str) -> tuple[Any, dict[SettingPath, int]]:
    """As `read_yaml`, for a file. Raises ConfigError with its name."""
    try:
        return read_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a readable file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except YamlError as error:
        where = "file" if error.line is None else f"line {error.line}"
        raise ConfigError.listing(path, [f"{where}: {error.problem}"]) from None


def read_yaml(text: str) -> tuple[Any, dict[SettingPath, int]]:
    """The value of a YAML text and the line of every path in it. Raises YamlError if it is not usable."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)  # refuses characters that YAML does not allow
        node = loader.get_single_node()
        if node is None:
            return None, {}
        value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _unquoted(error.problem or error.context or "")
        raise YamlError(None if mark is None else mark.line + 1, f"is not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise YamlError(
            None, "is not valid YAML: it contains characters or values that YAML does not allow"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()
    lines: dict[SettingPath, int] = {}
    _note_lines(node, (), lines, set())
    return value, lines


def _unquoted(problem: str) -> str:
    """PyYAML's message without quotes from the file; its own names of tokens stay."""
    if all(_OWN_TOKEN.fullmatch(quoted) for quoted in re.findall(r"""['"][^'"]*['"]""", problem)):
        return problem
    return _QUOTED.sub("", problem)


def _note_lines(node: yaml.Node, path: SettingPath, lines: dict[SettingPath, int], seen: set[int]) -> None:
    """Visit each node once: a short file with nested aliases would otherwise never end."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner: SettingPath = (*path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*path, index)
            lines[inner] = value.start_mark.line + 1
            _note_lines(value, inner, lines, seen)
