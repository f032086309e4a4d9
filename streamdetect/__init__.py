"""Beacon detection over event streams: Kafka in, exact windows, one ECS alert out."""

__version__ = "0.1.0"
