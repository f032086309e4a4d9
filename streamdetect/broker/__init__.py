"""How to reach the broker: client settings, the topics it has, and the cause of a failure to reach it.

Belongs here: what both the sources and the sinks need of Kafka. Does not belong here: reading and writing records, and
any decision. Only this package, `sources/` and `sinks/` import kafka-python.
"""

from streamdetect.broker.catalogue import Catalogue, Topic
from streamdetect.broker.client_settings import bootstrap_seconds
from streamdetect.broker.connect import Connection, connect, reaching
from streamdetect.broker.similar_names import similar_names

__all__ = ["Catalogue", "Connection", "Topic", "bootstrap_seconds", "connect", "reaching", "similar_names"]
