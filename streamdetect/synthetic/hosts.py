"""The hosts of a scenario: names, addresses, ids, users, and the shape of their events."""

from __future__ import annotations

from dataclasses import dataclass

from streamdetect.synthetic.draws import below, between, guid, hexa, pick, stream
from streamdetect.synthetic.programs import Account, Launcher
from streamdetect.synthetic.scenario import HOUR_MS, Scenario

DOMAIN = "nordhavn.example"
NT_DOMAIN = "NORDHAVN"

_SITES = ("OSL", "BGO", "CPH", "GOT", "HEL")
_GIVEN = (
    "ada", "bjorn", "carla", "dag", "elin", "frode", "gro", "henrik", "ida", "jonas", "kari", "lars",
    "mona", "nils", "oda", "per", "ragna", "sven", "tora", "ulrik", "vera", "wanda", "yngve", "astrid",
)  # fmt: skip
_FAMILY = (
    "aas", "berg", "dahl", "eide", "foss", "grav", "hagen", "iversen", "jensen", "krogh", "lund",
    "moen", "nygaard", "olsen", "piehl", "ruud", "solberg", "tangen", "ulvik", "viken",
)  # fmt: skip

_WINDOWS = (
    ("Windows 11 Pro", "23H2 (10.0.22631.4890)"),
    ("Windows 11 Enterprise", "24H2 (10.0.26100.3194)"),
    ("Windows 10 Pro", "22H2 (10.0.19045.5487)"),
    ("Windows Server 2022 Datacenter", "21H2 (10.0.20348.3207)"),
)

# The shapes of each kind of scenario: host n has entry n modulo the length. The common ones of `mixed` come first, so
# that a small scenario is plausible too; 20 hosts have every shape.
_SHAPES: dict[str, tuple[str, ...]] = {
    "defend": ("defend-8.12", "defend-8.18-full"),
    "sysmon-raw": ("winlogbeat8-raw", "agent-raw", "winlogbeat8-raw", "winlogbeat8-forwarded"),
    "sysmon-ecs": ("sysmon-ecs", "winlogbeat7-ecs", "sysmon-ecs", "sysmon-ecs-forwarded"),
    "mixed": (
        "defend-8.12", "winlogbeat8-raw", "defend-8.18", "sysmon-ecs",
        "defend-8.18-full", "winlogbeat8-forwarded", "defend-8.12", "agent-raw",
        "winlogbeat6", "defend-8.18", "sysmon-ecs-forwarded", "nxlog-flat",
        "defend-scalars", "logstash-raw", "winlogbeat7-ecs", "defend-8.18-full",
        "evtx-dump", "winlogbeat8-raw", "azure-eventdata-string", "python-evtx",
    ),
}  # fmt: skip


@dataclass(slots=True, eq=False)
class Machine:
    """A computer as described in documents."""

    name: str
    id: str
    agent_id: str
    ephemeral_id: str
    ip: str
    ip6: str
    link_local: str
    mac: str
    variant: str
    build: str

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{DOMAIN}"


@dataclass(slots=True, eq=False)
class Host:
    """An endpoint: a machine with a user, a shape, and a collector if its events are forwarded."""

    index: int
    machine: Machine
    shape: str
    user: Account
    launcher: Launcher
    collector: Machine
    utc_offset_hours: int
    old_sysmon: bool  # leaves unknown values empty; newer versions write "-"

    @property
    def sysmon(self) -> bool:
        return not self.shape.startswith("defend")

    @property
    def network_only(self) -> bool:
        """Exports with Event ID 3 only: other events would have no time in a common field."""
        return self.shape in ("evtx-dump", "python-evtx", "azure-eventdata-string")

    @property
    def start_and_end(self) -> bool:
        """Elastic Defend before 8.18 writes a connection's start and its end as two records."""
        return self.shape in ("defend-8.12", "defend-scalars")


def shapes_of(scenario: Scenario) -> tuple[str, ...]:
    return _SHAPES[scenario.shape]


def make_hosts(scenario: Scenario) -> list[Host]:
    """Every host of the scenario."""
    amount = 1 + scenario.hosts // 200
    collectors = [_machine(scenario.seed, -1 - number, f"WEC{number + 1:02d}") for number in range(amount)]
    return [_host(scenario, index, collectors) for index in range(scenario.hosts)]


def _host(scenario: Scenario, index: int, collectors: list[Machine]) -> Host:
    rng = stream(scenario.seed, 2, index)
    machine = _machine(scenario.seed, index, f"{pick(rng, _SITES)}-WS-{index + 1:04d}")
    name = f"{pick(rng, _GIVEN)}.{pick(rng, _FAMILY)}"
    user = Account(name, NT_DOMAIN, f"S-1-5-21-771-4019-8826-{1100 + index}")
    boot_ms = scenario.start_ms - between(rng, HOUR_MS, 90 * HOUR_MS)
    shapes = shapes_of(scenario)
    return Host(
        index=index,
        machine=machine,
        shape=shapes[index % len(shapes)],
        user=user,
        launcher=Launcher(rng, machine.agent_id, hexa(rng, 8), boot_ms),
        collector=pick(rng, collectors),
        utc_offset_hours=between(rng, -5, 3),
        old_sysmon=rng.random() < 0.3,
    )


def _machine(seed: int, index: int, name: str) -> Machine:
    rng = stream(seed, 1, index)
    number = index % 60_000 + 256
    variant, build = pick(rng, _WINDOWS)
    return Machine(
        name=name,
        id=guid(rng),
        agent_id=guid(rng),
        ephemeral_id=guid(rng),
        ip=f"10.{64 + index // 60_000}.{number >> 8}.{number & 255}",
        ip6=f"fd7a:20:{number:x}::{below(rng, 1 << 16) + 1:x}",
        link_local=f"fe80::{below(rng, 1 << 16) + 1:x}:{below(rng, 1 << 16) + 1:x}",
        mac="-".join(("02", *(hexa(rng, 2) for _ in range(5)))),
        variant=variant,
        build=build,
    )
