"""Replay the sample day with the real command and tell what the alert says. `make demo` runs this."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

SAMPLE = Path(__file__).parents[1] / "streamdetect" / "samples" / "day.jsonl.zst"


def main() -> int:
    """Run the demo; the exit code of the replay."""
    say = Console(stderr=True)
    command = [sys.executable, "-m", "streamdetect", "replay", str(SAMPLE)]
    say.print("[bold]streamdetect replay streamdetect/samples/day.jsonl.zst[/]")
    replay = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    alerts = [json.loads(line) for line in replay.stdout.splitlines()]
    for alert in alerts:
        if alert["event"]["action"] == "opened":
            print(json.dumps(shortened(alert), indent=2))
            say.print(f"\n{explanation(alert)}", highlight=False, soft_wrap=True)
    return replay.returncode


def shortened(alert: dict[str, Any]) -> dict[str, Any]:
    """The alert without the long list of panes."""
    panes = alert["streamdetect"]["pane_counts"]
    return {**alert, "streamdetect": {**alert["streamdetect"], "pane_counts": f"... {len(panes)} panes ..."}}


def explanation(alert: dict[str, Any]) -> str:
    """The condition of the hunt with this alert's numbers in it."""
    ours = alert["streamdetect"]
    figures, thresholds = ours["figures"], ours["thresholds"]
    count, hours = figures["count_connections"], figures["duration_hours"]
    rate = figures["number_of_con_per_hour"]
    return "\n".join(
        [
            f"[bold]{alert['message']}[/]",
            f"  {count} connections in {hours} h: {count} // {hours} = {rate} an hour, "
            f"and {thresholds['min_connections_per_hour']} are enough;",
            f"  {hours} h of at least {thresholds['min_duration_hours']} (3 h 30 min round to 4);",
            f"  {figures['hosts']} host and {figures['count_unique_pids']} process instance in the whole estate.",
            "The sample hides two more beacons that must not be found: one from two processes, one too slow.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
