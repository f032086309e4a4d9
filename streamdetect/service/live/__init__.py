"""A live run: reads Kafka and publishes alerts until stopped.

Belongs here: startup, ownership of the consumer group, the loop, the commit protocol, recovery and rebuild. The loop
reports to a `listener`; metrics and HTTP are in `service.status`.
"""
