"""Beacon detection over event streams: Kafka in, exact windows, one ECS alert out.

The command `streamdetect` runs it; these names are the Python interface. They are documented in docs/api.md and shown
in use in `examples/`. Other modules may change in any release.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdetect.api import Backtest, Replay, backtest, replay
    from streamdetect.config import Settings, load_settings
    from streamdetect.detect import Detector, Listener
    from streamdetect.errors import StreamdetectError
    from streamdetect.events import Decoder, NetworkEvent, Refusal
    from streamdetect.findings.episodes import Episode, episodes_of
    from streamdetect.model import Alert, Partition

__version__ = "0.1.0"
__all__ = [
    "Alert",
    "Backtest",
    "Decoder",
    "Detector",
    "Episode",
    "Listener",
    "NetworkEvent",
    "Partition",
    "Refusal",
    "Replay",
    "Settings",
    "StreamdetectError",
    "__version__",
    "backtest",
    "episodes_of",
    "load_settings",
    "replay",
]

_HOMES = {
    "api": ("Backtest", "Replay", "backtest", "replay"),
    "config": ("Settings", "load_settings"),
    "detect": ("Detector", "Listener"),
    "errors": ("StreamdetectError",),
    "events": ("Decoder", "NetworkEvent", "Refusal"),
    "findings.episodes": ("Episode", "episodes_of"),
    "model": ("Alert", "Partition"),
}


def __getattr__(name: str) -> object:
    """Import a name on first use: commands and their help do not need most of them."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"streamdetect.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
