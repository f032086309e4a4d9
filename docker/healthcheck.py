"""HEALTHCHECK command: exits with 0 if /healthz of the run in this container answers 200. It needs no shell."""

import http.client
import os
import sys

PORT = int(os.environ.get("STREAMDETECT__HTTP__PORT", "9464"))


def status() -> int:
    """Status code of /healthz. Uses http.client because urllib would use a proxy from the environment."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=3)
    connection.request("GET", "/healthz")
    return connection.getresponse().status


try:
    code = status()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer on port {PORT}: {error}")
sys.exit(None if code == http.client.OK else f"/healthz answers {code}")
