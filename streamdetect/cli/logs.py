"""Logs on standard error: text for people, or JSON with ECS field names for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from streamdetect.cli.options import Verbosity
from streamdetect.config import LogSettings

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CHATTY = "kafka"
_SELF_CONCERNED = "kafka.net.selector"
"""Logger that warns about its own event loop being busy, which is of no use to an operator."""


def configure(settings: LogSettings, verbosity: Verbosity) -> None:
    """Log to standard error with level and format of `settings`, unless the command line overrides them."""
    level = _LEVELS[settings.level]
    if verbosity.level:
        level = (
            logging.DEBUG
            if verbosity.level > 0
            else logging.WARNING
            if verbosity.level == -1
            else logging.ERROR
        )
    handler = logging.StreamHandler(sys.stderr)
    json_wanted = (verbosity.log_format or settings.format) == "json"
    handler.setFormatter(EcsFormatter() if json_wanted else TextFormatter())
    if verbosity.level <= 1:
        handler.addFilter(CalmClient())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The Kafka client logs every connection; -vv shows it.
    logging.getLogger(_CHATTY).setLevel(
        logging.NOTSET if verbosity.level > 1 else max(level, logging.WARNING)
    )


class CalmClient(logging.Filter):
    """Rate limit for the Kafka client, which repeats messages many times a second while a broker is down.

    Passes each message once per `seconds`, without its tracebacks: our own messages say what they mean. -vv shows all.
    """

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._last_shown: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_CHATTY):
            return True
        if record.name == _SELF_CONCERNED and record.levelno < logging.ERROR:
            return False
        record.exc_info = record.exc_text = None
        now, what = self._clock(), (record.name, str(record.msg))
        if now - self._last_shown.get(what, float("-inf")) < self._seconds:
            return False
        self._last_shown[what] = now
        return True


def as_json() -> bool:
    """Whether logs are written as JSON."""
    return any(isinstance(handler.formatter, EcsFormatter) for handler in logging.getLogger().handlers)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_line(logger: str, level: str, message: str) -> str:
    """One message as a line of the JSON log."""
    record = logging.LogRecord(logger, _LEVELS[level], "", 0, message, None, None)
    return EcsFormatter().format(record)


class TextFormatter(logging.Formatter):
    """`2026-03-02T04:00:00.000Z INFO streamdetect.service: message`, followed by a traceback, if any."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        return _time(record)


class EcsFormatter(logging.Formatter):
    """One JSON object per line, with ECS field names."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "@timestamp": _time(record),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "ecs.version": "8.17.0",
            "log.logger": record.name,
            "process.thread.name": record.threadName,
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error.type"] = record.exc_info[0].__name__
            fields["error.message"] = str(record.exc_info[1])
            fields["error.stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
