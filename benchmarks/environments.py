"""Virtual environments for peers: alternatives that users could choose, kept apart from our own environment.

`peers/NAME.txt` lists what pip installs for NAME; `peers/NAME.py` runs there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"
_STORE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "streamdetect-bench"


def python_with(name: str) -> Path:
    """The interpreter of a peer's environment, created on first use and when its requirements or Python have changed.

    Raises CalledProcessError when pip cannot install it.
    """
    requirements = PEERS / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = _STORE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    marker = folder / "installed"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {name} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        marker.touch()
    return python
