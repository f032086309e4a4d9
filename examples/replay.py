"""Replay files from Python and print one line for each episode that opened.

python examples/replay.py PATH...
"""

import sys

import streamdetect


def main(paths: list[str]) -> int:
    result = streamdetect.replay(paths, settings={"rules.0.renotify": "12h"})
    for alert in result.alerts:
        if alert["event"]["action"] == "opened":
            figures = alert["streamdetect"]["figures"]
            print(
                f"{alert['@timestamp']} {alert['host']['name']} {alert['process']['name']}"
                f" -> {alert['destination']['address']}: {figures['count_connections']} connections"
                f" // {figures['duration_hours']} h = {figures['number_of_con_per_hour']} an hour"
            )
    summary = result.summary
    print(f"{summary['consumed']} records, {summary['counted']} counted, {summary['filtered']}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except streamdetect.StreamdetectError as error:
        sys.exit(f"error: {error}")
