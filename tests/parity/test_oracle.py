"""Hand-worked cases for tests/support/oracle.py; each one shows the arithmetic behind its expected numbers.

Times are relative to T0, which is a midnight; "3:35" in a comment is T0 + 3 h 35 min. `small` settings look back one
hour instead of a day, which keeps each case short.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from oracle import (
    Json,
    OracleResult,
    PartitionClock,
    addresses,
    counts,
    default_rule,
    default_settings,
    event_time,
    host_ids,
    host_names,
    iso_ms,
    process_name,
    read,
    replay,
    time_ms,
    time_text,
    to_line,
    whole_number,
)
from paths import CAPTURES
from paths import DATA as TEST_DATA
from strategies import DataSet, Plan, as_lines, build, data_sets, plans

T0 = 1_772_409_600_000  # 2026-03-02T00:00:00.000Z
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
CASES = TEST_DATA / "esql-cases.jsonl"


def event(at: int, **changes: Any) -> Json:
    """A connection event of Elastic Defend at T0 + at. In `changes`, `a__b` replaces field a.b; None removes it."""
    fields: Json = {
        "@timestamp": time_text(T0 + at),
        "data_stream.dataset": "endpoint.events.network",
        "event.category": ["network"],
        "host.id": "h1",
        "host.name": "WS-1",
        "host.os.family": "windows",
        "network.direction": "egress",
        "process.name": "chrome.exe",
        "process.entity_id": "p1",
        "destination.address": "45.83.64.1",
        "destination.ip": "45.83.64.1",
        "destination.port": 443,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in fields.items() if value is not None}


def filtered(at: int, **changes: Any) -> Json:
    """A record that no rule counts but that moves the partition clock."""
    return event(at, process__name="outlook.exe", **changes)


def small(profile: str = "resilient", lookback: int = HOUR, lateness: int = 0, **rule: Any) -> Json:
    """One hour of lookback, a tick every 5 min; 4 connections an hour and no minimum duration unless overridden."""
    thresholds = {"min_connections_per_hour": 4, "min_duration_hours": 0} | rule
    return default_settings(
        profile=profile, lookback_ms=lookback, lateness_ms=lateness, rules=[default_rule(**thresholds)]
    )


def alert_steps(result: OracleResult) -> list[tuple[str, int, str | None]]:
    """(action, minutes after T0, reason) of each alert."""
    alerts = []
    for alert in result.alerts:
        minutes, rest = divmod(iso(alert["@timestamp"]) - T0, MINUTE)
        assert rest == 0
        alerts.append((alert["streamdetect"]["action"], minutes, alert["streamdetect"]["reason"]))
    return alerts


def iso(text: str) -> int:
    ms = iso_ms(text, resilient=False)
    assert ms is not None
    return ms


def figures(alert: Json) -> Json:
    found: Json = alert["streamdetect"]["figures"]
    return found


# ------------------------------------------------------------------------------------- the hunt's default limits


def beacon_of(count: int, span: int) -> list[Json]:
    """`count` events over exactly `span`: one every 26 s, the last at the end."""
    return [event(26 * SECOND * index) for index in range(count - 1)] + [event(span)]


def test_opens_at_exactly_three_and_a_half_hours() -> None:
    """480 events over 12,600,000 ms open at the next tick."""
    # (12,600,000 + 1,800,000) // 3,600,000 = 4 h; 480 // 4 = 120 an hour.
    # The last event is at 3:30, itself a tick. A window excludes its end, so 3:35 = 215 min is the first to include it.
    result = replay([beacon_of(480, 12_600_000)], default_settings())
    assert alert_steps(result) == [("opened", 215, None)]
    assert figures(result.alerts[0]) == {
        "count_connections": 480,
        "duration_hours": 4,
        "number_of_con_per_hour": 120,
        "hosts": 1,
        "count_unique_pids": 1,
        "first_seen_ms": T0,
        "last_seen_ms": T0 + 12_600_000,
    }


def test_does_not_open_one_millisecond_short() -> None:
    """(12,599,999 + 1,800,000) // 3,600,000 = 3 h, which is below 4."""
    assert alert_steps(replay([beacon_of(480, 12_599_999)], default_settings())) == []


def test_does_not_open_with_one_event_too_few() -> None:
    """479 // 4 = 119 an hour, which is below 120."""
    assert alert_steps(replay([beacon_of(479, 12_600_000)], default_settings())) == []


def test_updates_every_six_hours() -> None:
    """One event every 25 s (144 an hour) opens at 3:35; updates follow 6 h and 12 h later."""
    # Event 504 is at 504 * 25 s = 12,600 s = 3:30 exactly; at 3:35 = 215 min: 505 // 4 = 126.
    # 215 + 360 = 575, 575 + 360 = 935. The last event is at 16:00, and 16:05 = 965 < 935 + 360.
    beacon = [event(25 * SECOND * index) for index in range(16 * 144 + 1)]
    result = replay([beacon], default_settings())
    assert alert_steps(result) == [("opened", 215, None), ("updated", 575, None), ("updated", 935, None)]
    # At 9:35 the newest event is at 9:34:35 (1,379 * 25 s): 1,380 events, (34,475 + 1,800) // 3,600 = 10 h, 138.
    assert figures(result.alerts[1])["count_connections"] == 1380
    assert figures(result.alerts[1])["duration_hours"] == 10
    assert figures(result.alerts[1])["number_of_con_per_hour"] == 138


def test_ticks_run_from_the_first_counted_event_to_the_first_tick_past_the_newest_clock() -> None:
    """An event at 0:01 counts from 0:05; the newest clock is 1:00, so 1:05 is the last tick: 13 ticks."""
    assert replay([[event(MINUTE), filtered(HOUR)]], small()).ticks == 13


# ---------------------------------------------------------------------------------- §5: why an episode ends


def four_at(at: int, **changes: Any) -> list[Json]:
    return [event(at + index, **changes) for index in range(4)]


def test_expired_when_the_window_is_empty() -> None:
    """Four events in the first 4 ms: the windows of 0:05 to 1:00 include them; that of 1:05 starts at 0:05."""
    result = replay([[*four_at(0), filtered(30 * MINUTE), filtered(61 * MINUTE)]], small())
    assert alert_steps(result) == [("opened", 5, None), ("resolved", 65, "expired")]
    last = result.alerts[1]
    zeros = ("count_connections", "duration_hours", "number_of_con_per_hour", "hosts", "count_unique_pids")
    assert figures(last) == dict.fromkeys(zeros, 0)
    assert last["streamdetect"]["pane_counts"] == []
    assert last["process"] == {"name": "chrome.exe"}
    assert last["destination"] == {"address": "45.83.64.1"}
    assert not {"host", "user", "related"} & set(last)
    assert not {"start", "end", "duration"} & set(last["event"])
    assert last["message"] == (
        "chrome.exe on unknown host no longer meets the conditions for 45.83.64.1: expired"
    )


def test_an_event_exactly_lookback_old_is_in_the_window() -> None:
    """An event at t = T - L counts: four events at exactly 0:00 are in the window of 1:00 and out of that of 1:05."""
    tail = [filtered(30 * MINUTE), filtered(61 * MINUTE)]
    records = [event(0), event(0), event(0), event(0), *tail]
    assert alert_steps(replay([records], small())) == [("opened", 5, None), ("resolved", 65, "expired")]
    # 1 ms earlier they already count at 0:00, and the window of 1:00 starts after them.
    early = [event(-1), event(-1), event(-1), event(-1), *tail]
    assert alert_steps(replay([early], small())) == [("opened", 0, None), ("resolved", 60, "expired")]


def test_a_second_host_resolves_and_its_expiry_opens_again() -> None:
    """h2 is in the windows of 0:45 to 1:40 only; before and after, h1 is the only host."""
    # h1 sends one event every 10 min: four by 0:30, counted at 0:35 (35 min). h2's event at 0:40 counts at 0:45; the
    # last window with it is that of 1:40, [0:40, 1:40). At 1:45, [0:45, 1:45), h1 has 0:50 to 1:40: 6 events.
    beacon = [event(10 * MINUTE * index) for index in range(12)]
    other = event(40 * MINUTE, host__id="h2")
    result = replay([beacon, [other]], small())
    assert alert_steps(result) == [
        ("opened", 35, None),
        ("resolved", 45, "second_host"),
        ("opened", 105, None),
    ]
    opened, resolved, again = result.alerts
    assert figures(resolved)["hosts"] == 2
    assert opened["streamdetect"]["episode_id"] == resolved["streamdetect"]["episode_id"]
    assert again["streamdetect"]["episode_id"] != opened["streamdetect"]["episode_id"]


def test_distinct_counts_are_capped_at_limit_plus_one() -> None:
    """Three extra hosts with a limit of one are reported as 2, which means "at least 2"."""
    extra_hosts = [event(6 * MINUTE, host__id=name, process__entity_id=name) for name in ("h2", "h3", "h4")]
    resolved = replay([[*four_at(0), *extra_hosts]], small()).alerts[1]
    assert figures(resolved)["hosts"] == 2
    assert figures(resolved)["count_unique_pids"] == 2


def test_max_hosts_two_allows_two() -> None:
    """max_hosts N means 1 <= hosts <= N."""
    records = [*four_at(0), event(1, host__id="h2")]
    assert alert_steps(replay([records], small(max_hosts=2))) == [("opened", 5, None)]
    assert alert_steps(replay([[*records, event(2, host__id="h3")]], small(max_hosts=2))) == []


def test_a_second_process_resolves() -> None:
    """A second process instance on the same host, counted at 0:10."""
    records = [*four_at(0), event(6 * MINUTE, process__entity_id="p2")]
    result = replay([records], small())
    assert alert_steps(result) == [("opened", 5, None), ("resolved", 10, "second_process")]


def test_second_host_takes_precedence_over_second_process() -> None:
    """The first reason that applies is reported."""
    records = [*four_at(0), event(6 * MINUTE, host__id="h2", process__entity_id="p2")]
    assert alert_steps(replay([records], small()))[1] == ("resolved", 10, "second_host")


@pytest.mark.parametrize(("field", "reason"), [("host__id", "no_host"), ("process__entity_id", "no_process")])
def test_resolves_when_every_event_lacks_a_host_or_process(field: str, reason: str) -> None:
    """The field is present at 0:00 and missing from 0:30; at 1:05 only events without it are left."""
    records = [*four_at(0), *four_at(30 * MINUTE, **{field: None}), filtered(61 * MINUTE)]
    result = replay([records], small(profile="strict"))
    assert alert_steps(result) == [("opened", 5, None), ("resolved", 65, reason)]


def test_duration_resolves_when_the_oldest_event_leaves() -> None:
    """0:00 and four at 0:30 span 30 min, which rounds to 1 h; without the first, the span is 2 ms, 0 h."""
    # (1,800,002 + 1,800,000) // 3,600,000 = 1 at 0:35; at 1:05 the window begins at 0:05.
    records = [event(0), *four_at(30 * MINUTE)[:3], event(30 * MINUTE + 2), filtered(61 * MINUTE)]
    result = replay([records], small(min_duration_hours=1))
    assert alert_steps(result) == [("opened", 35, None), ("resolved", 65, "duration")]


def test_rate_resolves() -> None:
    """Four at 0:00 and one at 0:50: at 1:05 only one is left, 1 // 1 = 1 an hour."""
    records = [*four_at(0), event(50 * MINUTE), filtered(61 * MINUTE)]
    assert alert_steps(replay([records], small())) == [("opened", 5, None), ("resolved", 65, "rate")]


def test_a_longer_span_lowers_the_rate() -> None:
    """Five events over up to 1:29:59.999 are 5 an hour; from 1:30 they are 5 // 2 = 2."""
    # (5,400,000 + 1,800,000) // 3,600,000 = 2 h, and 2 < 4; one millisecond less is 1 h.
    settings = small(lookback=2 * HOUR)
    clock_record = filtered(45 * MINUTE)
    result = replay([[*four_at(0), clock_record, event(90 * MINUTE)]], settings)
    assert alert_steps(result) == [("opened", 5, None), ("resolved", 95, "rate")]
    assert alert_steps(replay([[*four_at(0), clock_record, event(90 * MINUTE - 1)]], settings)) == [
        ("opened", 5, None)
    ]


def test_open_episodes_stay_open_at_the_end_of_input() -> None:
    """The input ends at 0:10; no episode is resolved."""
    assert alert_steps(replay([[*four_at(0), filtered(8 * MINUTE)]], small())) == [("opened", 5, None)]


def test_a_duration_of_zero_hours_divides_by_one() -> None:
    """§3: without a minimum duration, four events within 4 ms are 4 // max(1, 0) = 4 an hour."""
    assert alert_steps(replay([four_at(0)], small())) == [("opened", 5, None)]
    assert alert_steps(replay([four_at(0)], small(min_duration_hours=1))) == []


# ---------------------------------------------------------------------------------------- §4: late and future events


@pytest.mark.parametrize(
    ("clock", "opens"),
    [
        (5 * MINUTE - 1, 5),  # w = 4:59.999 < 0:05: the event counts at 0:05
        (5 * MINUTE, 10),  # w = 0:05 is not below 0:05: it counts from 0:10
        (10 * MINUTE - 1, 10),
        (10 * MINUTE, 15),  # not at 0:10, which the watermark has passed, but at 0:15
        (14 * MINUTE, 15),
    ],
)
def test_a_late_event_counts_from_the_next_tick(clock: int, opens: int) -> None:
    """Three events, then a record that moves the clock, then a fourth event older than the clock."""
    records = [*four_at(MINUTE)[:3], filtered(clock), event(2 * MINUTE)]
    assert alert_steps(replay([records], small())) == [("opened", opens, None)]


def test_lateness_delays_the_watermark() -> None:
    """With 2 min of lateness, a clock of 6:59.999 gives a watermark of 4:59.999; 7:00 gives 0:05."""
    for clock, opens in ((7 * MINUTE - 1, 5), (7 * MINUTE, 10)):
        records = [*four_at(MINUTE)[:3], filtered(clock), event(2 * MINUTE)]
        assert alert_steps(replay([records], small(lateness=2 * MINUTE))) == [("opened", opens, None)]


def test_lateness_is_per_partition() -> None:
    """The same clock in another partition does not make an event late."""
    records = [*four_at(MINUTE)[:3], event(2 * MINUTE)]
    assert alert_steps(replay([records, [filtered(14 * MINUTE)]], small())) == [("opened", 5, None)]


def test_an_event_is_dropped_as_late_only_below_watermark_minus_lookback() -> None:
    """With w = 2:00 and L = 1:00, an event at 0:59:59.999 is late; one at 1:00 is counted, but is in no window."""
    settings = default_settings(**small()) | {"max_future_jump_ms": 24 * HOUR}
    records = [filtered(0), filtered(2 * HOUR), event(HOUR - 1), event(HOUR)]
    result = replay([records], settings)
    assert (result.consumed, result.counted, result.filtered_total, result.late) == (4, 1, 2, 1)
    assert result.ticks == 0


def test_filtering_precedes_the_late_check() -> None:
    """A record that no rule counts is filtered, however old it is (§1)."""
    settings = small() | {"max_future_jump_ms": 24 * HOUR}
    result = replay([[filtered(0), filtered(9 * HOUR), filtered(-9 * HOUR)]], settings)
    assert (result.filtered_total, result.late) == (3, 0)


def test_future_skew_against_the_record_timestamp() -> None:
    """10 min ahead of the record timestamp is accepted; 1 ms more is a dead letter and moves no clock."""
    ahead = 10 * MINUTE
    records = [(event(ahead), T0), (event(ahead + 1), T0), (event(0), T0)]
    result = replay([records], small())
    assert result.dead_lettered == {"future_time": 1}
    assert (result.consumed, result.counted) == (3, 2)
    assert result.ticks == 1  # both count first at 0:15, the first tick after the clock's 0:10


# ---------------------------------------------------------------------------------------- §4: wild clocks

A, B = frozenset({"a"}), frozenset({"b"})


def clock_after(*observed: tuple[int, frozenset[str]]) -> PartitionClock:
    """A clock with an allowed jump of 100 that has observed these records."""
    clock = PartitionClock(jump_ms=100)
    for time, host in observed:
        clock.observe(time, host)
    return clock


def test_the_first_record_sets_the_clock() -> None:
    """At any distance."""
    assert clock_after((10**15, A)).newest == 10**15


def test_a_record_exactly_at_the_allowed_jump_moves_the_clock() -> None:
    """100 ahead moves it; 101 starts a run."""
    assert clock_after((0, A), (100, A)).newest == 100
    assert clock_after((0, A), (101, A)).newest == 0


def test_a_run_of_two_hosts_is_believed() -> None:
    """C becomes the run's smallest time, then the last record is evaluated again: 1,050 <= 1,000 + 100 moves C."""
    clock = clock_after((0, A), (1000, A), (1050, B))
    assert (clock.newest, clock.run) == (1050, [])


def test_the_last_record_can_start_a_new_run() -> None:
    """C becomes 1,000; 1,101 is more than 100 ahead of it, so it starts a run again."""
    clock = clock_after((0, A), (1000, A), (1101, B))
    assert (clock.newest, clock.run) == (1000, [(1101, B)])


def test_the_last_record_can_have_the_smallest_time() -> None:
    """1,101 starts the run and 1,000 is the smallest: C = 1,000. The record at 1,101 is not evaluated again."""
    clock = clock_after((0, A), (1101, A), (1000, B))
    assert (clock.newest, clock.run) == (1000, [])


def test_a_run_of_one_host_is_believed_at_100_records() -> None:
    """99 records are a run; 100 move the clock to 1,000, the smallest, then to 1,099, the last, within 100 of it."""
    ahead = [(1000 + index, A) for index in range(100)]
    waiting = clock_after((0, A), *ahead[:99])
    assert (waiting.newest, len(waiting.run)) == (0, 99)
    assert clock_after((0, A), *ahead).newest == 1099


def test_a_record_within_the_limit_clears_the_run() -> None:
    """Two hosts with a record at the limit between them are not in a row."""
    clock = clock_after((0, A), (1000, A), (100, A), (1000, B))
    assert (clock.newest, clock.run) == (100, [(1000, B)])


def test_an_old_record_clears_the_run_too() -> None:
    """Any record at or below the limit clears the run, even if it does not move the clock."""
    clock = clock_after((0, A), (1000, A), (-500, A), (1000, B))
    assert (clock.newest, clock.run) == (0, [(1000, B)])


def test_a_missing_host_counts_as_one_host() -> None:
    """Two records without a host are one host; one without and one with a host are two."""
    no_host: frozenset[str] = frozenset()
    assert clock_after((0, A), (1000, no_host), (1001, no_host)).newest == 0
    assert clock_after((0, A), (1000, no_host), (1001, A)).newest == 1001


def test_a_wild_record_counts_but_does_not_move_the_clock() -> None:
    """One record 3 h ahead is counted, no tick reaches it, and the summary reports the open run."""
    result = replay([[*four_at(0), event(3 * HOUR)]], small())
    assert (result.counted, result.suspect_leaps, result.ticks) == (5, 1, 1)
    assert alert_steps(result) == [("opened", 5, None)]


def test_a_believed_leap_advances_event_time() -> None:
    """Two hosts at 3:00 move the clock there; on the way, the episode expires at 1:05."""
    records = [*four_at(0), filtered(3 * HOUR), filtered(3 * HOUR, host__id="h2")]
    result = replay([records], small())
    assert alert_steps(result) == [("opened", 5, None), ("resolved", 65, "expired")]
    assert (result.suspect_leaps, result.ticks) == (0, 37)  # 0:05 to 3:05: 180 / 5 + 1


def test_events_after_a_believed_leap_are_late() -> None:
    """The second host's event still sees the old watermark; the event after it sees the new one."""
    records = [event(0), event(3 * HOUR), event(3 * HOUR, host__id="h2"), event(HOUR)]
    result = replay([records], small())
    assert (result.counted, result.late) == (3, 1)  # 1:00 < 3:00 - 1:00


# ---------------------------------------------------------------------------------------- §2: keys and order


def test_resilient_reads_a_mapped_address_as_ipv4() -> None:
    """Two events in each notation are four events of one key; strict keeps the texts apart."""
    mapped = {"destination__address": "::FFFF:45.83.64.1", "destination__ip": "::ffff:2d53:4001"}
    records = [*four_at(0)[:2], *four_at(2, **mapped)[:2]]
    result = replay([records], small())
    assert [alert["destination"]["address"] for alert in result.alerts] == ["45.83.64.1"]
    assert figures(result.alerts[0])["count_connections"] == 4
    assert replay([records], small("strict")).alerts == []


def test_a_mapped_private_address_is_excluded() -> None:
    """::ffff:10.1.2.3 is 10.1.2.3; ::10.1.2.3 is not."""
    assert not counts(read(event(0, destination__ip="::ffff:10.1.2.3"), "strict"), default_rule())
    assert counts(read(event(0, destination__ip="::10.1.2.3"), "strict"), default_rule())


def test_an_event_with_several_addresses_belongs_to_each_key_and_counts_once() -> None:
    """["b", "a", "a"] is one event of a and one of b; alerts come in key order."""
    result = replay([four_at(0, destination__address=["b", "a", "a"])], small())
    assert [alert["destination"]["address"] for alert in result.alerts] == ["a", "b"]
    assert result.counted == 4


def test_the_null_key_comes_first_and_exists_only_in_strict() -> None:
    """A missing address is a key of its own in strict and falls back to the IP in resilient."""
    records = [*four_at(0, destination__address=None), *four_at(0)]
    strict = replay([records], small("strict")).alerts
    assert [alert["destination"]["address"] for alert in strict] == [None, "45.83.64.1"]
    assert "contacted unknown destination for 0 h at 4" in strict[0]["message"]
    assert len(replay([records], small()).alerts) == 1


def test_alerts_of_one_key_follow_the_order_of_the_rules() -> None:
    """§5: sorted by key, then by the rule's position in the configuration."""
    rules = [default_rule(id=name, min_connections_per_hour=4, min_duration_hours=0) for name in "zy"]
    both = [*four_at(0, destination__address="a"), *four_at(0, destination__address="b")]
    alerts = replay([both], small() | {"rules": rules}).alerts
    found = [(alert["destination"]["address"], alert["rule"]["uuid"]) for alert in alerts]
    assert found == [("a", "z"), ("a", "y"), ("b", "z"), ("b", "y")]


def test_only_resilient_separates_sensors() -> None:
    """Both sensors report the same connection under two process ids."""
    twins = four_at(0, event__provider="Microsoft-Windows-Sysmon", process__entity_id="{P-2}")
    result = replay([[*four_at(0), *twins]], small())
    assert [alert["streamdetect"]["sensor"] for alert in result.alerts] == ["endpoint", "sysmon"]
    assert replay([[*four_at(0), *twins]], small("strict")).alerts == []  # two processes


def test_resilient_compares_ids_without_braces_and_case_and_shows_them_as_received() -> None:
    """{AB} and ab are one host in resilient and two in strict."""
    records = [*four_at(0, host__id="{AB}"), event(5, host__id="ab"), event(6, host__id=["ab", "{AB}"])]
    alert = replay([records], small()).alerts[0]
    assert (figures(alert)["hosts"], alert["host"]["id"]) == (1, ["ab", "{AB}"])
    assert replay([records], small("strict")).alerts == []


# -------------------------------------------------------------------------------------------- §5: the document


def test_the_whole_alert_document() -> None:
    """Every member of the alert of docs/reference.md, and no other."""
    context_fields = {
        "process__pid": 7,
        "process__executable": "C:\\c.exe",
        "user__name": "jörg",
        "user__domain": "CORP",
        "destination__domain": "c2.example",
    }
    alert = replay([four_at(0, **context_fields)], small()).alerts[0]
    space = uuid5(NAMESPACE_URL, "https://streamdetect/episode")
    rule_id = "ed254a22-e7bb-4a36-9291-196b77762dd8"
    episode = uuid5(space, f'["{rule_id}","45.83.64.1","chrome.exe","endpoint",1772409900000]')
    assert alert == {
        "@timestamp": "2026-03-02T00:05:00.000Z",
        "ecs": {"version": "8.17.0"},
        "event": {
            "kind": "alert",
            "category": ["network"],
            "type": ["info"],
            "module": "streamdetect",
            "dataset": "streamdetect.alert",
            "action": "opened",
            "id": str(uuid5(episode, '["opened",1772409900000]')),
            "severity": 47,
            "risk_score": 47,
            "start": "2026-03-02T00:00:00.000Z",
            "end": "2026-03-02T00:00:00.003Z",
            "duration": 3_000_000,  # 3 ms in ns
        },
        "message": "chrome.exe on WS-1 contacted 45.83.64.1 for 0 h at 4 connections an hour",
        "rule": {
            "uuid": rule_id,
            "name": "High count of network connection over extended period by process",
            "category": "Command and Control",
            "reference": "https://attack.mitre.org/techniques/T1071/",
        },
        "threat": {
            "framework": "MITRE ATT&CK",
            "tactic": {"id": ["TA0011"], "name": ["Command and Control"]},
            "technique": {"id": ["T1071"], "name": ["Application Layer Protocol"]},
        },
        "host": {"id": "h1", "name": "WS-1"},
        "process": {"name": "chrome.exe", "entity_id": "p1", "pid": 7, "executable": "C:\\c.exe"},
        "user": {"name": "jörg", "domain": "CORP"},
        "destination": {
            "address": "45.83.64.1",
            "ip": "45.83.64.1",
            "port": 443,
            "domain": "c2.example",
        },
        "related": {"ip": ["45.83.64.1"], "hosts": ["WS-1"]},
        "streamdetect": {
            "episode_id": str(episode),
            "action": "opened",
            "reason": None,
            "sensor": "endpoint",
            "profile": "resilient",
            "version": "0.1.0",
            "window": {
                "start": "2026-03-01T23:05:00.000Z",
                "end": "2026-03-02T00:05:00.000Z",
                "interval_seconds": 300,
            },
            "figures": {
                "count_connections": 4,
                "duration_hours": 0,
                "number_of_con_per_hour": 4,
                "hosts": 1,
                "count_unique_pids": 1,
                "first_seen_ms": T0,
                "last_seen_ms": T0 + 3,
            },
            "thresholds": {
                "min_connections_per_hour": 4,
                "min_duration_hours": 0,
                "max_hosts": 1,
                "max_processes": 1,
            },
            "pane_counts": [[T0, 4]],
        },
    }
    assert '"name":"jörg"' in to_line(alert)
    assert to_line(alert).startswith('{"@timestamp":"2026-03-02T00:05:00.000Z","destination":{"address"')


def test_absent_context_fields_are_left_out() -> None:
    """Strict, with only the fields that the conditions require."""
    bare = {"host__name": None, "data_stream__dataset": None}
    alert = replay([four_at(0, **bare)], small("strict")).alerts[0]
    assert alert["host"] == {"id": "h1"}
    assert alert["related"] == {"ip": ["45.83.64.1"]}
    assert "user" not in alert
    assert "sensor" not in alert["streamdetect"]
    assert alert["message"].startswith("chrome.exe on h1 contacted")


def test_context_comes_from_the_latest_event() -> None:
    """Of two in the same millisecond, the one whose context sorts last as JSON text: 8443 after 443, "8" > "4"."""
    records = [*four_at(0), event(9, destination__port=8443), event(9), event(8, destination__port=99)]
    assert replay([records], small()).alerts[0]["destination"]["port"] == 8443


def test_pane_counts_list_only_panes_with_events() -> None:
    """Two at 0:00, one at 0:10 and one just before 0:20."""
    records = [event(0), event(1), event(10 * MINUTE), event(20 * MINUTE - 1)]
    panes = replay([records], small()).alerts[0]["streamdetect"]["pane_counts"]
    assert panes == [[T0, 2], [T0 + 10 * MINUTE, 1], [T0 + 15 * MINUTE, 1]]


# -------------------------------------------------------------------------- §1 and §7: decoding a document


def case_rows() -> list[Any]:
    rows = [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]
    return [pytest.param(row, id=f"{number}-{row['field']}") for number, row in enumerate(rows)]


@pytest.mark.parametrize("row", case_rows())
def test_strict_matches_recorded_elasticsearch_results(row: Json) -> None:
    """Each document was indexed and queried on a real Elasticsearch 8.19; the case holds its result."""
    reading = read(row["document"], "strict")
    time = event_time(reading)
    counted = time is not None and counts(reading, default_rule())
    groups = [[address, process_name(reading)] for address in addresses(reading)] if counted else []
    assert (time is None) == row["rejected"]
    assert counted == row["counts"]
    assert sorted(groups, key=str) == sorted(row["groups"], key=str)
    assert (time_text(time) if counted and time is not None else None) == row["timestamp"]


NOT_COUNTED: list[Json] = [
    {"process__name": "powershell.exe"},
    {"process__name": None},
    {"destination__port": 53},
    {"destination__port": [443, 443]},
    {"destination__ip": "192.168.1.1"},
    {"destination__ip": ["1.1.1.1", "8.8.8.8"]},
    {"network__direction": "ingress"},
    {"event__category": ["network", "process"]},
    {"host__os__family": "linux"},
    {"data_stream__dataset": "system.security"},
    {"data_stream__dataset": None, "event__dataset": "sysmon"},
]


@pytest.mark.parametrize("changes", NOT_COUNTED, ids=str)
@pytest.mark.parametrize("profile", ["strict", "resilient"])
def test_documents_outside_the_hunt_are_filtered(changes: Json, profile: str) -> None:
    """No alert in either profile."""
    result = replay([four_at(0, **changes)], small(profile))
    assert (result.alerts, result.filtered_total) == ([], 4)


RESILIENT_ONLY: list[Json] = [
    {"process__name": "Chrome.EXE"},
    {"network__direction": "outbound"},
    {"host__os__family": None, "host__os__type": "windows"},
    {"process__name": ["chrome.exe", "CHROME.EXE"]},
    {"network__direction": ["egress", "outbound"]},
]


@pytest.mark.parametrize("changes", RESILIENT_ONLY, ids=str)
def test_resilient_counts_equivalent_notations(changes: Json) -> None:
    """Counted in resilient and filtered in strict."""
    assert counts(read(event(0, **changes), "resilient"), default_rule())
    assert not counts(read(event(0, **changes), "strict"), default_rule())


@pytest.mark.parametrize(
    ("value", "strict", "resilient"),
    [
        ("2026-03-02T00:00:00.1239999Z", 123, 123),
        ("2026-03-02T00:00:00,5", 500, 500),
        ("2026-03-02T02:00:00+02", 0, 0),
        ("2026-03-01T19:00:00-0500", 0, 0),
        ("2026-03-02", 0, 0),
        (T0, 0, 0),
        (T0 + 0.9, 0, 0),
        (f"{T0 + 1}.9", 1, 1),
        ("2026-03-02 00:00:00.001", None, 1),
        ("2026-03-02T00:00:00.0011234567Z", None, 1),
        ("2026-03-02T00:00:00z", None, None),
        ("2026-02-30", None, None),
        ("2026-03-02T00:00:00.Z", None, None),
        (True, None, None),
    ],
)
def test_times(value: Any, strict: int | None, resilient: int | None) -> None:
    """Milliseconds after T0; None means not a usable time."""
    for profile, expected in (("strict", strict), ("resilient", resilient)):
        found = time_ms(value, profile == "resilient")
        assert found == (None if expected is None else T0 + expected), profile


def test_times_beyond_four_digits_are_written_with_a_sign() -> None:
    """9999 is the last year without a sign; year 10000 begins one millisecond later."""
    last = iso("9999-12-31T23:59:59.999Z")
    assert time_text(last) == "9999-12-31T23:59:59.999Z"
    assert time_text(last + 1) == "+10000-01-01T00:00:00.000Z"
    assert time_text(-1) == "1969-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    ("value", "port"),
    [
        (443, 443),
        ("+443", 443),
        ("0443", 443),
        ("443.9", 443),
        ("4e2", 400),
        (53.9, 53),
        (-0.5, 0),
        (" 443", None),
        ("0x1bb", None),
        (True, None),
        (2**63, None),
        ("1e99", None),
        ("", None),
    ],
)
def test_ports(value: Any, port: int | None) -> None:
    """A number, or text that holds one, truncated to a whole number."""
    assert whole_number(value) == port


DATA = {
    "UtcTime": "2026-03-02 00:00:00.250",
    "ProcessGuid": "{AB}",
    "ProcessId": "716",
    "Image": "C:\\Windows\\chrome.exe",
    "User": "CORP\\anna",
    "Initiated": "true",
    "DestinationIp": "2001:db8:0:0:0:0:0:1",
    "DestinationPort": "443",
    "DestinationHostname": "-",
}
SYSMON = "Microsoft-Windows-Sysmon"
COLLECTED = {"id": "collector", "name": "WEC01"}
RAW: dict[str, Json] = {
    "winlogbeat8": {
        "@timestamp": "2026-03-02T00:00:09Z",
        "winlog": {
            "provider_name": SYSMON,
            "event_id": "3",
            "computer_name": "ws-1.corp",
            "event_data": DATA,
        },
        "host": COLLECTED,
    },
    "winlogbeat6": {
        "@timestamp": "2026-03-02T00:00:09Z",
        "source_name": SYSMON,
        "event_id": 3,
        "computer_name": "ws-1.corp",
        "event_data": DATA,
        "host": COLLECTED,
        "user": {"name": "SYSTEM", "domain": "NT AUTHORITY"},
    },
    "nxlog": {"SourceName": SYSMON, "EventID": 3, "Hostname": "ws-1.corp", "host": "10.0.0.9"} | DATA,
}


@pytest.mark.parametrize("shape", RAW)
def test_raw_sysmon_is_decoded_as_the_pipeline_would(shape: str) -> None:
    """Time, key, context and host of one connection in three shapes; the host block is the collector's."""
    alert = replay([[RAW[shape]] * 4], small()).alerts[0]
    assert alert["destination"] == {"address": "2001:db8::1", "ip": "2001:db8::1", "port": 443}
    assert alert["process"] == {
        "name": "chrome.exe",
        "entity_id": "{AB}",
        "pid": 716,
        "executable": "C:\\Windows\\chrome.exe",
    }
    assert alert["user"] == {"name": "anna", "domain": "CORP"}
    assert alert["host"] == {"id": "ws-1.corp", "name": "ws-1.corp"}
    assert alert["event"]["start"] == "2026-03-02T00:00:00.250Z"
    assert alert["streamdetect"]["sensor"] == "sysmon"


def raw8(**changes: Any) -> Json:
    """The Winlogbeat 8 document with other event data (None removes a member)."""
    data = {name: value for name, value in (DATA | changes).items() if value is not None}
    return RAW["winlogbeat8"] | {"winlog": RAW["winlogbeat8"]["winlog"] | {"event_data": data}}


@pytest.mark.parametrize(
    "changes",
    [{"Image": "System"}, {"Initiated": "false"}, {"DestinationIp": "x"}, {"DestinationPort": "x"}],
    ids=str,
)
def test_raw_sysmon_negatives(changes: Json) -> None:
    """An image needs a backslash, an unreadable value is missing, and only Initiated gives the direction."""
    assert counts(read(raw8(), "resilient"), default_rule())
    assert not counts(read(raw8(**changes), "resilient"), default_rule())


def test_raw_sysmon_without_a_readable_utc_time_uses_the_timestamp() -> None:
    """@timestamp is 9 s later than UtcTime."""
    for unreadable in (None, "today", "2026-03-02 24:00:00.000"):
        assert event_time(read(raw8(UtcTime=unreadable), "resilient")) == T0 + 9 * SECOND


def test_the_all_zero_guid_is_a_missing_process() -> None:
    """If it is the only value, there is no process instance and the condition is false."""
    zero = raw8(ProcessGuid="{00000000-0000-0000-0000-000000000000}")
    assert replay([[zero] * 4], small()).alerts == []


def test_only_event_id_3_is_a_raw_connection() -> None:
    """The same data under another event id is read as ECS, which finds no fields."""
    other = RAW["winlogbeat6"] | {"event_id": 5}
    assert not counts(read(other, "resilient"), default_rule())


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({}, "h1"),
        ({"winlog__computer_name": "ws-1.corp"}, "h1"),  # first labels compare without case
        ({"winlog__computer_name": "ws-2.corp"}, "ws-2.corp"),
        ({"winlog__computer_name": "ws-1.corp", "tags": ["x", "forwarded"]}, "ws-1.corp"),
        ({"host__id": None, "winlog__computer_name": "ws-1", "agent__id": "a"}, "ws-1"),
        ({"host__id": None, "agent__id": "a"}, "a"),
    ],
    ids=str,
)
def test_host_of_a_sysmon_document(changes: Json, host: str) -> None:
    """§7: resilient resolves the collector's host block; strict takes host.id as it is."""
    document = event(0, event__provider=SYSMON, **changes)
    assert host_ids(read(document, "resilient")) == [host]
    strict_ids = [] if "host__id" in changes else ["h1"]
    assert host_ids(read(document, "strict")) == strict_ids


def test_the_host_name_of_a_collected_document_is_its_computer_name() -> None:
    """The computer name also replaces a missing host.name."""
    collected = event(0, event__provider=SYSMON, winlog__computer_name="ws-2")
    nameless = event(0, host__name=None, winlog__computer_name="ws-3")
    assert host_names(read(collected, "resilient")) == ["ws-2"]
    assert host_names(read(nameless, "resilient")) == ["ws-3"]


@pytest.mark.parametrize(
    "exception",
    [
        {"destination": "45.83.64.1"},
        {"destination": "45.83.64.0/24"},
        {"process": "CHROME.exe"},
        {"host": "{H1}"},
        {"host": "ws-1"},
        {"destination": "45.83.64.0/24", "process": "chrome.exe", "host": "h1"},
        {},
    ],
    ids=str,
)
def test_exceptions(exception: Json) -> None:
    """An excepted event does not count for that rule; other rules still count it."""
    rules = [
        default_rule(min_connections_per_hour=4, min_duration_hours=0, id="1", exceptions=[exception]),
        default_rule(min_connections_per_hour=4, min_duration_hours=0, id="2"),
    ]
    alerts = replay([four_at(0)], small() | {"rules": rules}).alerts
    assert [alert["rule"]["uuid"] for alert in alerts] == ["2"]


@pytest.mark.parametrize(
    "exception",
    [
        {"destination": "45.83.64.2"},
        {"destination": "45.83.65.0/24"},
        {"process": "svchost.exe"},
        {"host": "h2"},
        {"destination": "45.83.64.1", "host": "h2"},
    ],
    ids=str,
)
def test_exceptions_that_do_not_match(exception: Json) -> None:
    """Every field of an exception must match."""
    assert alert_steps(replay([four_at(0)], small(exceptions=[exception]))) == [("opened", 5, None)]


def test_dead_letter_reasons() -> None:
    """Lines that are not a JSON object and documents without a usable time; all of them count as consumed."""
    records = ["{not json", "[1]", '"text"', {}, event(0, **{"@timestamp": "today"}), event(0)]
    result = replay([records], small())
    assert result.dead_lettered == {"not_json": 1, "not_an_object": 2, "no_time": 2}
    assert (result.consumed, result.counted) == (6, 1)


# ------------------------------------------------------------------------------------------- real captures


def capture(name: str) -> list[Any]:
    path = CAPTURES / name
    if not path.exists():
        pytest.skip("the public captures are not part of the project")
    return path.read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", ["winlogbeat6-kafka-empire-opth.jsonl", "nxlog-flat-empire-monologue.jsonl"])
def test_real_captures_give_no_alert_with_default_rules(name: str) -> None:
    """Private addresses, other processes, five minutes; one svchost.exe contacts a public time server."""
    result = replay([capture(name)], default_settings())
    assert (result.alerts, result.counted) == ([], 1 if name.startswith("nxlog") else 0)


def test_the_empire_agent_in_a_real_capture() -> None:
    """data/README.md: 33 and 31 connections to 10.0.10.106:443 from two process instances."""
    rule: Json = {
        "processes": ["powershell.exe"],
        "excluded_networks": [],
        "min_connections_per_hour": 64,
        "max_processes": 2,
    }
    lines = capture("winlogbeat6-kafka-empire-opth.jsonl")
    alerts = replay([lines], small(**rule)).alerts
    assert {alert["destination"]["address"] for alert in alerts} == {"10.0.10.106"}
    assert figures(alerts[-1])["count_unique_pids"] == 2
    assert figures(alerts[-1])["count_connections"] == 33 + 31
    assert {alert["host"]["id"] for alert in alerts} == {"IT001.shire.com"}
    assert replay([lines], small(**(rule | {"min_connections_per_hour": 65}))).alerts == []


# ------------------------------------------------------------------------------- the generated data sets

GENERATED = hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def test_generated_data_sets_cover_alerts_and_reasons() -> None:
    """At least 40 % have an opened alert, and every action and reason occurs."""
    observed: Counter[str] = Counter()

    @hypothesis_settings(GENERATED, max_examples=200)
    @given(data_sets())
    def generate(data_set: DataSet) -> None:
        alerts = replay(*data_set).alerts
        parts = [alert["streamdetect"] for alert in alerts]
        observed.update({part["action"] for part in parts} | {part["reason"] or "none" for part in parts})
        observed["data sets"] += 1

    generate()
    assert observed["opened"] >= 0.4 * observed["data sets"]
    reasons = ("expired", "second_host", "second_process", "no_host", "no_process", "duration", "rate")
    assert all(observed[name] for name in ("updated", "resolved", *reasons)), observed


@GENERATED
@given(data_sets(timestamps=True))
def test_every_record_has_exactly_one_outcome(data_set: DataSet) -> None:
    """Consumed is the sum of counted, filtered, late and dead-lettered."""
    result = replay(*data_set)
    groups = result.counted + result.filtered_total + result.late + sum(result.dead_lettered.values())
    assert result.consumed == sum(map(len, data_set.partitions)) == groups


@GENERATED
@given(data_sets())
def test_partition_order_does_not_matter(data_set: DataSet) -> None:
    """§4: the result depends only on the records of each partition."""
    partitions, settings = data_set
    assert replay(partitions[::-1], settings) == replay(partitions, settings)


@GENERATED
@given(data_sets())
def test_lines_and_parsed_documents_give_the_same_result(data_set: DataSet) -> None:
    """The text form is what the real command reads."""
    lines: list[Any] = [as_lines(records) for records in data_set.partitions]
    assert replay(lines, data_set.settings) == replay(*data_set)


@GENERATED
@given(plans(timestamps=True))
def test_a_plan_always_builds_the_same_data_set(plan: Plan) -> None:
    """So that a failing example can be reproduced."""
    assert build(plan) == build(plan)
