"""Programs and their running instances."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from streamdetect.synthetic.draws import below, between, hexa


class Account(NamedTuple):
    name: str
    domain: str
    sid: str


SYSTEM = Account("SYSTEM", "NT AUTHORITY", "S-1-5-18")
NETWORK_SERVICE = Account("NETWORK SERVICE", "NT AUTHORITY", "S-1-5-20")


class Program(NamedTuple):
    """A program. An `executable` without a backslash (`System`) has no process name in Sysmon events."""

    name: str
    executable: str
    signer: str
    parent: str = "C:\\Windows\\explorer.exe"


_OFFICE = "C:\\Program Files\\Microsoft Office\\root\\Office16\\"
_SERVICES = "C:\\Windows\\System32\\services.exe"

CHROME = Program("chrome.exe", "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe", "Google LLC")
EDGE = Program(
    "msedge.exe", "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe", "Microsoft Corporation"
)
FIREFOX = Program("firefox.exe", "C:\\Program Files\\Mozilla Firefox\\firefox.exe", "Mozilla Corporation")
SVCHOST = Program(
    "svchost.exe", "C:\\Windows\\System32\\svchost.exe", "Microsoft Windows Publisher", _SERVICES
)
LSASS = Program("lsass.exe", "C:\\Windows\\System32\\lsass.exe", "Microsoft Windows Publisher", _SERVICES)
KERNEL = Program("System", "System", "")
UNKNOWN = Program("", "<unknown process>", "")

APPS = (
    Program("ms-teams.exe", "C:\\Program Files\\WindowsApps\\MSTeams\\ms-teams.exe", "Microsoft Corporation"),
    Program("OneDrive.exe", "C:\\Program Files\\Microsoft OneDrive\\OneDrive.exe", "Microsoft Corporation"),
    Program("OUTLOOK.EXE", _OFFICE + "OUTLOOK.EXE", "Microsoft Corporation"),
    Program("slack.exe", "C:\\Program Files\\Slack\\slack.exe", "Slack Technologies, LLC"),
    Program("Spotify.exe", "C:\\Program Files\\Spotify\\Spotify.exe", "Spotify AB"),
    Program("MsMpEng.exe", "C:\\ProgramData\\Microsoft\\Windows Defender\\Platform\\4.18\\MsMpEng.exe",
            "Microsoft Windows Publisher", _SERVICES),
    Program("backgroundTaskHost.exe", "C:\\Windows\\System32\\backgroundTaskHost.exe", "Microsoft Windows"),
)  # fmt: skip

TOOLS = (
    Program("conhost.exe", "C:\\Windows\\System32\\conhost.exe", "Microsoft Windows"),
    Program("RuntimeBroker.exe", "C:\\Windows\\System32\\RuntimeBroker.exe", "Microsoft Windows"),
    Program("WmiPrvSE.exe", "C:\\Windows\\System32\\wbem\\WmiPrvSE.exe", "Microsoft Windows"),
    Program("EXCEL.EXE", _OFFICE + "EXCEL.EXE", "Microsoft Corporation"),
)

BROWSERS = (CHROME, EDGE, FIREFOX)


@dataclass(slots=True, eq=False)
class Process:
    """One process instance, with Elastic Defend's id (`entity_id`) and Sysmon's (`guid`)."""

    program: Program
    account: Account
    pid: int
    entity_id: str
    guid: str
    md5: str
    parent_pid: int
    parent_entity_id: str
    parent_guid: str
    block: dict[str, Any] | None = None  # Elastic Defend's rendering, cached


class Launcher:
    """Starts processes on one host, with ids built as the sensors build them."""

    def __init__(self, rng: Random, agent_id: str, sysmon_machine: str, boot_ms: int) -> None:
        self._rng = rng
        self._agent_id = agent_id
        self._machine = sysmon_machine
        self._parent_pid = between(rng, 150, 400) * 4
        self._parent_entity_id = self._entity(self._parent_pid, boot_ms)
        self._parent_guid = self._guid(boot_ms)
        self._hashes: dict[str, str] = {}

    def start(self, program: Program, account: Account, time_ms: int) -> Process:
        pid = 4 if program.executable == "System" else between(self._rng, 300, 6000) * 4
        md5 = self._hashes.get(program.executable)
        if md5 is None:
            md5 = self._hashes[program.executable] = hexa(self._rng, 32)
        return Process(
            program, account, pid, self._entity(pid, time_ms), self._guid(time_ms), md5,
            self._parent_pid, self._parent_entity_id, self._parent_guid,
        )  # fmt: skip

    def _entity(self, pid: int, time_ms: int) -> str:
        filetime = f"{time_ms // 1000 + 11_644_473_600}.{below(self._rng, 10_000_000):07d}00"
        return b64encode(f"{self._agent_id}-{pid}-{filetime}".encode()).decode()

    def _guid(self, time_ms: int) -> str:
        second = time_ms // 1000
        token = f"{below(self._rng, 1 << 16):04x}-{below(self._rng, 1 << 32):08x}0{hexa(self._rng, 1)}00"
        return f"{{{self._machine}-{second & 0xFFFF:04x}-{second >> 16:04x}-{token}}}"
