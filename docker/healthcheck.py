"""Ends with 0 if the run in this container is alive, by its own /healthz; for HEALTHCHECK, which has no shell here."""

import http.client
import os
import sys

PORT = int(os.environ.get("STREAMDETECT__HTTP__PORT", "9464"))


def status() -> int:
    """Asked directly: urllib would go through a proxy named in the environment."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=3)
    connection.request("GET", "/healthz")
    return connection.getresponse().status


try:
    code = status()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer on port {PORT}: {error}")
sys.exit(None if code == http.client.OK else f"/healthz says {code}")
