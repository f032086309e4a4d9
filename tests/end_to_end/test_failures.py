"""Failures that a run survives, or that end it with the right exit code and no loss. Real broker and file system."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import chaos
import pytest
from chaos import Results, RunProcess, Sandbox, Shards, committed, running

from broker import Broker

OUTAGE_SECONDS = 60.0
"""The outage that docs/operations.md says is tested. No other test here waits for a fixed time."""

MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.synthetic_shards(seed=21, hours=6, hosts=8)


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    """A broker that only these tests use, so they may stop it."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="module")
def expected(own_broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return chaos.undisturbed(Sandbox(own_broker, tmp_path_factory.mktemp("undisturbed")), shards)


@pytest.fixture
def make_sandbox(own_broker: Broker, tmp_path: Path) -> MakeSandbox:
    return lambda **chosen: Sandbox(own_broker, tmp_path / "sandbox", **chosen)


# -- the broker


def test_an_outage_of_a_minute(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """The broker is killed while alerts are published and restarts after 60 s: the run continues by itself."""
    sandbox = make_sandbox()
    first, second = chaos.slices(shards, 2)
    sandbox.write(first)
    with running(sandbox) as process:
        process.wait_for_log("reading ")
        own_broker.kill()
        try:
            with pytest.raises(TimeoutExpired):
                process.process.wait(OUTAGE_SECONDS)
        finally:
            own_broker.start()
        sandbox.write(second)
        process.finish()
    assert sandbox.results().difference(expected) == ""


def test_restarts_of_the_broker(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """Clean restarts and SIGKILL, while records are read and transactions are open."""
    sandbox = make_sandbox()
    with running(sandbox) as process:
        for number, piece in enumerate(chaos.slices(shards, 4)):
            sandbox.write(piece)
            process.wait_for_log("reading ")
            if number % 2:
                own_broker.kill()
            own_broker.restart()
        process.finish()
    assert sandbox.results().difference(expected) == ""


def test_a_stop_during_an_outage_saves_everything(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """SIGTERM in an outage: exit code 4 within bounded time; the next start publishes the pending outputs."""
    sandbox = make_sandbox()
    sandbox.write(shards)
    with running(sandbox) as process:
        process.wait_for_log("reading ")
        own_broker.kill()
        try:
            process.signal(signal.SIGTERM)
            assert "published at the next start" in process.wait_for_exit(expected=4)
        finally:
            own_broker.start()
    with running(sandbox) as process:
        process.finish()
    assert sandbox.results().difference(expected) == ""


# -- the file system


def with_file_limit(sandbox: Sandbox, limit: int) -> RunProcess:
    """A run that cannot write beyond `limit` bytes of a file: the system refuses, as a full disk does."""

    def set_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return RunProcess(sandbox, before=set_limit)


@pytest.mark.parametrize("kilobytes", [1, 60, 400])
@pytest.mark.parametrize("sink", ["kafka", "file"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    make_sandbox: MakeSandbox, shards: Shards, expected: Results, sink: str, kilobytes: int
) -> None:
    """Full at the first or a later write: exit code 9 for the state, 8 for the alert file; with space it continues."""
    sandbox = make_sandbox(alerts=sink)
    sandbox.write(shards)
    process = with_file_limit(sandbox, kilobytes * 1024)
    try:
        code = process.process.wait(chaos.WAIT_SECONDS)
    finally:
        process.kill()
    output = process.output()
    assert code in ((9, 8) if sink == "file" else (9,)), output
    assert "Traceback" not in output
    assert "writable" in output
    with running(sandbox) as again:
        again.finish()
    found = sandbox.results()
    assert found.alerts == expected.alerts
    assert [one[:3] for one in found.dead_letters] == [one[:3] for one in expected.dead_letters]


def test_a_read_only_directory_is_9(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """The start fails before anything is read; the message names the directory."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:
        # Modes do not restrict root, but /sys does not allow new directories.
        folder = Path("/sys/streamdetect")
    with running(make_sandbox(), "--set", f"checkpoint.path={folder / 'state'}") as process:
        assert str(folder) in process.wait_for_exit(expected=9)


# -- records


def test_records_at_the_size_limit(make_sandbox: MakeSandbox, own_broker: Broker) -> None:
    """limits.max_record_bytes is accepted; one byte more is a dead letter, whole if its topic allows it."""
    sandbox = make_sandbox()
    for topic in (sandbox.topic, sandbox.dead_letter_topic):
        own_broker.configure(topic, max_message_bytes="4000000")
    document = {"@timestamp": chaos.START_MS, "process": {"name": "other.exe"}, "padding": ""}
    room = (1 << 20) - len(json.dumps(document))
    fits = json.dumps(document | {"padding": "x" * room}).encode()
    too_long = json.dumps(document | {"padding": "x" * (room + 1)}).encode()
    assert (len(fits), len(too_long)) == (1 << 20, (1 << 20) + 1)
    sandbox.write([[(fits, chaos.START_MS)], [(too_long, chaos.START_MS)], [(fits, chaos.START_MS)] * 3])
    with running(sandbox) as process:
        output = process.finish()
    (dead_letter,) = committed(own_broker, sandbox.dead_letter_topic)
    assert dead_letter.value == too_long
    assert dict(dead_letter.headers)["streamdetect.reason"] == b"too_large"
    assert "5 records" in output


def test_a_poison_record_at_every_position_of_a_batch(make_sandbox: MakeSandbox) -> None:
    """The records around it are processed: 40 batches of 5, one record in each broken, at each position 8 times."""
    sandbox = make_sandbox()
    poison = [b"", b"{", b"null", b"\xff\xfe", b'{"@timestamp": {}}', b"[1]", b'{"a":' * 5_000, b"x" * 100]
    good = json.dumps({"@timestamp": chaos.START_MS, "process": {"name": "other.exe"}}).encode()
    shards: Shards = [[], [], []]
    for index, (kind, position) in enumerate((kind, position) for kind in poison for position in range(5)):
        batch = [(good, chaos.START_MS)] * 5
        batch[position] = (kind, chaos.START_MS)
        shards[index % 3] += batch
    sandbox.write(shards)
    with running(sandbox) as process:
        output = process.finish()
    assert "200 records" in output
    assert len(sandbox.results().dead_letters) == 40


# -- topics


def test_a_recreated_topic(make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards) -> None:
    """Deleted and created during downtime: exit code 7; with on_lost_offsets it is read, and the state is kept."""
    sandbox = make_sandbox()
    sandbox.write(chaos.slices(shards, 2)[0])
    with running(sandbox) as process:
        process.finish()
    before = len(sandbox.results().alerts)
    own_broker.delete_topic(sandbox.topic)
    wait_until(lambda: sandbox.topic not in own_broker.admin.list_topics())
    own_broker.make_topic(sandbox.topic, partitions=chaos.PARTITIONS, retention_ms="-1")
    sandbox.written = 0
    sandbox.write(chaos.slices(shards, 2)[1])
    with running(sandbox) as process:
        assert "recreated" in process.wait_for_exit(expected=7)
    with running(sandbox, "--set", "kafka.on_lost_offsets=earliest") as process:
        process.finish()
    assert len(sandbox.results().alerts) > before


def test_retention_deleted_unread_records(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards
) -> None:
    """Exit code 7 by default, with the offsets; with `earliest` it continues at the oldest record."""
    sandbox = make_sandbox()
    first, second = chaos.slices(shards, 2)
    sandbox.write(first)
    with running(sandbox) as process:
        process.finish()
    sandbox.write(second)
    own_broker.delete_records(sandbox.topic, 0, len(first[0]) + 5)
    with running(sandbox) as process:
        assert f"should continue at offset {len(first[0])}" in process.wait_for_exit(expected=7)
    with running(sandbox, "--set", "kafka.on_lost_offsets=earliest") as process:
        process.finish()


def test_partitions_added_while_running(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards
) -> None:
    """A new partition is read from its beginning, and its position survives a restart."""
    sandbox = make_sandbox(more={"time": {"idle_timeout": "1s"}})
    sandbox.write(chaos.slices(shards, 2)[0])
    extra = [(b"no event in a new partition", chaos.START_MS)]
    with running(sandbox) as process:
        process.wait_for_log("reading ")
        own_broker.add_partitions(sandbox.topic, chaos.PARTITIONS + 1)
        sandbox.write([[], [], [], extra])
        process.wait_for_log("new partitions")
        wait_until(
            lambda: any("new partition" in str(dead_letter) for dead_letter in sandbox.results().dead_letters)
        )
        process.signal(signal.SIGTERM)
        process.wait_for_exit()
    with running(sandbox) as process:
        process.wait_for_log("reading ")
        process.signal(signal.SIGTERM)
        process.wait_for_exit()
    dead_letters = [
        dead_letter for dead_letter in sandbox.results().dead_letters if "new partition" in dead_letter[3]
    ]
    assert dead_letters == [("3", "0", "not_json", repr(extra[0][0]))]


def test_a_flipped_byte_in_a_log_segment_is_4(
    make_sandbox: MakeSandbox, own_broker: Broker, shards: Shards
) -> None:
    """The run ends and names the partition, it does not spin; with the byte restored it continues without loss."""
    sandbox = make_sandbox()
    sandbox.write(shards)
    own_broker.stop()
    segment = own_broker.segment(sandbox.topic, 1)
    whole = segment.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x10
    segment.write_bytes(damaged)
    own_broker.start()
    with running(sandbox) as process:
        assert f"{sandbox.topic} partition 1" in process.wait_for_exit(expected=4)
    own_broker.stop()
    segment.write_bytes(whole)
    own_broker.start()
    with running(sandbox) as process:
        process.finish()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + chaos.WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
