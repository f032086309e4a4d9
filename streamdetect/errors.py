"""Errors that end a command. Each has its own exit code and says what the operator should do.

    StreamdetectError            1   a bug, unless it is one of those below
      UsageError                 2   wrong usage
      ConfigError                3   configuration invalid
      KafkaError                 4   Kafka is unreachable or refused the connection
      CheckpointError            5   checkpoint unusable
      FencedError                6   another instance owns the consumer group (fenced)
      LostOffsetsError           7   the records to continue from were deleted by retention
      SinkError                  8   the alert or dead-letter sink failed
      StateError                 9   state could not be saved
      InputError                10   input file unreadable

Two are results, not failures: `AlertOpened` (20, `replay --fail-on-alert`) and `ExpectationFailed` (21, `backtest
--expect`). A message is one or more whole sentences: what happened, then what to do. It never contains a secret.
"""

from __future__ import annotations


class StreamdetectError(Exception):
    """Base of every error that ends a command."""

    exit_code = 1


class UsageError(StreamdetectError):
    exit_code = 2


class ConfigError(StreamdetectError):
    """Lists every problem of a configuration, one line each, in `problems`."""

    exit_code = 3

    def __init__(self, message: str, problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []

    @classmethod
    def listing(cls, name: str, problems: list[str]) -> ConfigError:
        """An error that lists all problems of the file or input `name`."""
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


class AlertOpened(StreamdetectError):  # noqa: N818 - not an error
    exit_code = 20


class ExpectationFailed(StreamdetectError):  # noqa: N818 - not an error
    exit_code = 21
