"""Metrics, health and the status page: what a run says of itself, on fakes and over real sockets."""

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
from streamdetect.detect.ranking import closest_keys, open_keys
from streamdetect.errors import ConfigError
from streamdetect.model import DeadLetter, Partition, Record
from streamdetect.service.live.dependencies import Dependencies
from streamdetect.service.live.loop import run_live
from streamdetect.service.status.http import Site, serving
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
    """Small numbers: 2 connections an hour over an hour are a beacon."""
    rule = {"min_connections_per_hour": 2, "min_duration_hours": 1, "id": "r1", "name": "two an hour"}
    kafka = {"topics": ["events"], "username": SECRETS[1], "password": SECRETS[0], "group_id": "g<1>"}
    return Settings.model_validate({"rules": [rule], "kafka": kafka, **sections})


class World:
    """A run on fakes, with vitals that listen; `poll` number n of the source calls `turns[n]`."""

    def __init__(self, **sections: Any) -> None:
        self.clock = ManualClock()
        self.settings = settings(**sections)
        self.source = MemorySource([ONE, TWO])
        self.vitals = RunStatus(self.settings, self.clock, lambda: START / 1000 + self.clock())
        self.site = Site(self.vitals)
        self._store = MemoryStore()

    def run(self, *acts: Any) -> None:
        """Each act is called between two turns; after the last one the run stops."""
        rest = list(acts)

        def stop() -> bool:
            if self.vitals.stage != "running":
                return False
            if not rest:
                return True
            self.clock.move(1.5)
            rest.pop(0)()
            return False

        around = Dependencies(
            source=self.source,
            ledger=MemoryTransactionalSink(),
            lock=MemoryLock(),
            open_store=lambda: self._store,
            reset_store=lambda: None,
            window=lambda _start_ms, ends: self.source.between(ends),
        )
        run_live(
            settings=self.settings,
            around=around,
            stop=stop,
            listener=self.vitals,
            clock=self.clock,
            wall_ms=lambda: START + 30 * HOUR,
        )

    def metrics(self) -> dict[str, float]:
        """`name{label=value,...}` -> number, of our own metrics."""
        return parsed(self.site.answer("/metrics").body.decode())


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


def test_each_figure_of_a_run_is_a_metric() -> None:
    """What went in is what the metrics say, with the arithmetic."""
    world = World()
    beacon(world)
    other = event(START + 2 * HOUR, network={"direction": "ingress"})
    world.source.add(ONE, other, b"no json", event(START + 2 * HOUR + 3 * 60_000))
    world.source.add(TWO, event(START + 2 * HOUR + 3 * 60_000, host={"id": "h2", "os": {"family": "linux"}}))
    nothing = lambda: None  # noqa: E731
    told: list[dict[str, float]] = []
    world.run(*[nothing] * 4, lambda: told.append(world.metrics()))
    found = told[0]
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
    # Checkpoints are made beside the loop, so what they say is certain only at the end.
    after = world.metrics()
    assert after["checkpoint_offset{partition=0,topic=events}"] == 9
    assert after["checkpoint_duration_seconds_count"] == 3  # the first, the one with the alert, and the last
    assert after["ready"] == 0
    consumed = sum(number for name, number in found.items() if name.startswith("records_consumed_total"))
    parts = ("records_counted_total", "records_filtered_total", "records_late_total", "dead_letters_total")
    assert consumed == sum(number for name, number in found.items() if name.startswith(parts))


def test_every_metric_of_the_page_exists_from_the_start() -> None:
    """A scrape before anything has happened has every family, so that a dashboard and a rule can rely on it."""
    vitals = RunStatus(settings())
    text = Site(vitals).answer("/metrics").body.decode()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert families >= set(metric_names())
    assert parsed(text)["ready"] == 0


def test_the_last_save_and_headroom() -> None:
    """Headroom is from the oldest record that is left to where the next start goes on."""
    world = World()
    beacon(world)
    nothing = lambda: None  # noqa: E731
    told: list[dict[str, float]] = []

    def look() -> None:
        world.vitals.bounds = {ONE: Bounds(2, 10), TWO: Bounds(0, 0)}

    world.run(*[nothing] * 3, look, nothing, lambda: told.append(world.metrics()))
    found = told[0]
    offset = found["checkpoint_offset{partition=0,topic=events}"]
    assert found["retention_headroom_records{partition=0,topic=events}"] == offset - 2
    assert found["consumer_lag_records{partition=0,topic=events}"] == 4  # the brokers' end 10, 6 records read
    assert found["checkpoint_last_success_timestamp_seconds"] >= START / 1000


def test_a_partition_that_is_gone_takes_its_series_along() -> None:
    """No series of a partition that is not read any more."""
    world = World()
    beacon(world)
    told: list[dict[str, float]] = []
    nothing = lambda: None  # noqa: E731

    def forget() -> None:
        world.source._records.pop(TWO)
        world.source._read.pop(TWO)

    world.run(nothing, nothing, forget, nothing, nothing, lambda: told.append(world.metrics()))
    assert not [name for name in told[0] if "partition=1" in name]
    assert [name for name in told[0] if "partition=0" in name]


def test_health_is_that_something_moves() -> None:
    """Alive until nothing has moved for a minute, whatever else is the case; ready only while work is done."""
    world = World()
    assert world.site.answer("/healthz").status == 200
    assert world.site.answer("/readyz").status == 503
    world.vitals.entered("waiting")
    world.clock.move(ALIVE_SECONDS - 1)
    assert world.site.answer("/healthz").status == 200
    assert b"another instance" in world.site.answer("/readyz").body
    world.clock.move(1)
    assert world.site.answer("/healthz").status == 503
    world.vitals.moved()
    assert world.site.answer("/healthz").status == 200
    verdicts: list[tuple[int, int]] = []

    def ask() -> None:
        verdicts.append((world.site.answer("/healthz").status, world.site.answer("/readyz").status))

    world.run(ask)
    ask()
    assert verdicts == [(200, 200), (200, 503)]  # while it runs; and when it has stopped


def test_a_partition_without_partitions_is_not_ready() -> None:
    """A run that reads nothing because there is nothing assigned says so."""
    world = World()
    world.source = MemorySource([ONE])
    told: list[bytes] = []

    def forget() -> None:
        world.source._records.clear()
        world.source._read.clear()

    nothing = lambda: None  # noqa: E731
    world.run(forget, nothing, nothing, lambda: told.append(world.site.answer("/readyz").body))
    assert told == [b"no partitions assigned\n"]


class Stuck(MemorySource):
    """Says that there are records and gives none."""

    more = 0
    answers = True

    def bounds(self) -> dict[Partition, Bounds]:
        if not self.answers:
            return {}
        return {one: Bounds(0, at.end + self.more) for one, at in super().bounds().items()}


def test_records_that_do_not_arrive_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """Assigned, lag, and nothing arrives for a minute: in log, metric and readiness; and when it is over again."""
    world = World()
    world.source = source = Stuck([ONE, TWO])
    beacon(world)
    watch = StallMonitor(world.vitals, world.clock)
    seen: list[tuple[float, int]] = []

    def look(seconds: float) -> None:
        world.vitals.moved()
        world.clock.move(seconds)
        world.vitals.moved()
        watch.look()
        seen.append((world.metrics()["partitions_stalled"], world.site.answer("/readyz").status))

    def lost() -> None:
        source.more = 5
        look(0)
        look(STALLED_SECONDS - 1)

    def long() -> None:
        look(1)

    def back() -> None:
        source.more = 0
        look(1)

    with caplog.at_level("INFO"):
        world.run(lambda: None, lambda: None, lambda: None, lost, long, back)
    # Both partitions: the fake adds 5 to each.
    assert seen == [(0, 200), (0, 200), (2, 503), (0, 200)]
    assert "no records have arrived for 60 s from events partition 0, events partition 1" in caplog.text
    assert "records arrive again from events partition 0, events partition 1" in caplog.text


def test_an_outage_is_no_stall() -> None:
    """Without an answer nothing is concluded, and the time does not count."""
    world = World()
    world.source = source = Stuck([ONE, TWO])
    source.more = 5
    watch = StallMonitor(world.vitals, world.clock)

    def look() -> None:
        watch.look()
        world.clock.move(STALLED_SECONDS / 2 + 1)
        world.vitals.moved()
        source.answers = False
        watch.look()
        source.answers = True
        world.clock.move(STALLED_SECONDS / 2 + 1)
        world.vitals.moved()
        watch.look()
        assert not world.vitals.stalled

    world.run(lambda: None, look)


def test_refused_records_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of them is one line, with how many there were, where, and what to do."""
    clock = ManualClock()
    vitals = RunStatus(settings(), clock)
    letters = [DeadLetter(Record(ONE, n, None, None, b"x"), "not_json", "not JSON") for n in range(1000)]
    vitals.refused(letters)
    vitals.refused(letters)
    clock.move(60)
    vitals.refused(letters[:1])
    told = [record.getMessage().split(" more")[0] for record in caplog.records]
    # The first is told at once; a minute later the other 1,999 and the new one.
    assert told == ["refused as not_json: 1", "refused as not_json: 2000"]
    assert "codec => json" in caplog.records[0].getMessage()


HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00"


def test_the_page_escapes_what_came_from_the_network() -> None:
    """Addresses, hosts, topics and the group are text, never markup."""
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
    world.run(*[nothing] * 4, lambda: pages.append(world.site.answer("/").body.decode()))
    page = pages[0]
    assert page.count("<script>") == 1  # its own
    assert html.escape(HOSTILE.lower()) in page  # the key is in lower case
    assert "g&lt;1&gt;" in page
    assert "g<1>" not in page
    assert "detecting" in page
    for secret in SECRETS:
        assert secret not in page
        assert secret not in world.site.answer("/metrics").body.decode()


def test_the_page_says_what_a_key_still_needs() -> None:
    """One event short of the rate: 2 connections an hour for 2 h are 4, and there are 3."""
    detector = Detector(settings())
    processor = detector.processor(ONE)
    from streamdetect.events import Decoder  # noqa: PLC0415

    decoder = Decoder("resilient", 1_000_000)
    for minute in (0, 50, 100):
        processor.accept(decoder.decode(event(START + minute * 60_000)), None, None)  # type: ignore[arg-type]
    detector.finish()
    (standing,) = closest_keys(detector, 5)
    assert standing.failed == "rate"
    assert not open_keys(detector)
    assert standing.score == 3 / 4  # 3 of 4 events; the span, one host and one process are met
    assert lacking(standing) == ["1 connections more at 2 h"]


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from(["a", "b", "c"]), st.sampled_from(["h1", "h2"])),
        max_size=60,
    )
)
def test_a_survey_agrees_with_the_verdicts(events: list[tuple[int, str, str]]) -> None:
    """Open are just the keys that are true; near ones are ordered, and each lacks something."""
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
def served(vitals: RunStatus, port: int) -> Iterator[str]:
    with serving(HttpSettings(port=port), vitals):
        yield f"http://127.0.0.1:{port}"


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_it_is_served_with_a_policy_that_lets_nothing_in() -> None:
    """Real requests: each path, an unknown one, OpenMetrics by its Accept header, and the headers of safety."""
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


def test_another_name_is_refused_on_loopback() -> None:
    """A web page whose name was made to resolve to this machine (DNS rebinding) reads nothing."""
    with served(RunStatus(settings()), free_port()) as url:
        assert get(f"{url}/", Host="evil.example")[0] == 421
        assert get(f"{url}/", Host="localhost:1")[0] == 200
        assert get(f"{url}/", Host="[::1]:1")[0] == 200


def test_a_port_that_is_taken_is_said_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Two instances on one machine: the second one works, without metrics."""
    port = free_port()
    with served(RunStatus(settings()), port) as url, serving(HttpSettings(port=port), RunStatus(settings())):
        assert get(f"{url}/healthz")[0] == 200
    assert f"http.port {port} is taken" in caplog.text


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_a_wrong_setting(host: str) -> None:
    """It will never work, so it is said at once."""
    with (
        pytest.raises(ConfigError, match=r"http\.host"),
        serving(HttpSettings(host=host), RunStatus(settings())),
    ):
        raise AssertionError("unreachable")


def test_many_clients_that_say_nothing_do_not_stop_it() -> None:
    """Open connections without a request take threads, never the one that accepts."""
    with served(RunStatus(settings()), port := free_port()) as url:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        try:
            assert get(f"{url}/healthz")[0] == 200
        finally:
            for one in idle:
                one.close()


def test_asking_while_the_loop_works_gives_no_error() -> None:
    """Pages and scrapes from another thread, while keys and partitions come and go."""
    world = World()
    done, failures = Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                for path in ("/", "/metrics", "/readyz"):
                    world.site.answer(path)
                world.site._page._pause = 0.0
            except Exception as error:  # noqa: BLE001
                failures.append(error)
                return

    from threading import Thread  # noqa: PLC0415

    asker = Thread(target=ask)
    asker.start()

    def add(turn: int) -> None:
        place = [{"address": f"d{turn}-{n}", "ip": "45.83.64.1", "port": 443} for n in range(50)]
        world.source.add(
            ONE, *(event(START + turn * 60_000, destination=one) for one in place for _ in range(3))
        )

    world.run(*[lambda turn=turn: add(turn) for turn in range(120)])
    done.set()
    asker.join()
    assert failures == []


def test_json_logs_stay_one_line() -> None:
    """A fact is a line, whatever its text holds."""
    import logging  # noqa: PLC0415

    from streamdetect.cli.logs import EcsFormatter  # noqa: PLC0415

    record = logging.LogRecord("a", logging.WARNING, "", 0, "one\ntwo %s", ("\n{}",), None)
    line = EcsFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "one\ntwo \n{}"


def test_a_real_browser_runs_the_page(tmp_path: Path) -> None:
    """Under its own policy the style applies and the script refreshes: else the last line would stay as it came."""
    need("chromium")
    world = World()
    beacon(world)
    world.source.add(ONE, event(START + 2 * HOUR + 180_000))
    world.source.add(TWO, event(START + 2 * HOUR + 180_000))
    world.run(*[lambda: None] * 4)
    with served(world.vitals, free_port()) as url:
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
