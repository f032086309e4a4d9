"""What a live run exposes about itself: run status, metrics, health checks, status page, stall monitor.

Listens to `service.live` and decides nothing. The door of prometheus-client.
"""
