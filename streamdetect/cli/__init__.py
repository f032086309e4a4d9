"""The command line: options, help, progress, messages and exit codes.

Belongs here: turning arguments into a call of `service` (or `config`, `synthetic`) and its result into text and an exit
code. Does not belong here: any decision about records, time or alerts.
"""

from __future__ import annotations

from streamdetect.cli.entry import main

__all__ = ["main"]
