"""Values of fields for fuzz_mutations.py, as JSON texts: valid ones, malformed ones, and invalid JSON.

For types with limits (ports, addresses, times, lengths) there are values on both sides.
"""

from __future__ import annotations

import json
from random import Random

from oracle import time_text

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SYSMON = "Microsoft-Windows-Sysmon"


def texts(*values: str) -> tuple[bytes, ...]:
    """Each value as a JSON text."""
    return tuple(json.dumps(value, ensure_ascii=False).encode() for value in values)


# fmt: off
_NINES = b"9" * 5000
ANYTHING: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"[]", b"{}", b"0", b"-0", b"-1", b"3", b"1.50", b"1e2", b"9007199254740993",
    b"18446744073709551616", b"1180591620717411303424", b"-9223372036854775809", b"1e308", b"1e400", b"-1e400",
    b"1e-400", b"5e-324", _NINES, b"-" + _NINES, b"0." + _NINES, b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\\u2028"',
    b'["a","b"]', b'[null,[null,"a"],[]]', b'["a","a"]', b"[1,1]", b'[{"a":1},"a"]', b'{"a":{"b":1}}',
    *texts("", "-", " ", "\\", "\x7f", "\u0130", "\u212a", "\u202e", "\u0661", "\uff13"),
    *texts(*("x" * length for length in (512, 513, 1024, 1025, 5000))),
    *texts(*("\U0001f600" * length for length in (256, 257, 512, 513))),
)
# Not JSON, so that the whole record is not JSON.
BROKEN: tuple[bytes, ...] = (
    b"NaN", b"Infinity", b"01", b"+1", b".5", b"1.", b"'x'", b"", b"{a:1}", b"[1,]", b'"\\x41"', b'"\\u12"',
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"',
)
NAMES = (
    *texts("chrome.exe", "CHROME.EXE", "svchost.exe", "msedge.exe", "chrome.exe ", "cmd.exe"),
    b'["chrome.exe","chrome.exe"]', b'["chrome.exe","CHROME.EXE"]', b'["chrome.exe","cmd.exe"]',
)
PORTS = (
    *texts("443", "+443", "0443", "443.9", "4e2", "-1", " 443", "0x1bb", "53", "53.9", "5.3e1", "65536", "1e19"),
    *texts("1e999999999", "1e-9", ".5", "5.", "-.5", "--1", "4\u0664", "0" * 64, "0" * 65, str(1 << 63)),
    b"443", b"53", b"53.9", b"443.5", b"[443]", b"[443,443]", b'[443,"x"]', b"65536", b"-443", b"true", b"4.43e2",
)
ADDRESSES = (
    *texts("45.83.64.1", "45.83.64.7", "9.9.9.9", "10.1.2.3", "::ffff:8.8.8.8", "::ffff:10.1.2.3", "fe80::1%5"),
    *texts("2001:db8::7", "2001:DB8:0:0:0:0:0:7", "0:0:0:0:0:0:0:1", "::", "::1", "0.0.0.0", "255.255.255.255"),
    *texts("045.83.64.1", "45.83.64.1 ", "45.83.64.1%1", "[::1]", "::1/128", "1.2.3", "1.2.3.4.5", "::ffff:8.8.8.8%1"),
    *texts("2001:db8::7%", "%", ":", ":::", "1::2::3", "::1.2.3.4", "2001:db8::" + "0" * 200, "4\u0665.83.64.1", "-"),
    *texts("C2.Example.net", "c2.example.net.", "\u0130.example", "stra\u00dfe.example", "a" * 1025),
    b'["45.83.64.1","45.83.64.1"]', b'["45.83.64.1","9.9.9.9"]', b'["45.83.64.1","nope"]', b"757284865",
)
DIRECTIONS = (
    *texts("egress", "outbound", "ingress", "inbound", "Egress", "unknown"),
    b'["egress","outbound"]', b'["egress","ingress"]', b'["egress","egress"]',
)
IDS = (
    *texts("h1", "H1", "{H1}", "{{h1}}", "{}", "{00000000-0000-0000-0000-000000000000}", "ws-1.corp.example"),
    b"17", b"1.50", b"1e2", b'["h1","{H1}"]', b'["h1","h2"]', b'["h2","h1","h3"]', b"1180591620717411303424",
)
PIDS = (b"1", b"-1", b"1.5", b'"1"', b"[1]", b"[1,2]", b"1180591620717411303424", b"18446744073709551615")
IMAGES = texts("C:\\x\\chrome.exe", "D:\\CHROME.EXE", "C:\\x\\", "System", "<unknown process>", "\\", "\\\\a")
USERS = (*texts("CORP\\anna", "\\", "A\\B\\C", "lonely"), b'["CORP\\\\anna","x"]')
EVENT_IDS = (b"3", b'"3"', b"3.0", b"1", b'{"#text":3}', b'{"#text":"3"}', b"[3]", b'"03"', b"true")
TAGS = (b'["forwarded"]', b'"forwarded"', b'[["forwarded"]]', b'["x"]', b'["beats","forwarded"]')
CATEGORIES = (b'"network"', b'["network"]', b'["network","network"]', b'[["network"]]', b'["network","process"]')
DATASETS = texts("endpoint.events.network", "windows.sysmon_operational", "x", "system.security")
PROVIDERS = (*texts(SYSMON, SYSMON.lower(), "sysmon"), b'["Microsoft-Windows-Sysmon"]')
FAMILIES = (*texts("windows", "linux", "Windows", ""), b'["windows","linux"]', b'["windows","windows"]')
INITIATED = (*texts("true", "false", "TRUE", "yes"), b"true", b"false")
EXTREME_TIMES = (
    b"0", b"-1", b"1e3", b"9999", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808",
    *texts("0", "9999", "10000", str(-1 << 63), str((1 << 63) - 1), str(1 << 63), "1772409600000.9"),
    *texts("9999-12-31T23:59:59.999999999Z", "0000-01-01", "0000", "-0001-01-01", "+10000-01-01", "2026-03"),
    *texts("2026-02-30T00:00:00Z", "2026-03-02T24:00:00Z", "2026-03-02T23:59:60Z", "2026-03-02t00:00:00z"),
    *texts("2026-03-02T00:00:00+18:00", "2026-03-02T00:00:00+18:01", "2026-03-02T00:00:00+24", "\u0662026"),
    *texts("0000-01-01T00:00:00+18:00", "9999-12-31T23:59:59-18:00", "2026-03-02T00:00:00.Z", "2026-03-02T00:00:00."),
    *texts("2026-03-02T", "T00:00", "yesterday"), b"1772409600000.9",
)
# Around the limits of pane, lateness, window and largest jump in the settings of the fuzzer.
_SHIFTS_MS = (
    0, 0, 1, -1, 999, -5_000, MINUTE_MS, -MINUTE_MS, 10 * MINUTE_MS, -10 * MINUTE_MS, -9 * MINUTE_MS,
    20 * MINUTE_MS, 20 * MINUTE_MS + 1, 21 * MINUTE_MS, -HOUR_MS, 24 * HOUR_MS, -24 * HOUR_MS, 9_000 * HOUR_MS,
)
# A repeated field is set more often.
FIELDS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("process.name", NAMES), ("process.name", NAMES), ("process.entity_id", IDS), ("process.entity_id", IDS),
    ("process.pid", PIDS), ("process.executable", IMAGES), ("user.name", USERS), ("user.domain", USERS),
    ("destination.port", PORTS), ("destination.ip", ADDRESSES), ("destination.address", ADDRESSES),
    ("destination.domain", ADDRESSES), ("network.direction", DIRECTIONS), ("event.category", CATEGORIES),
    ("event.dataset", DATASETS), ("data_stream.dataset", DATASETS), ("event.provider", PROVIDERS),
    ("event.module", PROVIDERS), ("event.code", EVENT_IDS), ("host.id", IDS), ("host.name", IDS), ("host", IDS),
    ("host.os.family", FAMILIES), ("host.os.type", FAMILIES), ("agent.id", IDS), ("tags", TAGS),
    ("winlog.provider_name", PROVIDERS), ("winlog.event_id", EVENT_IDS), ("winlog.computer_name", IDS),
    ("winlog.event_data.ProcessGuid", IDS), ("winlog.event_data.Image", IMAGES), ("winlog.event_data.User", USERS),
    ("winlog.event_data.DestinationIp", ADDRESSES), ("winlog.event_data.DestinationPort", PORTS),
    ("winlog.event_data.DestinationHostname", ADDRESSES), ("winlog.event_data.Initiated", INITIATED),
    ("winlog.event_data.ProcessId", PORTS), ("event_id", EVENT_IDS), ("source_name", PROVIDERS),
    ("event_data.ProcessGuid", IDS), ("event_data.Image", IMAGES), ("computer_name", IDS),
    ("EventID", EVENT_IDS), ("Hostname", IDS), ("SourceName", PROVIDERS), ("ProcessGuid", IDS), ("Image", IMAGES),
    ("Event.System.EventID", EVENT_IDS), ("Event.System.Computer", IDS), ("Event.EventData.ProcessGuid", IDS),
)
TIME_FIELDS = ("@timestamp", "@timestamp", "winlog.event_data.UtcTime", "event_data.UtcTime", "UtcTime")
# fmt: on


def anything(rng: Random) -> bytes:
    chance = rng.random()
    return deep(rng) if chance < 0.1 else rng.choice(BROKEN if chance < 0.16 else ANYTHING)


def deep(rng: Random) -> bytes:
    """A value nested deep in arrays or objects, around every limit of the readers."""
    depth = rng.choice((2, 30, 300, 900, 980, 1000, 1010, 1020, 1023, 1024, 1025, 3000))
    inner = rng.choice(ANYTHING + NAMES)
    if rng.random() < 0.7:
        return b"[" * depth + inner + b"]" * depth
    return b'{"a":' * depth + inner + b"}" * depth


def moment(rng: Random, now_ms: int) -> bytes:
    """A time close to now or an extreme one, in a format that is accepted or almost accepted."""
    if rng.random() < 0.3:
        return rng.choice(EXTREME_TIMES)
    ms = now_ms + rng.choice(_SHIFTS_MS)
    if rng.random() < 0.2:
        return str(ms).encode()
    text = time_text(ms)
    whole = text[:-1]
    forms = (text, whole + "9999Z", whole, whole.replace("T", " "), whole + "+00:00", text[:16], str(ms))
    return texts(rng.choice(forms))[0]
