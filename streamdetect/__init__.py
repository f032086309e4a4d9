"""Beacon detection over event streams: Kafka in, exact windows, one ECS alert out.

`streamdetect.backtest` replays files from Python; all else is the command `streamdetect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdetect.api import Backtest, backtest

__version__ = "0.1.0"
__all__ = ["Backtest", "__version__", "backtest"]


def __getattr__(name: str) -> object:
    """The interface is imported when it is first used: commands and help do not need it."""
    if name in {"Backtest", "backtest"}:
        from streamdetect import api  # noqa: PLC0415 - as above

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
