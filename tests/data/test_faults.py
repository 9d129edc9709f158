"""The stream through a store and a disk that fail: the same batches, the stated replacement, or a clear stop."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from seer_pipe.data.cache import TEMPORARY, Cache
from seer_pipe.data.chunks import Samples
from seer_pipe.data.fetch import Remote
from seer_pipe.data.order import Plan
from seer_pipe.data.stream import Stream
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet
from seer_pipe.store import S3Store, open_store
from tests.data.faults import ACCESS, Proxy, Rclone, environment
from tests.test_shards import make_set

SHARDS = [30, 0, 1, 41, 24]
BATCH, CHUNK = 8, 6
URL = "s3://images/set"
Batches = list[list[tuple[int, bytes | None]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("buckets") / "images" / "set"
    make_set(root, [[f"{s}-{i}-".encode() * (200 + i) for i in range(count)] for s, count in enumerate(SHARDS)])
    return root


@pytest.fixture(scope="module", params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, int]]:
    if request.param == "rclone":
        rclone = Rclone(folder.parents[1])
        yield rclone.address
        rclone.stop()
        return
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ACCESS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="images")
        source, target = open_store(folder), open_store(URL)
        for entry in source.list():
            target.put(entry.path, source.get(entry.path))
        yield host, port
        boto3.resource("s3").Bucket("images").objects.all().delete()
    moto.stop()


@pytest.fixture
def proxy(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server)
    for name, value in (ACCESS | {"AWS_ENDPOINT_URL": proxy.url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Remote, "PATIENT", 0.3)
    yield proxy
    proxy.close()


def numbers(samples: Samples) -> list[int]:
    return samples.places.sample.tolist()


def read(url: Path | str, first: int = 0, last: int = 14, cache: Cache | None = None, lanes: int = BATCH) -> Batches:
    shards = ShardSet.open(url)
    stream = Stream(shards, Plan(shards.counts, BATCH, seed=2, chunk=CHUNK, lanes=lanes), np.arange(BATCH), cache=cache)
    try:
        return [
            [(n, None if image is None else bytes(image)) for n, image in zip(numbers(s), s.data, strict=True)]
            for s in stream.batches(first, last)
        ]
    finally:
        stream.close()


def tars(proxy: Proxy) -> int:
    return sum(count for path, count in proxy.asked.items() if path.endswith(".tar"))


def test_one_ranged_read_a_chunk(proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "HEDGES", 0)  # a machine that is busy is asked no second time
    shards = ShardSet.open(folder)
    plan = Plan(shards.counts, BATCH, seed=2, chunk=CHUNK, lanes=1)
    spans = sum(len(np.unique(plan.members(chunk).shard)) for chunk in range(plan.chunks))
    assert read(URL, 0, plan.steps_per_epoch, lanes=1) == read(folder, 0, plan.steps_per_epoch, lanes=1)
    assert tars(proxy) <= spans
    assert max(count for path, count in proxy.asked.items() if path.endswith(".parquet")) == 1


@pytest.mark.parametrize("fault", ["slow down", "cut", "short", "wrong", "stall"])
def test_what_passes_changes_nothing(proxy: Proxy, folder: Path, fault: str) -> None:
    hit = threading.Event()

    def now_and_then(path: str, n: int) -> str | None:
        if path.endswith(".tar") and n in ((0, 5) if fault == "wrong" else (0, 1, 5)):
            hit.set()
            return fault
        return None

    proxy.fault = now_and_then
    assert read(URL) == read(folder)
    assert hit.is_set()


@pytest.mark.parametrize("fault", ["gone", "denied"])
def test_a_shard_that_goes_is_handed_on_and_left_alone(proxy: Proxy, folder: Path, fault: str) -> None:
    lost = "/images/set/00003.tar"
    proxy.fault = lambda path, n: fault if path == lost and n >= 2 else None
    there, here = read(URL, 0, 40), read(folder, 0, 40)
    third = range(31, 72)  # numbers of the samples of that shard
    for one, other in zip(there, here, strict=True):
        for got, meant in zip(one, other, strict=True):
            assert got == meant or (got[0] == meant[0] and got[1] is None and got[0] in third)
    assert [n for n, image in there[-1] if n in third] == [n for n, image in there[-1] if image is None]
    assert proxy.asked[lost] < 12  # it is not asked for with every chunk, of which it has 7 in each of the 3 epochs


def test_expired_credentials_stop_the_run(proxy: Proxy) -> None:
    proxy.fault = lambda path, n: "expired" if path.endswith(".tar") and n >= 1 else None
    with pytest.raises(UserError, match=r"does not take the credentials: ExpiredToken; renew them and start again"):
        read(URL)


@pytest.mark.slow
def test_a_silent_store_stops_the_run_and_is_no_shard_s_fault(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Store, "PATIENCE", 0.5)
    shards = ShardSet.open(URL)
    stream = Stream(shards, Plan(shards.counts, BATCH, seed=2), np.arange(BATCH))
    batches = stream.batches(0, 10**6)
    next(batches)
    proxy.fault = lambda path, n: "slow down"
    with pytest.raises(UserError, match=r"the store does not answer .*start the run again when it does"):
        list(batches)
    stream.close()
    with pytest.raises(UserError, match=r"manifest.parquet: not readable: .*gave up"):
        ShardSet.open(URL)


def test_through_the_cache_and_never_twice(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 24)
    assert read(URL, cache=cache) == read(folder)
    before = tars(proxy)
    assert read(URL, cache=Cache(tmp_path / "cache", 1 << 24)) == read(folder)
    assert tars(proxy) == before


def test_the_cache_keeps_its_bound_and_what_is_in_use(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    limit = 30_000  # of some 90,000 bytes in all
    cache = Cache(tmp_path, limit)
    sizes = []
    shards = ShardSet.open(URL)
    stream = Stream(shards, Plan(shards.counts, BATCH, seed=2, chunk=CHUNK), np.arange(BATCH), cache=cache)
    for samples, meant in zip(stream.batches(0, 30), read(folder, 0, 30), strict=True):
        assert [bytes(image) for image in samples.data if image is not None] == [image for _, image in meant]
        with (tmp_path / ".size").open() as books:
            fcntl.flock(books, fcntl.LOCK_EX)  # so that no file is counted under two names
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir() if file.name != ".size"))
    stream.close()
    assert 0 < max(sizes) <= limit
    pinned = Cache(tmp_path, limit)
    held = pinned.get("held", 20_000, lambda: b"x" * 20_000)
    assert pinned.get("too much", 20_000, lambda: b"y" * 20_000) is None
    assert held is not None
    assert held.read(0, 20_000) == b"x" * 20_000
    del held
    assert pinned.get("now", 20_000, lambda: b"y" * 20_000) is not None


def test_a_full_cache_disk_is_told_once_and_costs_nothing(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a disk that is full: no file grows beyond it
    try:
        with pytest.warns(UserWarning, match="continuing without the cache") as told:
            got = read(URL, cache=Cache(tmp_path, 1 << 24))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert got == read(folder)
    assert len(told) == 1
    assert not [file for file in tmp_path.iterdir() if file.name != ".size"]


def test_a_server_that_is_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    rclone = Rclone(folder.parents[1])
    request.addfinalizer(rclone.stop)
    for name, value in (ACCESS | {"AWS_ENDPOINT_URL": "http://{}:{}".format(*rclone.address)}).items():
        monkeypatch.setenv(name, value)
    shards = ShardSet.open(URL)
    stream = Stream(shards, Plan(shards.counts, BATCH, seed=2, chunk=CHUNK), np.arange(BATCH), memory=1)
    batches, got = stream.batches(0, 14), []
    got.append(next(batches))
    rclone.stop()
    threading.Timer(1.0, rclone.start).start()
    got += list(batches)
    stream.close()
    assert [[bytes(image) for image in samples.data if image is not None] for samples in got] == [
        [image for _, image in batch] for batch in read(folder)
    ]


ENDLESS = """
import sys, numpy as np
from pathlib import Path
from seer_pipe.data.cache import Cache
from seer_pipe.data.order import Plan
from seer_pipe.data.stream import Stream
from seer_pipe.shards import ShardSet
shards = ShardSet.open("s3://images/set")
stream = Stream(shards, Plan(shards.counts, 8, seed=2, chunk=6), np.arange(8), cache=Cache(Path(sys.argv[1]), 60_000))
for step, samples in enumerate(stream.batches(0, 10**6)):
    print(step, flush=True)
    if len(sys.argv) > 2:
        break
"""


def test_killed_it_leaves_nothing_that_lasts(proxy: Proxy, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(command, env=environment(proxy.url), stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        for _ in range(20):
            assert child.stdout.readline()
        child.kill()
    with pytest.raises(ProcessLookupError):  # no process is left of its session
        os.killpg(child.pid, 0)
    (tmp_path / f"{TEMPORARY}left").write_bytes(b"x" * 50_000)  # as of a process that was killed while it wrote
    assert read(URL, 0, 40, cache=Cache(tmp_path, 60_000)) == read(folder, 0, 40)
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_the_process_ends_while_a_request_hangs(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = lambda path, n: "stall" if path.endswith(".tar") and n >= 12 else None
    command = [sys.executable, "-c", ENDLESS, str(tmp_path), "once"]
    child = subprocess.run(command, env=environment(proxy.url), stdout=subprocess.PIPE, timeout=25, check=False)
    assert (child.returncode, child.stdout) == (0, b"0\n")


CONSUME = """
import sys, time, numpy as np
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.stream import Stream
from seer_pipe.shards import ShardSet
root, rank, world, start = sys.argv[1], *map(int, sys.argv[2:])
shards = ShardSet.open(root)
plan = Plan(shards.counts, 8, seed=9, chunk=6)
stream = Stream(shards, plan, slots_of(rank, world, 8))
for step, samples in enumerate(stream.batches(start, 800), start):
    assert not samples.reasons
    print(step, *samples.places.sample.tolist(), flush=True)
    time.sleep(0.004)
"""


@pytest.mark.slow
def test_killed_at_twenty_moments_and_resumed_on_other_ranks(folder: Path, tmp_path: Path) -> None:
    """What finished steps have consumed is what one run without a kill consumes, whatever the ranks were."""
    random = np.random.default_rng(0)
    consumed: list[tuple[int, list[int]]] = []
    kills, finished = 0, 0
    while finished < 800:
        world = int(random.choice([1, 2, 4]))
        outputs = [tmp_path / f"{kills}-{rank}" for rank in range(world)]
        ranks = []
        for rank, output in enumerate(outputs):
            command = [sys.executable, "-c", CONSUME, str(folder), str(rank), str(world), str(finished)]
            with output.open("wb") as file:
                ranks.append(subprocess.Popen(command, stdout=file))
        if kills < 20:
            while any(output.stat().st_size == 0 for output in outputs):
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.1))
            for process in ranks:
                process.send_signal(signal.SIGKILL)
            kills += 1
        for process in ranks:
            process.wait()
        written = [output.read_text().splitlines(keepends=True) for output in outputs]
        lines = [[line.split() for line in rows if line.endswith("\n")] for rows in written]
        steps = min(map(len, lines))  # a step is finished when every rank has finished it
        for row in range(steps):
            consumed += [(int(line[row][0]), list(map(int, line[row][1:]))) for line in lines]
        finished += steps
    assert kills == 20
    shards = ShardSet.open(folder)
    plan = Plan(shards.counts, 8, seed=9, chunk=6)
    meant = [(step, n) for step in range(800) for n in plan.locate(step, np.arange(8)).sample.tolist()]
    assert sorted((step, n) for step, samples in consumed for n in samples) == sorted(meant)


def test_an_index_is_had_by_ranges_and_a_broken_one_is_told(
    proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seer_pipe.shards.sets.SMALL", 0)
    assert read(URL) == read(folder)
    proxy.fault = lambda path, n: "gone" if path.endswith("00003.parquet") else None
    for there, here in zip(read(URL), read(folder), strict=True):
        for got, meant in zip(there, here, strict=True):
            assert got == ((meant[0], None) if 31 <= meant[0] < 72 else meant)
