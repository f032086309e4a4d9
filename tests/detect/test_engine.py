"""The engine beyond parity: one key at a time, idle partitions, bounded memory, clock leaps over years."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from product import run, settings_from

from strategies import DataSet, data_sets
from streamdetect.config import Settings
from streamdetect.detect import (
    COUNTED,
    LATE,
    Detector,
    KeyedStep,
    Listener,
    PartitionProcessor,
    Rule,
    windows,
)
from streamdetect.detect.alerts import Key
from streamdetect.detect.episodes import evaluate
from streamdetect.detect.networks import Networks
from streamdetect.events import Decoder, Event
from streamdetect.model import (
    Alert,
    ContextTuple,
    EventContext,
    EventKind,
    Flow,
    Many,
    Partition,
    address_key_of,
)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
T0_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z, a tick of every interval used here
CONTEXT = EventContext(("h1",), ("p1",), "h1", "WS-1", "p1", 7, None, None, None, None, 443, None)
CONTEXT_TUPLE: ContextTuple = tuple(CONTEXT)
FLOW = Flow.to("egress", 443, "45.83.64.1", ("45.83.64.1",))
KIND = EventKind(None, "windows", "network", "chrome.exe", "endpoint", False)


@dataclass
class FakeEvent:
    """An event that is built without decoding a record."""

    time_ms: int
    event_flow: Flow = FLOW
    context_tuple: ContextTuple = CONTEXT_TUPLE
    event_kind: EventKind = KIND

    @property
    def process_name(self) -> str | Many | None:
        return self.event_kind.process_name

    def flow(self) -> Flow:
        return self.event_flow

    def kind(self) -> EventKind:
        return self.event_kind

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        return self.context_tuple

    def host(self) -> str | None:
        return str(self.context_tuple[0][0])


def flow_to(address: str) -> Flow:
    return Flow.to("egress", 443, address, (address,))


class RecordingListener(Listener):
    """Records what the engine reports."""

    def __init__(self) -> None:
        self.late = 0
        self.evictions = 0
        self.ticks: list[int] = []

    def late_arrival(self, partition: Partition) -> None:
        self.late += 1

    def evaluated(self, tick_ms: int, keys: int) -> None:
        self.ticks.append(tick_ms)

    def evicted(self, rule_id: str, keys: int) -> None:
        self.evictions += keys


def make_detector(**sections: Any) -> tuple[Detector, PartitionProcessor, RecordingListener]:
    """A detector with the given sections in place of the defaults, its first partition processor, and its listener."""
    listener = RecordingListener()
    detector = Detector(Settings.model_validate(sections), listener)
    return detector, detector.processor(Partition("a")), listener


def actions(alerts: list[Any]) -> list[tuple[str, int]]:
    return [(alert.action, alert.tick_ms - T0_MS) for alert in alerts]


def keyed_lines(data_set: DataSet) -> list[str]:
    """Alerts of a replay in which every key has its own KeyedStep, saved and restored between any two calls."""
    chosen = settings_from(data_set.settings)
    decoder = Decoder(chosen.profile, chosen.limits.max_record_bytes)
    clocks = Detector(chosen)
    states: dict[tuple[int, Key], Any] = defaultdict(lambda: None)
    rules = clocks.rules
    alerts = []
    for number, records in enumerate(data_set.partitions):
        processor = clocks.processor(Partition(f"file-{number}"))
        for record in records:
            raw = record.encode() if isinstance(record, str) else json.dumps(record).encode()
            event = decoder.decode(raw)
            if not isinstance(event, Event):
                continue
            watermark_ms = processor.watermark_ms
            if processor.accept(event) != COUNTED:
                continue
            flow, kind = event.flow(), event.kind()
            context = event.context(flow, kind)
            for index, rule in enumerate(rules):
                if rule.filter(flow, kind) is None and not rule.excepts(flow, kind, context):
                    for address in flow.addresses:
                        key = Key(address, str(kind.process_name), kind.sensor)
                        step = KeyedStep(rule, key, states[index, key])
                        step.on_event(event.time_ms, watermark_ms, context)
                        states[index, key] = json.loads(json.dumps(step.snapshot()))
    newest_ms = max(
        (now for processor in clocks.processors.values() if (now := processor.clock.now_ms) is not None),
        default=None,
    )
    if newest_ms is None:
        return []
    interval_ms = chosen.time.interval_ms
    last_ms = newest_ms - newest_ms % interval_ms + interval_ms
    for (index, key), state in states.items():
        alerts += [
            (tick, key.order(), index, alert) for tick, alert in notified(rules[index], key, state, last_ms)
        ]
    alerts.sort(key=lambda item: item[:3])
    return [alert.body.decode() for *_, alert in alerts]


def notified(rule: Rule, key: Key, state: Any, last_ms: int) -> Iterator[tuple[int, Alert]]:
    """Fire the timers of one key up to the last tick."""
    while True:
        step = KeyedStep(rule, key, state)
        tick_ms = step.notify_at()
        if tick_ms is None or tick_ms > last_ms:
            return
        for alert in step.on_notify(tick_ms):
            yield tick_ms, alert
        state = json.loads(json.dumps(step.snapshot()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data_sets())
def test_keyed_steps_give_the_alerts_of_the_engine(data_set: DataSet) -> None:
    """The keyed step, saved and restored at every call, and the embedded engine send the same bytes."""
    assert keyed_lines(data_set) == run(data_set.partitions, data_set.settings).lines


def test_opens_at_480_events_over_three_and_a_half_hours() -> None:
    """480 = 120 x 4 events, the last at 3 h 30 min = 12,600,000 ms: opened at the tick after it, 3 h 35 min."""
    detector, processor, _ = make_detector()
    for index in range(479):
        # The last of these is at 478 x 20 s = 9,560 s.
        assert processor.accept(FakeEvent(T0_MS + index * 20_000)) == COUNTED
    processor.accept(FakeEvent(T0_MS + 12_600_000))
    assert actions(detector.finish()) == [("opened", 12_900_000)]


def test_one_millisecond_less_rounds_to_three_hours() -> None:
    """12,599,999 ms round to 3 h, and 3 < 4."""
    detector, processor, _ = make_detector()
    for index in range(600):
        processor.accept(FakeEvent(T0_MS + index * 20_000))
    processor.accept(FakeEvent(T0_MS + 12_599_999))
    assert detector.finish() == []


def test_events_of_a_returning_idle_partition_count_from_the_next_tick() -> None:
    """A is at 02:00 and B idle: ticks up to 01:55 were evaluated, so B's event of 00:10 first counts at 02:00."""
    detector, processor, listener = make_detector()
    other = detector.processor(Partition("b"))
    other.idle = True
    processor.accept(FakeEvent(T0_MS + 2 * HOUR_MS))
    detector.advance()  # w = 01:58, so the last tick evaluated is 01:55
    assert detector.evaluated_ms == T0_MS + 115 * MINUTE_MS
    other.idle = False
    assert other.accept(FakeEvent(T0_MS + 10 * MINUTE_MS)) == COUNTED
    assert listener.late == 1
    other.idle = True
    processor.accept(FakeEvent(T0_MS + 3 * HOUR_MS))
    detector.advance()
    assert listener.ticks[0] == T0_MS + 2 * HOUR_MS


def test_slow_and_empty_partitions_hold_the_watermark_back() -> None:
    """The watermark is the minimum over partitions that are not idle; before a first event it is minus infinity."""
    detector, processor, _ = make_detector()
    other = detector.processor(Partition("b"))
    processor.accept(FakeEvent(T0_MS + HOUR_MS))
    assert detector.watermark_ms() is None
    other.accept(FakeEvent(T0_MS))
    assert detector.watermark_ms() == T0_MS - 2 * MINUTE_MS
    other.idle = True
    assert detector.watermark_ms() == T0_MS + HOUR_MS - 2 * MINUTE_MS
    processor.idle = True
    other.accept(FakeEvent(T0_MS + HOUR_MS))
    other.accept(FakeEvent(T0_MS + 2 * HOUR_MS))  # one hour ahead is within the allowed jump
    assert detector.watermark_ms() == T0_MS + 2 * HOUR_MS - 2 * MINUTE_MS  # all idle: the newest


def test_a_leap_over_ten_thousand_years_is_cheap() -> None:
    """A first record in 1970, the next in the year 11,970: billions of ticks counted, fewer than ten evaluated."""
    detector, processor, listener = make_detector()
    processor.accept(FakeEvent(0))
    far_ms = 10_000 * 365 * 24 * HOUR_MS
    processor.accept(FakeEvent(far_ms))
    processor.accept(FakeEvent(far_ms, context_tuple=tuple(CONTEXT._replace(hosts=("h2",)))))
    detector.finish()
    # From tick 00:05 of 1970, one every 300,000 ms, up to the first one beyond far_ms.
    assert detector.ticks == far_ms // 300_000 + 1
    assert len(listener.ticks) < 10


def test_memory_is_bounded_and_open_episodes_are_kept() -> None:
    """With max_keys 100, 1,000 one-event keys evict each other but never the beacon."""
    detector, processor, listener = make_detector(limits={"max_keys": 100})
    for index in range(720):
        processor.accept(FakeEvent(T0_MS + index * 20_000))  # 4 h at 180 an hour
    opened = detector.advance()
    for index in range(1_000):
        processor.accept(FakeEvent(T0_MS + 4 * HOUR_MS + index, flow_to(f"9.9.{index // 250}.{index % 250}")))
    alerts = detector.finish()
    assert [alert.action for alert in (*opened, *alerts)] == ["opened"]
    assert detector.keys <= 100
    assert sum(detector.open_episodes().values()) == 1
    assert listener.evictions == 1_001 - detector.keys
    assert detector.keys_peak <= 100


LiveKeys = frozenset[tuple[str, Key]]  # (rule id, key)
HALF_HOUR_MS = 30 * MINUTE_MS


class CheckedDetector(Detector):
    """A detector that compares its keys with the oracle's after each tick."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.live_keys: dict[int, LiveKeys] = {}
        self._limit_keys = self._engine.limit_keys
        self._engine.limit_keys = self.limit_keys_checked  # type: ignore[method-assign]

    def limit_keys_checked(self, tick_ms: int) -> None:
        expected = expected_keys(self, tick_ms)
        self._limit_keys(tick_ms)
        self.live_keys[tick_ms] = frozenset(map(rule_and_key, key_rows(self)))
        assert self.live_keys[tick_ms] == expected
        for group in self.groups():  # each key is listed exactly once
            lists = [*group.expiries.values(), *group.protected.values()]
            listed = [address for addresses in lists for address in addresses]
            assert len(listed) == len(group.states)
            assert set(listed) == set(group.states)


def key_rows(detector: Detector) -> list[Any]:
    return [row for row in detector.export_state() if row["kind"] == "key"]


def rule_and_key(row: Any) -> tuple[str, Key]:
    return row["rule"], Key(*row["key"])


def expected_keys(detector: Detector, tick_ms: int) -> LiveKeys:
    """Oracle of semantics.md §6: evict keys without an open episode in eviction order, down to max_keys."""
    time = detector.settings.time
    ranks = {rule.id: number for number, rule in enumerate(detector.settings.rules)}
    need = [r.min_connections_per_hour * max(1, r.min_duration_hours) for r in detector.settings.rules]

    def order(row: Any) -> tuple[Any, ...]:
        panes = [pane for pane in row["panes"] if pane[0] >= tick_ms - time.lookback_ms]
        events = sum(pane[2] for pane in panes)
        rank = ranks[row["rule"]]
        return (
            2 * events >= need[rank],
            panes[-1][1] // time.interval_ms,
            events,
            Key(*row["key"]).order(),
            rank,
        )

    rows = key_rows(detector)
    candidates = sorted((row for row in rows if row["episode"] is None), key=order)
    evicted = candidates[: max(0, len(rows) - detector.settings.limits.max_keys)]
    return frozenset(map(rule_and_key, rows)) - frozenset(map(rule_and_key, evicted))


SETTINGS = st.fixed_dictionaries(
    {
        "profile": st.sampled_from(["strict", "resilient"]),
        "time": st.fixed_dictionaries(
            {
                "interval": st.just("30m"),
                "lookback": st.sampled_from(["1h", "2h", "4h"]),
                "lateness": st.sampled_from(["0s", "30m", "1h"]),
            }
        ),
        "limits": st.fixed_dictionaries({"max_keys": st.integers(1, 8)}),
        "rules": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.just("crowded"),
                    "processes": st.sampled_from([["chrome.exe"], ["chrome.exe", "svchost.exe"]]),
                    "min_connections_per_hour": st.integers(1, 6),
                    "min_duration_hours": st.integers(0, 1),
                }
            ),
            min_size=1,
            max_size=2,
        ),
    }
)
# Quarters of an hour since the previous event, address, process, process instance, sensor.
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5, -3, -9]),
        st.sampled_from([None, "", *"abcdefgh"]),
        st.sampled_from(["chrome.exe", "chrome.exe", "svchost.exe"]),
        st.sampled_from(["p1", "p1", "p1", "p2"]),
        st.sampled_from(["endpoint", "sysmon"]),
    ),
    min_size=20,
    max_size=120,
)


def run_arrivals(
    chosen: Settings, arrivals: list[Any], rng: Random | None
) -> tuple[CheckedDetector, list[bytes]]:
    """Process all arrivals at once; or in batches, sometimes with the state saved, shuffled and restored in between."""
    detector, alerts = CheckedDetector(chosen), []
    time_ms = T0_MS
    for quarters, address, process, instance, sensor in arrivals:
        time_ms += quarters * 15 * MINUTE_MS
        kind = KIND._replace(process_name=process, sensor=sensor)
        if chosen.profile == "strict":
            kind = kind._replace(sensor=None)
        context_tuple = tuple(CONTEXT._replace(processes=(instance,)))
        detector.processor(Partition("a")).accept(
            FakeEvent(time_ms, Flow.to("egress", 443, FLOW.ip, (address,)), context_tuple, kind)
        )
        if rng is not None and rng.random() < 0.5:
            alerts += detector.advance()
        if rng is not None and rng.random() < 0.1:
            detector = restored(detector, rng)
    alerts += detector.finish()
    return detector, [alert.body for alert in alerts]


def restored(detector: CheckedDetector, rng: Random) -> CheckedDetector:
    progress, *rows = [json.loads(json.dumps(row)) for row in detector.export_state()]
    rng.shuffle(rows)
    detector_copy = CheckedDetector(detector.settings)
    detector_copy.import_state([progress, *rows])
    detector_copy.live_keys = detector.live_keys
    return detector_copy


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETTINGS, ARRIVALS, st.integers(0, 2**32))
def test_evictions_equal_the_oracle(plain: Any, arrivals: list[Any], seed: int) -> None:
    """The same keys at every tick, independent of batches, saves and the order of keys."""
    plain["rules"] = [rule | {"id": f"rule-{number}"} for number, rule in enumerate(plain["rules"])]
    chosen = Settings.model_validate(plain)
    at_once, alerts = run_arrivals(chosen, arrivals, None)
    in_batches, same_alerts = run_arrivals(chosen, arrivals, Random(seed))
    assert alerts == same_alerts
    assert frozenset(map(rule_and_key, key_rows(at_once))) == frozenset(
        map(rule_and_key, key_rows(in_batches))
    )
    for tick_ms in at_once.live_keys.keys() & in_batches.live_keys.keys():
        assert at_once.live_keys[tick_ms] == in_batches.live_keys[tick_ms]


def test_eviction_prefers_silent_keys_and_spares_those_near_the_thresholds() -> None:
    """480 = 120 x 4 events are needed, so 240 protect a key; with max_keys 2, each new key evicts another."""
    detector, processor, _ = make_detector(limits={"max_keys": 2})
    alive = []
    for pane, (address, events) in enumerate(
        [("near", 240), ("239", 239), ("one", 1), ("two", 2), ("new", 240), ("newer", 240)]
    ):
        for index in range(events):
            seen = Flow.to("egress", 443, FLOW.ip, (address,))
            processor.accept(FakeEvent(T0_MS + pane * 5 * MINUTE_MS + index, seen))
        detector.advance_to(T0_MS + (pane + 1) * 5 * MINUTE_MS)
        alive.append([row["key"][0] for row in key_rows(detector)])
    assert alive[2:] == [["near", "one"], ["near", "two"], ["near", "new"], ["new", "newer"]]


def test_changes_include_evicted_keys() -> None:
    """An evicted key is in the changes of the next checkpoint, as forgotten."""
    detector, processor, listener = make_detector(limits={"max_keys": 2})
    detector.track_changes()
    processor.accept(FakeEvent(T0_MS, flow_to("9.9.9.1")))
    processor.accept(FakeEvent(T0_MS, flow_to("9.9.9.2")))
    detector.advance_to(T0_MS + 5 * MINUTE_MS)
    assert {row["kind"] for row in detector.take_changes().key_rows()} == {"key"}
    processor.accept(FakeEvent(T0_MS + 5 * MINUTE_MS, flow_to("9.9.9.3")))
    detector.advance_to(T0_MS + 10 * MINUTE_MS)
    changes = [(row["kind"], row["key"][0]) for row in detector.take_changes().key_rows()]
    assert changes == [("key", "9.9.9.3"), ("forgotten", "9.9.9.1")]
    assert listener.evictions == 1


def test_a_tick_does_not_drain_panes_that_a_checkpoint_still_reads() -> None:
    """A pending pane is drained while it is folded only after release: first without release, then with it."""
    detector, processor, _ = make_detector()
    detector.track_changes()
    for pane in range(2):
        for number in range(1_200):
            processor.accept(
                FakeEvent(T0_MS + pane * 5 * MINUTE_MS, flow_to(f"9.9.{number // 250}.{number % 250}"))
            )
        changes = detector.take_changes()
        if pane == 0:
            detector.advance_to(T0_MS + 5 * MINUTE_MS)
            assert len(list(changes.waiting_rows())) == 1_200
        else:
            changes.release()
            detector.advance_to(T0_MS + 10 * MINUTE_MS)
            assert list(changes.waiting_rows()) == []
    assert detector.keys == 1_200


def test_eviction_reads_only_panes_that_can_contain_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten panes of 100 keys, the oldest protected (2 of 4 events), then 10 keys over the limit at each of two ticks."""
    rule = {"name": "small", "min_connections_per_hour": 4, "min_duration_hours": 1}
    detector, processor, listener = make_detector(limits={"max_keys": 1_000}, rules=[rule])
    panes_read: list[windows.Panes] = []
    total_and_newest_ms = windows.total_and_newest_ms

    def recording(panes: windows.Panes, oldest_ms: int) -> tuple[int, int]:
        panes_read.append(panes)
        return total_and_newest_ms(panes, oldest_ms)

    monkeypatch.setattr(windows, "total_and_newest_ms", recording)
    found = []
    for pane in range(12):
        for index in range(100 if pane < 10 else 10):
            for _ in range(2 if pane == 0 else 1):
                processor.accept(FakeEvent(T0_MS + pane * 5 * MINUTE_MS, flow_to(f"9.9.{pane}.{index}")))
        detector.advance_to(T0_MS + (pane + 1) * 5 * MINUTE_MS)
        found.append(len(panes_read))
        panes_read.clear()
    assert found[10:] == [200, 90]  # the oldest pane is read once; 10 keys of the second were evicted
    assert listener.evictions == 20


def test_keys_are_removed_when_their_events_leave_the_window() -> None:
    """A key is removed 24 h after its last pane."""
    detector, processor, _ = make_detector()
    processor.accept(FakeEvent(T0_MS))
    processor.accept(FakeEvent(T0_MS + 30 * MINUTE_MS, flow_to("9.9.9.9")))
    detector.advance_to(T0_MS + 24 * HOUR_MS)
    assert detector.keys == 2  # [T0, T0 + 24 h) includes both
    detector.advance_to(T0_MS + 24 * HOUR_MS + 5 * MINUTE_MS)
    assert detector.keys == 1
    detector.advance_to(T0_MS + 25 * HOUR_MS)
    assert detector.keys == 0


def test_late_starts_one_millisecond_before_watermark_minus_lookback() -> None:
    """With w = T0 - 2 min, t = w - 24 h counts (though no window includes it); one ms earlier is late."""
    _, processor, _ = make_detector()
    processor.accept(FakeEvent(T0_MS))
    edge_ms = T0_MS - 2 * MINUTE_MS - 24 * HOUR_MS
    assert processor.accept(FakeEvent(edge_ms)) == COUNTED
    assert processor.accept(FakeEvent(edge_ms - 1)) == LATE


def test_popular_destinations_do_not_grow() -> None:
    """After 10,000 hosts in one pane, a key keeps the newest limit + 1."""
    detector, processor, _ = make_detector()
    for index in range(10_000):
        context = CONTEXT._replace(hosts=(f"h{index}",), processes=(f"p{index}",))
        processor.accept(FakeEvent(T0_MS + index, context_tuple=tuple(context)))
    detector.finish()
    rows = [row for row in detector.export_state() if row["kind"] == "key"]
    assert [len(seen) for seen in rows[0]["recent"]] == [2, 2]


def test_the_garbage_collector_does_not_track_keys() -> None:
    """Window states are exact tuples of text, bytes and numbers, so a collection does not traverse a million keys."""
    detector, processor, _ = make_detector()
    processor.accept(FakeEvent(T0_MS))
    processor.accept(FakeEvent(T0_MS + 1, flow_to("9.9.9.9"), tuple(CONTEXT._replace(hosts=("h2",)))))
    processor.accept(FakeEvent(T0_MS + 2, flow_to("9.9.9.9")))
    detector.finish()
    for _ in range(4):
        gc.collect()  # once per tuple level: a tuple is untracked once everything in it is
    (group,) = detector.groups()
    state = group.states[address_key_of("9.9.9.9")]
    assert state[2] is not None  # two hosts: the larger representation
    assert not any(gc.is_tracked(state) for state in group.states.values())


def test_networks_include_their_edges() -> None:
    """First and last address are inside, neighbours outside; an entry without a prefix is a /32."""
    networks = Networks(["10.0.0.0/8", "192.0.2.7", "fe80::/10", "11.0.0.0/8"])
    inside = ["10.0.0.0", "10.255.255.255", "11.255.255.255", "192.0.2.7", "fe80::", "febf:ffff::1"]
    outside = ["9.255.255.255", "12.0.0.0", "192.0.2.6", "192.0.2.8", "fec0::", "::10.1.2.3"]
    assert [address in networks for address in inside + outside] == [True] * 6 + [False] * 6


def test_a_timer_is_never_in_the_past() -> None:
    """A state shared with rules of larger limits keeps more than limit + 1 hosts: only the second newest sets a timer.

    A limit of one host; h3 left the window long ago, h2 is in it until tick 24 h + 10 min.
    """
    hosts = (("h1", T0_MS + 6 * MINUTE_MS), ("h2", T0_MS + 5 * MINUTE_MS), ("h3", T0_MS - 48 * HOUR_MS))
    panes = windows.pack_panes([windows.Pane(T0_MS + 5 * MINUTE_MS, T0_MS + 6 * MINUTE_MS, 1_000)])
    detector, _, _ = make_detector()
    tick_ms = T0_MS + 10 * MINUTE_MS
    outcome = evaluate(
        (panes, CONTEXT_TUPLE, (hosts, (("p1", T0_MS),))), None, tick_ms, detector.rules[0].limits
    )
    assert outcome.next_timer_ms == T0_MS + 5 * MINUTE_MS + 5 * MINUTE_MS + 24 * HOUR_MS
