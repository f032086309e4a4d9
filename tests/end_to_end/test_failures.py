"""Failures that a run must survive, or end from with the right exit code and nothing lost: real broker, real file
system.
"""

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
from chaos import Process, Results, Shards, Stage, committed, running

from broker import Broker

OUTAGE_SECONDS = 60.0
"""What the page asks for. Nothing here waits for the clock but this outage."""

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def shards() -> Shards:
    return chaos.made_up(seed=21, hours=6, hosts=8)


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    """A broker that these tests may stop."""
    with Broker() as started:
        yield started


@pytest.fixture(scope="module")
def expected(own_broker: Broker, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return chaos.undisturbed(Stage(own_broker, tmp_path_factory.mktemp("calm")), shards)


@pytest.fixture
def make_stage(own_broker: Broker, tmp_path: Path) -> MakeStage:
    return lambda **chosen: Stage(own_broker, tmp_path / "stage", **chosen)


# -- the broker


def test_an_outage_of_a_minute_in_mid_stream(
    make_stage: MakeStage, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """The broker is killed while alerts are on their way, and is back after 60 s: the run goes on by itself."""
    stage = make_stage()
    first, second = chaos.slices(shards, 2)
    stage.write(first)
    with running(stage) as process:
        process.wait_for("reading ")
        own_broker.kill()
        try:
            with pytest.raises(TimeoutExpired):
                process.process.wait(OUTAGE_SECONDS)
        finally:
            own_broker.start()
        stage.write(second)
        process.finish()
    assert stage.results().difference(expected) == ""


def test_restarts_of_the_broker_in_mid_stream(
    make_stage: MakeStage, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """In order and by SIGKILL, while records are read and transactions are under way."""
    stage = make_stage()
    with running(stage) as process:
        for number, piece in enumerate(chaos.slices(shards, 4)):
            stage.write(piece)
            process.wait_for("reading ")
            if number % 2:
                own_broker.kill()
            own_broker.restart()
        process.finish()
    assert stage.results().difference(expected) == ""


def test_a_stop_while_the_broker_is_away_saves_everything(
    make_stage: MakeStage, own_broker: Broker, shards: Shards, expected: Results
) -> None:
    """SIGTERM in an outage: exit 4 within bounded time, since not all could be published; the next start does it."""
    stage = make_stage()
    stage.write(shards)
    with running(stage) as process:
        process.wait_for("reading ")
        own_broker.kill()
        try:
            process.signal(signal.SIGTERM)
            assert "goes out at the next start" in process.end(expected=4)
        finally:
            own_broker.start()
    with running(stage) as process:
        process.finish()
    assert stage.results().difference(expected) == ""


# -- the file system


def with_file_limit(stage: Stage, limit: int) -> Process:
    """A run that can make no file longer than `limit` bytes: the file system refuses, as a full one does."""

    def confine() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return Process(stage, before=confine)


@pytest.mark.parametrize("kilobytes", [1, 60, 400])
@pytest.mark.parametrize("sink", ["kafka", "file"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    make_stage: MakeStage, shards: Shards, expected: Results, sink: str, kilobytes: int
) -> None:
    """No room at the first write, or at a later one: exit 9 for the state, 8 for the alert file; with room it goes
    on.
    """
    stage = make_stage(alerts=sink)
    stage.write(shards)
    process = with_file_limit(stage, kilobytes * 1024)
    try:
        code = process.process.wait(chaos.WAIT_SECONDS)
    finally:
        process.kill()
    said = process.said()
    assert code in ((9, 8) if sink == "file" else (9,)), said
    assert "Traceback" not in said
    assert "writable" in said
    with running(stage) as again:
        again.finish()
    found = stage.results()
    assert found.alerts == expected.alerts
    assert [one[:3] for one in found.dead_letters] == [one[:3] for one in expected.dead_letters]


def test_a_directory_that_is_read_only_is_9(make_stage: MakeStage, tmp_path: Path) -> None:
    """At the start, before anything is read; the message names the directory."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:
        # Modes say nothing to root, but in /sys nobody can make a directory.
        folder = Path("/sys/streamdetect")
    with running(make_stage(), "--set", f"checkpoint.path={folder / 'state'}") as process:
        assert str(folder) in process.end(expected=9)


# -- records


def test_records_of_a_mebibyte(make_stage: MakeStage, own_broker: Broker) -> None:
    """Exactly limits.max_record_bytes counts; one byte more is a dead letter, whole, if the topic takes it."""
    stage = make_stage()
    for topic in (stage.topic, stage.dead_letter_topic):
        own_broker.configure(topic, max_message_bytes="4000000")
    document = {"@timestamp": chaos.START_MS, "process": {"name": "other.exe"}, "padding": ""}
    room = (1 << 20) - len(json.dumps(document))
    fits = json.dumps(document | {"padding": "x" * room}).encode()
    too_long = json.dumps(document | {"padding": "x" * (room + 1)}).encode()
    assert (len(fits), len(too_long)) == (1 << 20, (1 << 20) + 1)
    stage.write([[(fits, chaos.START_MS)], [(too_long, chaos.START_MS)], [(fits, chaos.START_MS)] * 3])
    with running(stage) as process:
        said = process.finish()
    (dead_letter,) = committed(own_broker, stage.dead_letter_topic)
    assert dead_letter.value == too_long
    assert dict(dead_letter.headers)["streamdetect.reason"] == b"too_large"
    assert "5 records" in said


def test_a_poison_record_at_every_position_of_a_batch(make_stage: MakeStage) -> None:
    """Whatever is around it is counted: 40 batches of 5 records, one in each broken, at each position 8 times."""
    stage = make_stage()
    poison = [b"", b"{", b"null", b"\xff\xfe", b'{"@timestamp": {}}', b"[1]", b'{"a":' * 5_000, b"x" * 100]
    good = json.dumps({"@timestamp": chaos.START_MS, "process": {"name": "other.exe"}}).encode()
    shards: Shards = [[], [], []]
    for index, (kind, position) in enumerate((kind, position) for kind in poison for position in range(5)):
        batch = [(good, chaos.START_MS)] * 5
        batch[position] = (kind, chaos.START_MS)
        shards[index % 3] += batch
    stage.write(shards)
    with running(stage) as process:
        said = process.finish()
    assert "200 records" in said
    assert len(stage.results().dead_letters) == 40


# -- topics


def test_a_topic_made_anew(make_stage: MakeStage, own_broker: Broker, shards: Shards) -> None:
    """Deleted and created while the run was down: 7 by default; with on_lost_offsets the new one is read, state
    kept.
    """
    stage = make_stage()
    stage.write(chaos.slices(shards, 2)[0])
    with running(stage) as process:
        process.finish()
    before = len(stage.results().alerts)
    own_broker.delete_topic(stage.topic)
    wait_until(lambda: stage.topic not in own_broker.admin.list_topics())
    own_broker.make_topic(stage.topic, partitions=chaos.PARTITIONS, retention_ms="-1")
    stage.written = 0
    stage.write(chaos.slices(shards, 2)[1])
    with running(stage) as process:
        assert "recreated" in process.end(expected=7)
    with running(stage, "--set", "kafka.on_lost_offsets=earliest") as process:
        process.finish()
    assert len(stage.results().alerts) > before


def test_retention_overtook_us(make_stage: MakeStage, own_broker: Broker, shards: Shards) -> None:
    """7 by default, with the offsets; with `earliest` it goes on with what is left."""
    stage = make_stage()
    first, second = chaos.slices(shards, 2)
    stage.write(first)
    with running(stage) as process:
        process.finish()
    stage.write(second)
    own_broker.delete_records(stage.topic, 0, len(first[0]) + 5)
    with running(stage) as process:
        assert f"should continue at offset {len(first[0])}" in process.end(expected=7)
    with running(stage, "--set", "kafka.on_lost_offsets=earliest") as process:
        process.finish()


def test_partitions_added_while_running(make_stage: MakeStage, own_broker: Broker, shards: Shards) -> None:
    """Records in a partition that came up later are read from its beginning, and its position survives a restart."""
    stage = make_stage(more={"time": {"idle_timeout": "1s"}})
    stage.write(chaos.slices(shards, 2)[0])
    extra = [(b"no event in a new partition", chaos.START_MS)]
    with running(stage) as process:
        process.wait_for("reading ")
        own_broker.add_partitions(stage.topic, chaos.PARTITIONS + 1)
        stage.write([[], [], [], extra])
        process.wait_for("new partitions")
        wait_until(
            lambda: any("new partition" in str(dead_letter) for dead_letter in stage.results().dead_letters)
        )
        process.signal(signal.SIGTERM)
        process.end()
    with running(stage) as process:
        process.wait_for("reading ")
        process.signal(signal.SIGTERM)
        process.end()
    dead_letters = [
        dead_letter for dead_letter in stage.results().dead_letters if "new partition" in dead_letter[3]
    ]
    assert dead_letters == [("3", "0", "not_json", repr(extra[0][0]))]


def test_a_flipped_byte_in_a_log_segment_is_4(
    make_stage: MakeStage, own_broker: Broker, shards: Shards
) -> None:
    """The client must not spin: the run ends and names the partition; with the byte back it goes on and loses
    nothing.
    """
    stage = make_stage()
    stage.write(shards)
    own_broker.stop()
    segment = own_broker.segment(stage.topic, 1)
    whole = segment.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x10
    segment.write_bytes(damaged)
    own_broker.start()
    with running(stage) as process:
        assert f"{stage.topic} partition 1" in process.end(expected=4)
    own_broker.stop()
    segment.write_bytes(whole)
    own_broker.start()
    with running(stage) as process:
        process.finish()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + chaos.WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
