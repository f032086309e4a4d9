"""How to reach the broker: client settings, which topics it has, and what a failure to reach it means.

What source and sink both need of Kafka belongs here, and is in one place because of it. Reading and writing
records do not, nor does any decision. With `sources/` and `sinks/kafka.py` this is the only door of kafka-python.
"""

from streamdetect.broker.connect import Connection, connect, reaching
from streamdetect.broker.names import nearest
from streamdetect.broker.settings import bootstrap_seconds
from streamdetect.broker.topics import Catalogue, Topic

__all__ = ["Catalogue", "Connection", "Topic", "bootstrap_seconds", "connect", "nearest", "reaching"]
