"""Errors that end a command. Each has its own exit code and says what the operator should do.

    StreamdetectError            1   a bug, if it is none of those below
      UsageError                 2   wrong usage
      ConfigError                3   configuration invalid
      KafkaError                 4   Kafka unreachable, or it refused us
      CheckpointError            5   checkpoint unusable
      FencedError                6   another instance owns this work
      LostOffsetsError           7   the records to continue from are gone
      SinkError                  8   the alert or dead-letter sink failed
      StateError                 9   state could not be saved
      InputError                10   input file unreadable

`AlertOpened` (20) is no failure: `replay --fail-on-alert` found something. Nor is `ExpectationFailed` (21): `backtest`
found that an expectation does not hold.
A message is one or more whole sentences: what happened, then what to do. It never holds a secret.
"""

from __future__ import annotations


class StreamdetectError(Exception):
    """Base of every error that ends a command."""

    exit_code = 1


class UsageError(StreamdetectError):
    exit_code = 2


class ConfigError(StreamdetectError):
    """Every problem of a configuration, one line each, in `problems`."""

    exit_code = 3

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []

    @classmethod
    def listing(cls, name: str, problems: list[str]) -> ConfigError:
        """All problems of what is called `name`."""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return cls("\n".join([f"{name} is not valid, {count}:", *problems]), problems)


class KafkaError(StreamdetectError):
    exit_code = 4


class CheckpointError(StreamdetectError):
    exit_code = 5


class FencedError(StreamdetectError):
    exit_code = 6


class LostOffsetsError(StreamdetectError):
    exit_code = 7


class SinkError(StreamdetectError):
    exit_code = 8


class StateError(StreamdetectError):
    exit_code = 9


class InputError(StreamdetectError):
    exit_code = 10


class AlertOpened(StreamdetectError):  # noqa: N818 - it is no error
    exit_code = 20


class ExpectationFailed(StreamdetectError):  # noqa: N818 - it is no error
    exit_code = 21
