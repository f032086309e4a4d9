"""Bytes -> event, or the reason why a record is none.

Belongs here: JSON, the record shapes of docs/events.md (Elastic Defend, Sysmon after Elastic's pipeline, and raw Sysmon
of a dozen shippers), how Elasticsearch reads times, keywords, numbers and addresses, and the two profiles of a document
(`strict`, `resilient`). Does not belong here: whether an event counts.

Only this package imports msgspec. All values that are kept can be serialised: texts are valid UTF-8, numbers fit into
64 bits, and so do the ticks and panes around each event time.
"""

from streamdetect.events.decoder import Decoder, Refusal
from streamdetect.events.event import Event
from streamdetect.events.network_event import NetworkEvent

__all__ = ["Decoder", "Event", "NetworkEvent", "Refusal"]
