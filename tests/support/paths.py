"""Where tests find files of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
DATA = ROOT / "tests" / "data"
SAMPLE = ROOT / "streamdetect" / "samples" / "day.jsonl.zst"
CAPTURES = ROOT.parent / "shared" / "data"
"""Real captures, which are not part of the repository: tests of them are skipped where they are missing."""
