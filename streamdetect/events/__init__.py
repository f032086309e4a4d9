"""Bytes -> event, or a reason why not.

Everything that knows how bytes look lives here: JSON, the shapes of events.md (Elastic Defend, Sysmon
after the pipeline and raw from a dozen shippers), how Elasticsearch reads times, keywords, numbers and addresses,
and the two readings of a document (`strict`, `resilient`). Nothing here decides whether an event counts.

The doors of msgspec and orjson. What leaves this room to be kept can be written: its texts are valid UTF-8, its numbers
are of 64 bits, and so are the ticks and panes around its times.
"""

from streamdetect.events.decoder import Decoder, Refusal
from streamdetect.events.event import Event
from streamdetect.events.network_event import NetworkEvent

__all__ = ["Decoder", "Event", "NetworkEvent", "Refusal"]
