"""Metrics, probes, status page and stall monitor of a run, on fakes and over real sockets."""

from __future__ import annotations

import html
import json
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from product import event
from prometheus_client.parser import text_string_to_metric_families

from streamdetect.checkpoint.memory import MemoryStore
from streamdetect.config import HttpSettings, Settings
from streamdetect.detect import Detector
from streamdetect.errors import ConfigError
from streamdetect.findings.ranking import closest_keys, open_keys
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.loop import run_live
from streamdetect.service.status.http import Endpoints, status_server
from streamdetect.service.status.metrics import metric_names
from streamdetect.service.status.page import lacking
from streamdetect.service.status.stalls import STALLED_SECONDS, StallMonitor
from streamdetect.service.status.state import ALIVE_SECONDS, RunStatus
from streamdetect.sources import Bounds
from streamdetect.testing import ManualClock, MemoryLock, MemorySource, MemoryTransactionalSink
from tools import need

BROWSER = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)
ONE, TWO = Partition("events", 0), Partition("events", 1)
HOUR = 3_600_000
START = 1_772_409_600_000  # 2026-03-02T00:00:00Z
SECRETS = ("hunter2-password", "alice-the-user")


def settings(**sections: Any) -> Settings:
    """Small thresholds: 2 connections an hour for one hour are a beacon."""
    rule = {"min_connections_per_hour": 2, "min_duration_hours": 1, "id": "r1", "name": "two an hour"}
    kafka = {"topics": ["events"], "username": SECRETS[1], "password": SECRETS[0], "group_id": "g<1>"}
    return Settings.model_validate({"rules": [rule], "kafka": kafka, **sections})


class World:
    """A run on fakes, with a run status that listens."""

    def __init__(self, **sections: Any) -> None:
        self.clock = ManualClock()
        self.turn_seconds = 1.5
        self.settings = settings(**sections)
        self.source = MemorySource([ONE, TWO])
        self.status = RunStatus(self.settings, self.clock, lambda: START / 1000 + self.clock())
        self.endpoints = Endpoints(self.status)
        self._store = MemoryStore()

    def run(self, *actions: Any) -> None:
        """Run; each action is called between two turns, and the run stops after the last one."""
        rest = list(actions)

        def stop() -> bool:
            if self.status.stage != "running":
                return False
            if not rest:
                return True
            self.clock.move(self.turn_seconds)
            rest.pop(0)()
            return False

        dependencies = Dependencies(
            source=self.source,
            sink=MemoryTransactionalSink(),
            lock=MemoryLock(),
            open_store=lambda: self._store,
            reset_store=lambda: None,
            open_window=lambda _start_ms, ends: self.source.between(ends),
        )
        run_live(
            settings=self.settings,
            dependencies=dependencies,
            stop=stop,
            listener=self.status,
            clock=self.clock,
            wall_ms=lambda: START + 30 * HOUR,
        )

    def metrics(self) -> dict[str, float]:
        """{`name{label=value,...}`: number} of all metrics, names without the prefix of streamdetect."""
        return parsed(self.endpoints.get("/metrics").body.decode())


def parsed(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name.removeprefix("streamdetect_") + (f"{{{labels}}}" if labels else "")] = (
                sample.value
            )
    return found


def beacon(world: World) -> None:
    """Partition 0: an event each 20 minutes from 00:00 to 01:40, 6 in 100 minutes, which round to 2 hours."""
    world.source.add(ONE, *(event(START + minute * 60_000) for minute in range(0, 101, 20)))


def test_metrics_agree_with_the_run() -> None:
    """The metrics of a small run have the values that its records give by hand."""
    world = World()
    beacon(world)
    other = event(START + 2 * HOUR, network={"direction": "ingress"})
    world.source.add(ONE, other, b"no json", event(START + 2 * HOUR + 3 * 60_000))
    world.source.add(TWO, event(START + 2 * HOUR + 3 * 60_000, host={"id": "h2", "os": {"family": "linux"}}))
    nothing = lambda: None  # noqa: E731
    scrapes: list[dict[str, float]] = []
    world.run(*[nothing] * 4, lambda: scrapes.append(world.metrics()))
    found = scrapes[0]
    expected = {
        "records_consumed_total{partition=0,topic=events}": 9,  # 6 of the beacon and 3
        "records_consumed_total{partition=1,topic=events}": 1,
        "records_counted_total": 7,  # the beacon's and the one at 02:03
        "records_filtered_total{reason=network.direction}": 1,
        "records_filtered_total{reason=host.os.family}": 1,
        "records_filtered_total{reason=exception}": 0,
        "records_late_total": 0,
        "dead_letters_total{reason=not_json}": 1,
        "dead_letters_total{reason=no_time}": 0,
        "late_arrivals_total": 0,
        "state_keys": 1,
        "state_keys_limit": 2_000_000,
        "state_evictions_total{reason=max_keys}": 0,
        # The watermark is 02:03 less 2 minutes. The ticks are 00:05 to 02:00. At 00:45 the span is 40 min = 1 h,
        # with 3 connections: opened. None has 6 h to be updated, and it stays true: 6 // 2 = 3 an hour.
        "watermark_timestamp_seconds": (START + 2 * HOUR + 60_000) / 1000,
        "ticks_total": 24,
        "open_episodes{rule=r1}": 1,
        "alerts_total{action=opened,rule=r1}": 1,
        "alerts_total{action=updated,rule=r1}": 0,
        "alerts_total{action=resolved,rule=r1}": 0,
        "consumer_lag_records{partition=0,topic=events}": 0,
        "partitions_assigned": 2,
        "partitions_stalled": 0,
        "checkpoint_failures_total": 0,
        "checkpoint_interval_seconds": 30,
        "work_owned{group_id=g<1>}": 1,
        "ready": 1,
        "suspect_leaps": 0,
        "event_processing_seconds_count": 2,  # one batch of each partition
        "rule_info{name=two an hour,rule=r1}": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    # Checkpoints are saved in another thread, so their metrics are certain only at the end.
    after = world.metrics()
    assert after["checkpoint_offset{partition=0,topic=events}"] == 9
    assert after["checkpoint_duration_seconds_count"] == 3  # the first, the one with the alert, and the last
    assert after["ready"] == 0
    consumed = sum(number for name, number in found.items() if name.startswith("records_consumed_total"))
    parts = ("records_counted_total", "records_filtered_total", "records_late_total", "dead_letters_total")
    assert consumed == sum(number for name, number in found.items() if name.startswith(parts))


def sums(found: dict[str, float]) -> tuple[float, float]:
    """Records consumed, and the sum of their verdicts."""
    verdicts = ("records_counted_total", "records_filtered_total", "records_late_total", "dead_letters_total")
    consumed = sum(number for name, number in found.items() if name.startswith("records_consumed_total"))
    return consumed, sum(number for name, number in found.items() if name.startswith(verdicts))


def test_verdicts_add_up_in_each_scrape() -> None:
    """A scrape between two snapshots, a second apart, shows one moment: consumed equals the sum of the verdicts."""
    world = World()
    world.turn_seconds = 0.3  # several turns for each snapshot
    found: list[dict[str, float]] = []

    def add_and_scrape() -> None:
        world.source.add(
            ONE, event(START + len(found) * 60_000), b"no json", event(START, process={"name": "x"})
        )
        found.append(world.metrics())

    world.run(*[add_and_scrape] * 16)
    assert [sums(one)[0] for one in found] == sorted(sums(one)[0] for one in found)
    assert sums(found[-1])[0] > 0
    for one in found:
        consumed, verdicts = sums(one)
        assert consumed == verdicts


def test_every_metric_exists_from_the_start() -> None:
    """A scrape of a new process has every metric family, so that dashboards and alert rules can rely on them."""
    status = RunStatus(settings())
    text = Endpoints(status).get("/metrics").body.decode()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert families >= set(metric_names())
    assert parsed(text)["ready"] == 0


def test_checkpoint_and_retention_headroom() -> None:
    """Headroom is counted from the oldest record in Kafka to the offset at which the next start continues."""
    world = World()
    beacon(world)
    nothing = lambda: None  # noqa: E731
    scrapes: list[dict[str, float]] = []

    def set_bounds() -> None:
        world.status.bounds = {ONE: Bounds(2, 10), TWO: Bounds(0, 0)}

    world.run(*[nothing] * 3, set_bounds, nothing, lambda: scrapes.append(world.metrics()))
    found = scrapes[0]
    offset = found["checkpoint_offset{partition=0,topic=events}"]
    assert found["retention_headroom_records{partition=0,topic=events}"] == offset - 2
    assert found["consumer_lag_records{partition=0,topic=events}"] == 4  # the brokers' end 10, 6 records read
    assert found["checkpoint_last_success_timestamp_seconds"] >= START / 1000


def test_the_series_of_a_removed_partition_end() -> None:
    """There is no series of a partition that is no longer read."""
    world = World()
    beacon(world)
    scrapes: list[dict[str, float]] = []
    nothing = lambda: None  # noqa: E731

    def forget() -> None:
        world.source._records.pop(TWO)
        world.source._read.pop(TWO)

    world.run(nothing, nothing, forget, nothing, nothing, lambda: scrapes.append(world.metrics()))
    assert not [name for name in scrapes[0] if "partition=1" in name]
    assert [name for name in scrapes[0] if "partition=0" in name]


def test_probes_follow_progress_and_stage() -> None:
    """/healthz fails after a minute without progress, in any stage; /readyz is 200 only while records are read."""
    world = World()
    assert world.endpoints.get("/healthz").status == 200
    assert world.endpoints.get("/readyz").status == 503
    world.status.stage_entered("waiting")
    world.clock.move(ALIVE_SECONDS - 1)
    assert world.endpoints.get("/healthz").status == 200
    assert b"another instance" in world.endpoints.get("/readyz").body
    world.clock.move(1)
    assert world.endpoints.get("/healthz").status == 503
    world.status.progressed()
    assert world.endpoints.get("/healthz").status == 200
    statuses: list[tuple[int, int]] = []

    def probe() -> None:
        statuses.append((world.endpoints.get("/healthz").status, world.endpoints.get("/readyz").status))

    world.run(probe)
    probe()
    assert statuses == [(200, 200), (200, 503)]  # while it runs, and after it has stopped


def test_a_run_without_partitions_is_not_ready() -> None:
    """/readyz names the reason when no partitions are assigned."""
    world = World()
    world.source = MemorySource([ONE])
    scrapes: list[bytes] = []

    def forget() -> None:
        world.source._records.clear()
        world.source._read.clear()

    nothing = lambda: None  # noqa: E731
    world.run(forget, nothing, nothing, lambda: scrapes.append(world.endpoints.get("/readyz").body))
    assert scrapes == [b"no partitions assigned\n"]


class StalledSource(MemorySource):
    """Reports `more` unread records and does not deliver them."""

    more = 0
    answers = True

    def bounds(self) -> dict[Partition, Bounds]:
        if not self.answers:
            return {}
        return {one: Bounds(0, at.end + self.more) for one, at in super().bounds().items()}


def test_a_stall_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Unread records that do not arrive for a minute are in log, metric and readiness; so is the end of the stall."""
    world = World()
    world.source = source = StalledSource([ONE, TWO])
    beacon(world)
    monitor = StallMonitor(world.status, world.clock)
    seen: list[tuple[float, int]] = []

    def check_after(seconds: float) -> None:
        world.status.progressed()
        world.clock.move(seconds)
        world.status.progressed()
        monitor.check()
        seen.append((world.metrics()["partitions_stalled"], world.endpoints.get("/readyz").status))

    def begin_stall() -> None:
        source.more = 5
        check_after(0)
        check_after(STALLED_SECONDS - 1)

    def continue_stall() -> None:
        check_after(1)

    def end_stall() -> None:
        source.more = 0
        check_after(1)

    with caplog.at_level("INFO"):
        world.run(lambda: None, lambda: None, lambda: None, begin_stall, continue_stall, end_stall)
    # Both partitions: the fake adds 5 to each.
    assert seen == [(0, 200), (0, 200), (2, 503), (0, 200)]
    assert "no records have arrived for 60 s from events partition 0, events partition 1" in caplog.text
    assert "records arrive again from events partition 0, events partition 1" in caplog.text


def test_an_outage_is_not_a_stall() -> None:
    """A check without an answer from the brokers resets the time."""
    world = World()
    world.source = source = StalledSource([ONE, TWO])
    source.more = 5
    monitor = StallMonitor(world.status, world.clock)

    def interrupt() -> None:
        monitor.check()
        world.clock.move(STALLED_SECONDS / 2 + 1)
        world.status.progressed()
        source.answers = False
        monitor.check()
        source.answers = True
        world.clock.move(STALLED_SECONDS / 2 + 1)
        world.status.progressed()
        monitor.check()
        assert not world.status.stalled

    world.run(lambda: None, interrupt)


def test_refused_records_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Many refused records of one reason are one log line with their number, the latest one and a hint."""
    clock = ManualClock()
    status = RunStatus(settings(), clock)
    dead_letters = [DeadLetter(Record(ONE, n, None, None, b"x"), "not_json", "not JSON") for n in range(1000)]
    status.dead_lettered(dead_letters)
    status.dead_lettered(dead_letters)
    clock.move(60)
    status.dead_lettered(dead_letters[:1])
    messages = [record.getMessage().split(" more")[0] for record in caplog.records]
    # The first is logged immediately; a minute later the other 1,999 and the new one.
    assert messages == ["refused as not_json: 1", "refused as not_json: 2000"]
    assert "codec => json" in caplog.records[0].getMessage()


HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00"


def test_the_page_escapes_texts_from_the_network() -> None:
    """Addresses, hosts, topics and the consumer group are escaped; no secret is on the page or in the metrics."""
    world = World()
    for minute in range(0, 101, 20):
        more = {
            "destination": {"address": HOSTILE, "ip": "45.83.64.1", "port": 443},
            "host": {"id": "h1", "name": HOSTILE, "os": {"family": "windows"}},
        }
        world.source.add(ONE, event(START + minute * 60_000, **more))
    world.source.add(ONE, event(START + 2 * HOUR), b"<b>")
    world.source.add(TWO, event(START + 2 * HOUR))
    pages: list[str] = []
    nothing = lambda: None  # noqa: E731
    world.run(*[nothing] * 4, lambda: pages.append(world.endpoints.get("/").body.decode()))
    page = pages[0]
    assert page.count("<script>") == 1  # that of the page
    assert html.escape(HOSTILE.lower()) in page  # the key is in lower case
    assert "g&lt;1&gt;" in page
    assert "g<1>" not in page
    assert "detecting" in page
    for secret in SECRETS:
        assert secret not in page
        assert secret not in world.endpoints.get("/metrics").body.decode()


def test_the_page_shows_what_a_key_lacks() -> None:
    """One event short of the rate: 2 connections an hour for 2 h are 4, and there are 3."""
    detector = Detector(settings())
    processor = detector.processor(ONE)
    from streamdetect.events import Decoder  # noqa: PLC0415

    decoder = Decoder("resilient", 1_000_000)
    for minute in (0, 50, 100):
        processor.accept(decoder.decode(event(START + minute * 60_000)), None, None)  # type: ignore[arg-type]
    detector.finish()
    (status,) = closest_keys(detector, 5)
    assert status.failed == "rate"
    assert not open_keys(detector)
    assert status.score == 3 / 4  # 3 of 4 events; the span, one host and one process are met
    assert lacking(status) == ["1 connections more at 2 h"]


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from(["a", "b", "c"]), st.sampled_from(["h1", "h2"])),
        max_size=60,
    )
)
def test_the_ranking_agrees_with_the_conditions(events: list[tuple[int, str, str]]) -> None:
    """`open_keys` are those whose condition is true; `closest_keys` are ordered, and each lacks something."""
    from streamdetect.events import Decoder  # noqa: PLC0415

    detector = Detector(settings())
    decoder = Decoder("resilient", 1_000_000)
    for minute, name, host in sorted(events):
        place = {"address": name, "ip": "45.83.64.1", "port": 443}
        record = event(
            START + minute * 60_000, destination=place, host={"id": host, "os": {"family": "windows"}}
        )
        detector.processor(ONE).accept(decoder.decode(record), None, None)  # type: ignore[arg-type]
    detector.finish()
    assert sum(detector.open_episodes().values()) == len(open_keys(detector))
    assert all(one.failed is None for one in open_keys(detector))
    near = closest_keys(detector, 10)
    assert all(one.failed is not None and lacking(one) for one in near)
    assert all(0 <= one.score <= 1 for one in near)
    order = [(one.blocked, -one.score) for one in near]
    assert order == sorted(order)


# -- over real sockets


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def served(status: RunStatus, port: int) -> Iterator[str]:
    with status_server(HttpSettings(port=port), status):
        yield f"http://127.0.0.1:{port}"


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_responses_and_their_security_headers() -> None:
    """Real requests to each path and an unknown one, OpenMetrics by Accept header, and the security headers."""
    with served(RunStatus(settings()), free_port()) as url:
        status, page, headers = get(f"{url}/")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "<title>streamdetect" in page
        assert get(f"{url}/healthz")[:2] == (200, "ok\n")
        assert get(f"{url}/readyz?x=1")[:2] == (503, "connecting\n")
        assert get(f"{url}/nothing")[0] == 404
        assert get(f"{url}/metrics")[2]["Content-Type"].startswith("text/plain")
        opened = get(f"{url}/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert opened[2]["Content-Type"].startswith("application/openmetrics-text")
        assert opened[1].endswith("# EOF\n")


def test_a_foreign_host_header_is_refused_on_loopback() -> None:
    """A web page whose name resolves to this machine (DNS rebinding) can read nothing."""
    with served(RunStatus(settings()), free_port()) as url:
        assert get(f"{url}/", Host="evil.example")[0] == 421
        assert get(f"{url}/", Host="localhost:1")[0] == 200
        assert get(f"{url}/", Host="[::1]:1")[0] == 200


def test_a_port_in_use_is_logged_and_the_run_continues(caplog: pytest.LogCaptureFixture) -> None:
    """Of two instances on one machine with the same port the second runs without metrics."""
    port = free_port()
    with (
        served(RunStatus(settings()), port) as url,
        status_server(HttpSettings(port=port), RunStatus(settings())),
    ):
        assert get(f"{url}/healthz")[0] == 200
    assert f"http.port {port} is in use" in caplog.text


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_a_configuration_error(host: str) -> None:
    """It can never be bound, so there is no retry."""
    with (
        pytest.raises(ConfigError, match=r"http\.host"),
        status_server(HttpSettings(host=host), RunStatus(settings())),
    ):
        raise AssertionError("unreachable")


def test_silent_clients_do_not_block_the_server() -> None:
    """Open connections without a request occupy threads, but not the one that accepts connections."""
    with served(RunStatus(settings()), port := free_port()) as url:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        try:
            assert get(f"{url}/healthz")[0] == 200
        finally:
            for one in idle:
                one.close()


def test_requests_during_the_run_cause_no_error() -> None:
    """Requests from another thread while keys and partitions come and go."""
    world = World()
    done, failures = Event(), []

    def request() -> None:
        while not done.is_set():
            try:
                for path in ("/", "/metrics", "/readyz"):
                    world.endpoints.get(path)
                world.endpoints._page._pause = 0.0
            except Exception as error:  # noqa: BLE001
                failures.append(error)
                return

    from threading import Thread  # noqa: PLC0415

    client = Thread(target=request)
    client.start()

    def add(turn: int) -> None:
        place = [{"address": f"d{turn}-{n}", "ip": "45.83.64.1", "port": 443} for n in range(50)]
        world.source.add(
            ONE, *(event(START + turn * 60_000, destination=one) for one in place for _ in range(3))
        )

    world.run(*[lambda turn=turn: add(turn) for turn in range(120)])
    done.set()
    client.join()
    assert failures == []


def test_a_json_log_record_is_one_line() -> None:
    """A log record is one line of JSON, whatever its text contains."""
    import logging  # noqa: PLC0415

    from streamdetect.cli.logs import EcsFormatter  # noqa: PLC0415

    record = logging.LogRecord("a", logging.WARNING, "", 0, "one\ntwo %s", ("\n{}",), None)
    line = EcsFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "one\ntwo \n{}"


def test_a_real_browser_runs_the_page(tmp_path: Path) -> None:
    """Under the page's policy the script runs and refreshes the page."""
    need("chromium")
    world = World()
    beacon(world)
    world.source.add(ONE, event(START + 2 * HOUR + 180_000))
    world.source.add(TWO, event(START + 2 * HOUR + 180_000))
    world.run(*[lambda: None] * 4)
    with served(world.status, free_port()) as url:
        found = subprocess.run(
            [*BROWSER, f"--user-data-dir={tmp_path}", "--virtual-time-budget=12000", "--dump-dom", f"{url}/"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert "refreshed every 5 s" in found.stdout
    assert "45.83.64.1" in found.stdout
    assert "Content Security Policy" not in found.stderr
