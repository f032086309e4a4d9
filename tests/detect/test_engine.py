"""The engine beyond parity: one key on its own, idle partitions, bounded memory, leaps over years."""

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
DETAILS = EventContext(("h1",), ("p1",), "h1", "WS-1", "p1", 7, None, None, None, None, 443, None)
FACTS: ContextTuple = tuple(DETAILS)
FLOW = Flow.to("egress", 443, "45.83.64.1", ("45.83.64.1",))
KIND = EventKind(None, "windows", "network", "chrome.exe", "endpoint", False)


@dataclass
class Seen:
    """An event that needs no bytes."""

    time_ms: int
    went: Flow = FLOW
    known: ContextTuple = FACTS
    what: EventKind = KIND

    @property
    def process_name(self) -> str | Many | None:
        return self.what.process_name

    def flow(self) -> Flow:
        return self.went

    def kind(self) -> EventKind:
        return self.what

    def context(self, flow: Flow, kind: EventKind) -> ContextTuple:
        return self.known

    def host(self) -> str | None:
        return str(self.known[0][0])


def to(address: str) -> Flow:
    return Flow.to("egress", 443, address, (address,))


class Ear(Listener):
    """Keeps what the engine reports."""

    def __init__(self) -> None:
        self.late = 0
        self.lost = 0
        self.ticks: list[int] = []

    def late_arrival(self, partition: Partition) -> None:
        self.late += 1

    def evaluated(self, tick_ms: int, keys: int) -> None:
        self.ticks.append(tick_ms)

    def evicted(self, rule_id: str, keys: int) -> None:
        self.lost += keys


def make(**changed: Any) -> tuple[Detector, PartitionProcessor, Ear]:
    """A detector with `rules[0]` and sections changed, its first lane, and its listener."""
    ear = Ear()
    detector = Detector(Settings.model_validate(changed), ear)
    return detector, detector.processor(Partition("a")), ear


def actions(alerts: list[Any]) -> list[tuple[str, int]]:
    return [(alert.action, alert.tick_ms - T0_MS) for alert in alerts]


def keyed_lines(data_set: DataSet) -> list[str]:
    """Every key on its own in a KeyedStep that is saved and restored between any two calls."""
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
    """Wake one key at every tick it asks for, up to the last."""
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
def test_each_key_on_its_own_gives_what_the_engine_gives(data_set: DataSet) -> None:
    """The keyed step, saved and restored at every call, and the embedded engine send the same bytes."""
    assert keyed_lines(data_set) == run(data_set.partitions, data_set.settings).lines


def test_opens_at_480_events_over_three_and_a_half_hours() -> None:
    """480 = 120 x 4 events, the last at 3 h 30 min = 12,600,000 ms: opened at the tick after it, 3 h 35 min."""
    detector, processor, _ = make()
    for index in range(479):
        assert processor.accept(Seen(T0_MS + index * 20_000)) == COUNTED  # the last at 478 x 20 s = 9,560 s
    processor.accept(Seen(T0_MS + 12_600_000))
    assert actions(detector.finish()) == [("opened", 12_900_000)]


def test_one_millisecond_less_is_three_hours() -> None:
    """12,599,999 ms round to 3 h, and 3 < 4."""
    detector, processor, _ = make()
    for index in range(600):
        processor.accept(Seen(T0_MS + index * 20_000))
    processor.accept(Seen(T0_MS + 12_599_999))
    assert detector.finish() == []


def test_an_idle_partition_that_comes_back_counts_from_the_next_tick() -> None:
    """A is at 02:00 and B idle: ticks up to 01:55 are gone, so B's event of 00:10 counts first at 02:00."""
    detector, processor, ear = make()
    other = detector.processor(Partition("b"))
    other.idle = True
    processor.accept(Seen(T0_MS + 2 * HOUR_MS))
    detector.advance()  # w = 01:58, so the last tick evaluated is 01:55
    assert detector.evaluated_ms == T0_MS + 115 * MINUTE_MS
    other.idle = False
    assert other.accept(Seen(T0_MS + 10 * MINUTE_MS)) == COUNTED
    assert ear.late == 1
    other.idle = True
    processor.accept(Seen(T0_MS + 3 * HOUR_MS))
    detector.advance()
    assert ear.ticks[0] == T0_MS + 2 * HOUR_MS


def test_a_slow_partition_holds_time_back_and_an_unknown_one_does_too() -> None:
    """The watermark is the smallest of all that are not idle; without a first event it is minus infinity."""
    detector, processor, _ = make()
    other = detector.processor(Partition("b"))
    processor.accept(Seen(T0_MS + HOUR_MS))
    assert detector.watermark_ms() is None
    other.accept(Seen(T0_MS))
    assert detector.watermark_ms() == T0_MS - 2 * MINUTE_MS
    other.idle = True
    assert detector.watermark_ms() == T0_MS + HOUR_MS - 2 * MINUTE_MS
    processor.idle = True
    other.accept(Seen(T0_MS + HOUR_MS))
    other.accept(Seen(T0_MS + 2 * HOUR_MS))  # an hour at a time is no leap
    assert detector.watermark_ms() == T0_MS + 2 * HOUR_MS - 2 * MINUTE_MS  # all idle: the newest


def test_a_leap_over_ten_thousand_years_costs_nothing() -> None:
    """A first record in the year 11,970 after one in 1970: billions of ticks counted, a handful evaluated."""
    detector, processor, ear = make()
    processor.accept(Seen(0))
    far_ms = 10_000 * 365 * 24 * HOUR_MS
    processor.accept(Seen(far_ms))
    processor.accept(Seen(far_ms, known=tuple(DETAILS._replace(hosts=("h2",)))))
    detector.finish()
    # From tick 00:05 of 1970 on, one every 300,000 ms, up to the first beyond far_ms.
    assert detector.ticks == far_ms // 300_000 + 1
    assert len(ear.ticks) < 10


def test_memory_is_bounded_and_open_episodes_are_kept() -> None:
    """With room for 100 keys, 1,000 one-event keys push each other out, and never the beacon."""
    detector, processor, ear = make(limits={"max_keys": 100})
    for index in range(720):
        processor.accept(Seen(T0_MS + index * 20_000))  # 4 h at 180 an hour
    opened = detector.advance()
    for index in range(1_000):
        processor.accept(Seen(T0_MS + 4 * HOUR_MS + index, to(f"9.9.{index // 250}.{index % 250}")))
    alerts = detector.finish()
    assert [alert.action for alert in (*opened, *alerts)] == ["opened"]
    assert detector.keys <= 100
    assert sum(detector.open_episodes().values()) == 1
    assert ear.lost == 1_001 - detector.keys
    assert detector.keys_peak <= 100


Left = frozenset[tuple[str, Key]]  # (rule id, key) of every key that is alive
HALF_HOUR_MS = 30 * MINUTE_MS


class CheckedDetector(Detector):
    """A detector whose keys are compared with the oracle's after each tick."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.left: dict[int, Left] = {}
        self._limit_keys = self._engine.limit_keys
        self._engine.limit_keys = self.limit_keys_checked  # type: ignore[method-assign]

    def limit_keys_checked(self, tick_ms: int) -> None:
        expected = left_after(self, tick_ms)
        self._limit_keys(tick_ms)
        self.left[tick_ms] = frozenset(map(name, key_rows(self)))
        assert self.left[tick_ms] == expected
        for group in self.groups():  # each key is listed exactly once
            lists = [*group.expiries.values(), *group.protected.values()]
            listed = [address for addresses in lists for address in addresses]
            assert len(listed) == len(group.states)
            assert set(listed) == set(group.states)


def key_rows(detector: Detector) -> list[Any]:
    return [row for row in detector.export_state() if row["kind"] == "key"]


def name(row: Any) -> tuple[str, Key]:
    return row["rule"], Key(*row["key"])


def left_after(detector: Detector, tick_ms: int) -> Left:
    """The oracle of semantics.md §6: all keys without an open episode in the order in which they go."""
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
    may_go = sorted((row for row in rows if row["episode"] is None), key=order)
    gone = may_go[: max(0, len(rows) - detector.settings.limits.max_keys)]
    return frozenset(map(name, rows)) - frozenset(map(name, gone))


CROWDS = st.fixed_dictionaries(
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
# Time since the event before in quarters of an hour, address, process, process instance, sensor.
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


def crowd(chosen: Settings, arrivals: list[Any], rng: Random | None) -> tuple[CheckedDetector, list[bytes]]:
    """All arrivals in one go; or in batches, with the state saved, shuffled and restored between some of them."""
    detector, alerts = CheckedDetector(chosen), []
    time_ms = T0_MS
    for quarters, address, process, instance, sensor in arrivals:
        time_ms += quarters * 15 * MINUTE_MS
        kind = KIND._replace(process_name=process, sensor=sensor)
        if chosen.profile == "strict":
            kind = kind._replace(sensor=None)
        known = tuple(DETAILS._replace(processes=(instance,)))
        detector.processor(Partition("a")).accept(
            Seen(time_ms, Flow.to("egress", 443, FLOW.ip, (address,)), known, kind)
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
    again = CheckedDetector(detector.settings)
    again.import_state([progress, *rows])
    again.left = detector.left
    return again


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(CROWDS, ARRIVALS, st.integers(0, 2**32))
def test_evictions_equal_the_slow_ones(plain: Any, arrivals: list[Any], seed: int) -> None:
    """At every tick the right keys go, and the same ones whatever the batches, saves and order of keys."""
    plain["rules"] = [rule | {"id": f"rule-{number}"} for number, rule in enumerate(plain["rules"])]
    chosen = Settings.model_validate(plain)
    at_once, alerts = crowd(chosen, arrivals, None)
    in_parts, same_alerts = crowd(chosen, arrivals, Random(seed))
    assert alerts == same_alerts
    assert frozenset(map(name, key_rows(at_once))) == frozenset(map(name, key_rows(in_parts)))
    for tick_ms in at_once.left.keys() & in_parts.left.keys():
        assert at_once.left[tick_ms] == in_parts.left[tick_ms]


def test_the_longest_silent_go_first_and_those_near_the_thresholds_last() -> None:
    """480 = 120 x 4 events are needed, so 240 are near; with room for two keys, each new one pushes another out."""
    detector, processor, _ = make(limits={"max_keys": 2})
    alive = []
    for pane, (address, events) in enumerate(
        [("near", 240), ("239", 239), ("one", 1), ("two", 2), ("new", 240), ("newer", 240)]
    ):
        for index in range(events):
            seen = Flow.to("egress", 443, FLOW.ip, (address,))
            processor.accept(Seen(T0_MS + pane * 5 * MINUTE_MS + index, seen))
        detector.advance_to(T0_MS + (pane + 1) * 5 * MINUTE_MS)
        alive.append([row["key"][0] for row in key_rows(detector)])
    assert alive[2:] == [["near", "one"], ["near", "two"], ["near", "new"], ["new", "newer"]]


def test_a_checkpoint_hears_of_evicted_keys() -> None:
    """A key that was given up is among the changes, as forgotten."""
    detector, processor, ear = make(limits={"max_keys": 2})
    detector.track_changes()
    processor.accept(Seen(T0_MS, to("9.9.9.1")))
    processor.accept(Seen(T0_MS, to("9.9.9.2")))
    detector.advance_to(T0_MS + 5 * MINUTE_MS)
    assert {row["kind"] for row in detector.take_changes().key_rows()} == {"key"}
    processor.accept(Seen(T0_MS + 5 * MINUTE_MS, to("9.9.9.3")))
    detector.advance_to(T0_MS + 10 * MINUTE_MS)
    changes = [(row["kind"], row["key"][0]) for row in detector.take_changes().key_rows()]
    assert changes == [("key", "9.9.9.3"), ("forgotten", "9.9.9.1")]
    assert ear.lost == 1


def test_a_tick_takes_nothing_from_what_a_checkpoint_still_writes() -> None:
    """What waits is emptied as it is folded, once nobody else reads it: here before the write, then behind it."""
    detector, processor, _ = make()
    detector.track_changes()
    for pane in range(2):
        for number in range(1_200):
            processor.accept(Seen(T0_MS + pane * 5 * MINUTE_MS, to(f"9.9.{number // 250}.{number % 250}")))
        changes = detector.take_changes()
        if pane == 0:
            detector.advance_to(T0_MS + 5 * MINUTE_MS)
            assert len(list(changes.waiting_rows())) == 1_200
        else:
            changes.release()
            detector.advance_to(T0_MS + 10 * MINUTE_MS)
            assert list(changes.waiting_rows()) == []
    assert detector.keys == 1_200


def test_an_eviction_looks_at_no_pane_that_does_not_concern_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten panes of 100 keys, the oldest all near (2 of 4 events), and 10 new keys too many at each of two ticks."""
    rule = {"name": "small", "min_connections_per_hour": 4, "min_duration_hours": 1}
    detector, processor, ear = make(limits={"max_keys": 1_000}, rules=[rule])
    looks: list[windows.Panes] = []
    standing = windows.total_and_newest_ms

    def counted(panes: windows.Panes, oldest_ms: int) -> tuple[int, int]:
        looks.append(panes)
        return standing(panes, oldest_ms)

    monkeypatch.setattr(windows, "total_and_newest_ms", counted)
    found = []
    for pane in range(12):
        for index in range(100 if pane < 10 else 10):
            for _ in range(2 if pane == 0 else 1):
                processor.accept(Seen(T0_MS + pane * 5 * MINUTE_MS, to(f"9.9.{pane}.{index}")))
        detector.advance_to(T0_MS + (pane + 1) * 5 * MINUTE_MS)
        found.append(len(looks))
        looks.clear()
    assert found[10:] == [200, 90]  # the oldest pane is met once, of the second 10 keys have gone
    assert ear.lost == 20


def test_keys_are_forgotten_when_their_events_leave() -> None:
    """24 h after its pane a key is gone."""
    detector, processor, _ = make()
    processor.accept(Seen(T0_MS))
    processor.accept(Seen(T0_MS + 30 * MINUTE_MS, to("9.9.9.9")))
    detector.advance_to(T0_MS + 24 * HOUR_MS)
    assert detector.keys == 2  # [T0, T0 + 24 h) still holds both
    detector.advance_to(T0_MS + 24 * HOUR_MS + 5 * MINUTE_MS)
    assert detector.keys == 1
    detector.advance_to(T0_MS + 25 * HOUR_MS)
    assert detector.keys == 0


def test_late_begins_one_millisecond_before_the_window_of_the_watermark() -> None:
    """W = T0 - 2 min; t = w - 24 h counts (though no window holds it), one ms earlier is late."""
    _, processor, _ = make()
    processor.accept(Seen(T0_MS))
    edge_ms = T0_MS - 2 * MINUTE_MS - 24 * HOUR_MS
    assert processor.accept(Seen(edge_ms)) == COUNTED
    assert processor.accept(Seen(edge_ms - 1)) == LATE


def test_popular_destinations_do_not_grow() -> None:
    """10,000 hosts in one pane leave a key with the limit + 1 newest."""
    detector, processor, _ = make()
    for index in range(10_000):
        context = DETAILS._replace(hosts=(f"h{index}",), processes=(f"p{index}",))
        processor.accept(Seen(T0_MS + index, known=tuple(context)))
    detector.finish()
    rows = [row for row in detector.export_state() if row["kind"] == "key"]
    assert [len(seen) for seen in rows[0]["recent"]] == [2, 2]


def test_the_garbage_collector_has_nothing_to_do_with_keys() -> None:
    """Histories are exact tuples of texts, bytes and numbers, so a collection does not walk a million keys."""
    detector, processor, _ = make()
    processor.accept(Seen(T0_MS))
    processor.accept(Seen(T0_MS + 1, to("9.9.9.9"), tuple(DETAILS._replace(hosts=("h2",)))))
    processor.accept(Seen(T0_MS + 2, to("9.9.9.9")))
    detector.finish()
    for _ in range(4):
        gc.collect()  # one for each level: a tuple is left alone once all that it holds is
    (group,) = detector.groups()
    state = group.states[address_key_of("9.9.9.9")]
    assert state[2] is not None  # two hosts: the larger form
    assert not any(gc.is_tracked(state) for state in group.states.values())


def test_networks_hold_their_edges() -> None:
    """First and last address in, neighbours out; IPv4 and mapped text alike; /32 without a prefix."""
    networks = Networks(["10.0.0.0/8", "192.0.2.7", "fe80::/10", "11.0.0.0/8"])
    inside = ["10.0.0.0", "10.255.255.255", "11.255.255.255", "192.0.2.7", "fe80::", "febf:ffff::1"]
    outside = ["9.255.255.255", "12.0.0.0", "192.0.2.6", "192.0.2.8", "fec0::", "::10.1.2.3"]
    assert [address in networks for address in inside + outside] == [True] * 6 + [False] * 6


def test_a_timer_is_never_in_the_past() -> None:
    """A state shared with rules that tell nine hosts apart keeps more than limit + 1: only the second newest blocks.

    A limit of one host; h3 left the window long ago, h2 is in it until tick 24 h + 10 min.
    """
    hosts = (("h1", T0_MS + 6 * MINUTE_MS), ("h2", T0_MS + 5 * MINUTE_MS), ("h3", T0_MS - 48 * HOUR_MS))
    panes = windows.pack_panes([windows.Pane(T0_MS + 5 * MINUTE_MS, T0_MS + 6 * MINUTE_MS, 1_000)])
    detector, _, _ = make()
    tick_ms = T0_MS + 10 * MINUTE_MS
    outcome = evaluate((panes, FACTS, (hosts, (("p1", T0_MS),))), None, tick_ms, detector.rules[0].limits)
    assert outcome.next_timer_ms == T0_MS + 5 * MINUTE_MS + 5 * MINUTE_MS + 24 * HOUR_MS
