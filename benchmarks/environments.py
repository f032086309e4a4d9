"""What users would pick instead, each in a virtual environment of its own, so that nothing of it touches ours.

`peers/NAME.txt` is what pip installs for NAME, `peers/NAME.py` is run there.
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
    """The interpreter of a peer's environment, made on first use and again when what it needs has changed.

    Raises CalledProcessError when pip cannot install it.
    """
    wanted = PEERS / f"{name}.txt"
    mark = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = _STORE / f"{name}-{mark}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {name} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        done.touch()
    return python
