"""Replays the sample day with the real command and explains its alert. `make demo` runs this."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

SAMPLE = Path(__file__).parents[1] / "streamdetect" / "samples" / "day.jsonl.zst"


def main() -> int:
    """Run the demo and return the exit code of the replay."""
    console = Console(stderr=True)
    command = [sys.executable, "-m", "streamdetect", "replay", str(SAMPLE)]
    console.print("[bold]streamdetect replay streamdetect/samples/day.jsonl.zst[/]")
    replay = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    alerts = [json.loads(line) for line in replay.stdout.splitlines()]
    for alert in alerts:
        if alert["event"]["action"] == "opened":
            print(json.dumps(shortened(alert), indent=2))
            console.print(f"\n{explanation(alert)}", highlight=False, soft_wrap=True)
    return replay.returncode


def shortened(alert: dict[str, Any]) -> dict[str, Any]:
    """The alert, with the list of panes abbreviated."""
    panes = alert["streamdetect"]["pane_counts"]
    return {**alert, "streamdetect": {**alert["streamdetect"], "pane_counts": f"... {len(panes)} panes ..."}}


def explanation(alert: dict[str, Any]) -> str:
    """The condition of the hunt with the numbers of this alert."""
    detection = alert["streamdetect"]
    figures, thresholds = detection["figures"], detection["thresholds"]
    count, hours = figures["count_connections"], figures["duration_hours"]
    rate = figures["number_of_con_per_hour"]
    return "\n".join(
        [
            f"[bold]{alert['message']}[/]",
            f"  {count} connections in {hours} h: {count} // {hours} = {rate} an hour, "
            f"at least {thresholds['min_connections_per_hour']} required;",
            f"  {hours} h, at least {thresholds['min_duration_hours']} required (3 h 30 min are rounded to 4);",
            f"  {figures['hosts']} host and {figures['count_unique_pids']} process instance, counted over all hosts.",
            "The sample contains two more beacons that must not be found: one from two processes, one too slow.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
