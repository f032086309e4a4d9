"""Read alerts from Kafka, each alert id once, and print what happens to episodes.

Reads only committed transactions, so an alert of a crashed checkpoint is never seen. The alert id is the same for the
same detection, so a consumer that keeps the ids it has handled is exactly once even if it is itself restarted.

python examples/consume_alerts.py BOOTSTRAP_SERVERS [TOPIC]    ends after 10 s without a new alert
"""

import json
import sys

from kafka import KafkaConsumer


def main(servers: str, topic: str) -> int:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=10_000,
    )
    handled: set[str] = set()
    for record in consumer:
        alert = json.loads(record.value)
        alert_id = alert["event"]["id"]
        if alert_id in handled:
            continue
        episode_id, action = alert["streamdetect"]["episode_id"], alert["event"]["action"]
        print(f"{alert['@timestamp']} {action:8} {episode_id} {alert['message']}", flush=True)
        handled.add(alert_id)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "streamdetect.alerts"))
