"""The detector in a loop of your own: own events in, alerts out, state saved and restored.

A beacon calls home every 25 seconds for four hours; after two hours the process restarts from its saved state.

python examples/embed_detector.py
"""

import json
from collections.abc import Iterable

from streamdetect import Alert, Detector, NetworkEvent, Partition, Settings

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
PARTITION = Partition("sensor-7")
SETTINGS = Settings()  # the defaults; streamdetect.load_settings(path) reads a file


def beacon(start_ms: int, end_ms: int) -> Iterable[NetworkEvent]:
    for time_ms in range(start_ms, end_ms, 25_000):
        yield NetworkEvent(
            time_ms=time_ms,
            process="chrome.exe",
            process_entity_id="{8b1c-0001}",
            host_id="WS-042",
            destination_ip="45.83.64.1",
            destination_port=443,
        )


def run(detector: Detector, events: Iterable[NetworkEvent]) -> Iterable[Alert]:
    """Process the events of one partition in order; time moves with them."""
    processor = detector.processor(PARTITION)
    for event in events:
        verdict = processor.accept(event)  # "counted", "late", "future_time", or the reason it was filtered
        if verdict != "counted":
            print(f"not counted: {verdict}")
        yield from detector.advance()


def show(alerts: Iterable[Alert]) -> None:
    for alert in alerts:
        print(alert.action, json.loads(alert.body)["message"])


def main() -> None:
    first = Detector(SETTINGS)
    show(run(first, beacon(START_MS, START_MS + 2 * 3_600_000)))
    saved = [
        json.dumps(row) for row in first.export_state()
    ]  # between two ticks: write these rows to a store

    restored = Detector(SETTINGS)
    restored.import_state(map(json.loads, saved))
    show(run(restored, beacon(START_MS + 2 * 3_600_000, START_MS + 4 * 3_600_000)))
    show(restored.finish())  # bounded input only: evaluate the last tick


if __name__ == "__main__":
    main()
