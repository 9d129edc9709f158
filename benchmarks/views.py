"""Crops a second and core: this project against Pillow + torchvision, on the same JPEGs, in one run.

    python benchmarks/views.py PHOTOS.tar [--device cpu] [--threads 1] [--rounds 5] [--only ours peer]

Both make SEER's views (2x224 + 6x96: crop, flip, jitter, grey, blur, normalise) of every JPEG of a tar, in turns, so
that a busy machine slows both. Rates are by CPU time of the process where the device is the CPU, and by the clock
elsewhere; there torchvision's v2 transforms on the device, of images decoded by DALI, are measured as well.

Then what two, four, … threads give to one, beside as many processes; and for which share of its time a crop thread
keeps the interpreter lock, which bounds the number of cores that are of use.

Beside them are the ways that DALI offers to decode and cut, nothing else done: each image once, or only the box that
holds all its crops, or the region of each crop; in dynamic mode or in pipeline mode. The decoder alone and the memory's
bandwidth are what no arrangement of the rest can pass. The peer is DALI as its own pipeline mode has it: decoded once,
and every step by an operator of its own, which draws for itself. Last: what the trunks ask for.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read at import: a core each, and no more

import argparse
import io
import json
import statistics
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch
from nvidia.dali import fn, pipeline_def, types
from peers import import_torchvision
from PIL import Image, ImageFilter

from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.views import CropSpec, draw
from seer_pipe.models import multiply_adds
from seer_pipe.train.doctor import FAST_GPU

CROPS = [CropSpec(2, 224, (0.14, 1.0)), CropSpec(6, 96, (0.05, 0.14))]
SIZES = [spec.size for spec in CROPS for _ in range(spec.count)]
TRUNKS = ("resnet50", "regnety_8gf", "regnety_16gf", "resnext101_32x8d", "regnety_32gf", "regnety_64gf",
          "regnety_128gf", "regnety_256gf", "regnety_10b")  # fmt: skip
#: Short names of some contestants, for --only.
NAMES = {"ours": "seer_pipe", "peer": "DALI's pipeline, all steps", "decoder": "DALI's decoder alone"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="tar of photographs; what is not a sound JPEG is passed over")
    parser.add_argument("--device", default="cpu", help="where this project's crops are made (default: cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="rates of these alone, and nothing else")
    parser.add_argument("--json", type=Path, help="with --only: the medians, in this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    dtype = torch.float32 if args.device == "cpu" else torch.float16
    augmenter = Augmenter(CROPS, device=args.device, threads=args.threads, max_batch=args.batch, dtype=dtype)
    jpegs = sound_jpegs(args.photos, augmenter)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    ours, theirs = f"{NAMES['ours']}, {args.device}", "Pillow + torchvision"

    def dynamic(make: Callable[[Sequence[bytes]], Any]) -> tuple[Callable[..., object], Callable[[], float]]:
        return in_dynamic_mode(args, make), clock

    contestants: dict[str, tuple[Callable[[Sequence[bytes]], object], Callable[[], float]]] = {
        ours: (lambda files: augmenter(files, views(files)), clock),
        NAMES["peer"]: (dalis_pipeline(args), clock),
        NAMES["decoder"]: dynamic(lambda files: decode(files, args.device)),
        "cut, dynamic mode": dynamic(lambda files: cut(decode(files, args.device), views(files))),
        "cut, pipeline mode": (in_pipeline_mode(args), clock),
        "cut, box of all crops decoded": dynamic(lambda files: box_of_all(files, args.device)),
        "cut, region of each decoded": dynamic(lambda files: region_of_each(files, args.device)),
    }
    if args.only:
        medians = rates_of({name: contestants[next(full for full in contestants if full.startswith(NAMES[name]))]
                            for name in args.only}, jpegs, args)  # fmt: skip
        told = {name: statistics.median(values) for name, values in medians.items()}
        print("\n".join(f"{name:10} {rate:8.1f} images/s" for name, rate in told.items()))
        if args.json:
            args.json.write_text(json.dumps(told))
        return
    contestants[theirs] = (torchvision_crops(), time.process_time)
    if args.device != "cpu":
        contestants["torchvision v2"] = dynamic(torchvision_v2(args.device))
    rates = rates_of(contestants, jpegs, args)
    print(
        f"{len(jpegs)} JPEGs of {args.photos.name}, mean {megapixels(jpegs):.2f} Mpixel; median of {args.rounds} rounds"
    )
    for name, values in rates.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name:30} {statistics.median(values):8.1f} images/s   ({spread})")
    print(f"{ours} / {theirs}: {ratio(rates[ours], rates[theirs]):.2f}")
    for way in [name for name in rates if name.startswith("cut, ") and name != "cut, dynamic mode"]:
        print(f"{way} / dynamic mode: {ratio(rates[way], rates['cut, dynamic mode']):.2f}")
    written = 4 * 3 * sum(size**2 for size in SIZES)
    bandwidth = copied(args.device)
    print(f"memory: {bandwidth / 1e9:.1f} GB/s copied, {written / 1e6:.2f} MB of crops an image: "
          f"{bandwidth / written:.0f} images/s if they were only copied once")  # fmt: skip
    if args.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        print(f"GPU memory in use: {(total - free) / 1e9:.1f} GB")
    if args.device == "cpu":
        threads_and_lock(jpegs, args.rounds)
    have = statistics.median(rates[ours])
    print(f"what a GPU of {FAST_GPU:.0f} TFLOP/s asks for, and how many times what was measured that is:")
    for trunk in TRUNKS:
        asked = FAST_GPU * 1e12 / (6 * sum(spec.count * multiply_adds(trunk, spec.size) for spec in CROPS))
        print(f"  {trunk:18} {asked:7.0f} images/s {asked / have:7.1f}")


def rates_of(contestants: dict[str, Any], jpegs: Sequence[bytes], args: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of each, round by round and in turns; what is compiled or allocated first is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(args.rounds + 1):
        for name, (make, now) in contestants.items():
            start = now()
            for first in range(0, len(jpegs), args.batch):
                make(jpegs[first : first + args.batch])
            if args.device != "cpu":
                torch.cuda.synchronize()
            if number:
                rates[name].append(len(jpegs) / (now() - start))
    return rates


def threads_and_lock(jpegs: Sequence[bytes], rounds: int) -> None:
    """What more threads give by the clock, beside what as many processes give, which share nothing but the machine;
    and what one thread keeps the interpreter lock for. In turns."""
    cores = len(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]
    augmenters = {n: Augmenter(CROPS, threads=n, max_batch=256) for n in counts}
    spawn = get_context("spawn")
    pools = {n: ProcessPoolExecutor(n, spawn, hold, (jpegs, spawn.Barrier(n))) for n in counts[1:]}
    threads: dict[int, list[float]] = {n: [] for n in counts}
    processes: dict[int, list[float]] = {n: [] for n in pools}
    shares = []
    for _ in range(rounds + 1):
        for n, augmenter in augmenters.items():
            start = time.perf_counter()
            augmenter(jpegs, views(jpegs))
            threads[n].append(len(jpegs) / (time.perf_counter() - start))
        for n, pool in pools.items():
            at = time.monotonic() + 0.5  # all at once
            ends = [future.result() for future in [pool.submit(crop_held, at) for _ in range(n)]]
            processes[n].append(sum(len(jpegs) / (end - at) for end in ends))
        shares.append(lock_share(augmenters[1], jpegs))
    for pool in pools.values():
        pool.shutdown()
    for n in counts:
        print(f"{n} threads: {statistics.median(threads[n][1:]):.0f} images/s by the clock, "
              f"{ratio(threads[n][1:], threads[1][1:]):.2f} times one")  # fmt: skip
        if n > 1:
            print(f"{n} processes of one thread: {ratio(processes[n][1:], threads[1][1:]):.2f} times one")
    print(f"interpreter lock held: {statistics.median(shares[1:]):.1%} of a crop thread's processor time "
          f"({min(shares[1:]):.1%} to {max(shares[1:]):.1%})")  # fmt: skip


held: tuple[Augmenter, Sequence[bytes]]  # of a process of `threads_and_lock`


def hold(jpegs: Sequence[bytes], all_ready: Barrier) -> None:
    global held
    held = Augmenter(CROPS, threads=1, max_batch=256), jpegs
    held[0](jpegs, views(jpegs))
    all_ready.wait()


def crop_held(at: float) -> float:
    """Make the crops from this moment on; when they were made."""
    augmenter, jpegs = held
    time.sleep(max(0.0, at - time.monotonic()))
    augmenter(jpegs, views(jpegs))
    return time.monotonic()


def lock_share(augmenter: Augmenter, jpegs: Sequence[bytes]) -> float:
    """By a thread that counts: the time for which it waits beside the crops, less that beside work of numpy, which
    needs no lock. It waits for nothing but the lock (and for a core, where other work keeps the machine busy)."""
    drawn, matrix = views(jpegs), np.ones((500, 500), np.float32)

    def beside(work: Callable[[], object]) -> float:
        """Seconds waited, per second of the work's processor time."""
        used, stop = [0.0], threading.Event()

        def count() -> None:
            start = time.thread_time()
            while not stop.is_set():
                pass
            used[0] = time.thread_time() - start

        probe = threading.Thread(target=count)
        start, processor = time.perf_counter(), time.process_time()
        probe.start()
        work()
        stop.set()
        probe.join()
        waited = time.perf_counter() - start - used[0]
        return waited / (time.process_time() - processor - used[0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # so that the crops wait for the counting thread no longer than needed
    try:
        free = beside(lambda: [matrix @ matrix for _ in range(len(jpegs))])
        return beside(lambda: augmenter(jpegs, drawn)) - free
    finally:
        sys.setswitchinterval(interval)


def ratio(rates: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rates, others, strict=True))


def copied(device: str) -> float:
    """Bytes a second of a large copy, read and written counted."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target, best = source.clone(), 0.0
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


def sound_jpegs(path: Path, augmenter: Augmenter) -> list[bytes]:
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    jpegs = [data for data in files if data[:2] == b"\xff\xd8"]
    try:
        augmenter(jpegs, views(jpegs))
    except BadImages as error:
        jpegs = [data for i, data in enumerate(jpegs) if i not in error.indices]
    return jpegs


def sizes(jpegs: Sequence[bytes]) -> tuple[Any, Any]:
    """Heights and widths: in training they come with the shard set."""
    width, height = np.array([size_of(data) for data in jpegs]).T
    return height, width


@cache
def size_of(jpeg: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(jpeg)).size


def megapixels(jpegs: Sequence[bytes]) -> float:
    height, width = sizes(jpegs)
    return float((height * width).mean() / 1e6)


def views(jpegs: Sequence[bytes]) -> list[Any]:
    return draw(0, 0, np.arange(len(jpegs)), *sizes(jpegs), CROPS)


def in_dynamic_mode(args: argparse.Namespace, make: Callable[[Sequence[bytes]], Any]) -> Callable[..., object]:
    def evaluated(jpegs: Sequence[bytes]) -> object:
        with ndd.Device(args.device), ndd.EvalContext(num_threads=args.threads), ndd.EvalMode.sync_cpu:
            return make(jpegs)

    return evaluated


def encoded(jpegs: Sequence[bytes]) -> Any:
    return ndd.as_batch([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])


def decode(jpegs: Sequence[bytes], device: str) -> Any:
    return ndd.decoders.image(encoded(jpegs), device=device, adjust_orientation=False)


def cut(images: Any, crops: Sequence[Any]) -> list[Any]:
    """The crops of decoded images, by `Crops.box`."""
    return [
        ndd.resize(images, size=(size, size), antialias=True, roi_start=first, roi_end=last)
        for size, (first, last) in zip(SIZES, map(corners, crops), strict=True)
    ]


def corners(crop: Any) -> list[Any]:
    first = crop.box[:, :2].astype(np.float32)
    return [ndd.as_batch(corner) for corner in (first, first + crop.box[:, 2:].astype(np.float32))]


def region(jpegs: Sequence[bytes], box: Any, device: str) -> Any:
    """Only a part of each image decoded; ``box`` [n, 4]: top, left, height, width."""
    start, shape = (ndd.as_batch(np.ascontiguousarray(part, np.int32)) for part in (box[:, :2], box[:, 2:]))
    return ndd.decoders.image_slice(
        encoded(jpegs), start=start, shape=shape, axes=[0, 1], device=device, adjust_orientation=False
    )


def box_of_all(jpegs: Sequence[bytes], device: str) -> list[Any]:
    crops = views(jpegs)
    first = np.min([crop.box[:, :2] for crop in crops], axis=0)
    last = np.max([crop.box[:, :2] + crop.box[:, 2:] for crop in crops], axis=0)
    moved = [replace(crop, box=np.concatenate([crop.box[:, :2] - first, crop.box[:, 2:]], axis=1)) for crop in crops]
    return cut(region(jpegs, np.concatenate([first, last - first], axis=1), device), moved)


def region_of_each(jpegs: Sequence[bytes], device: str) -> list[Any]:
    return [
        ndd.resize(region(jpegs, crop.box, device), size=(size, size), antialias=True)
        for size, crop in zip(SIZES, views(jpegs), strict=True)
    ]


def in_pipeline_mode(args: argparse.Namespace) -> Callable[[Sequence[bytes]], object]:
    """The same graph as `cut` of `decode`, built once and fed batch by batch."""
    on_gpu = args.device != "cpu"

    @pipeline_def(
        batch_size=args.batch, num_threads=args.threads, device_id=0 if on_gpu else None, prefetch_queue_depth=1
    )
    def graph() -> tuple[Any, ...]:
        images = fn.decoders.image(fn.external_source(name="jpegs"), device="mixed" if on_gpu else "cpu",
                                   adjust_orientation=False)  # fmt: skip
        return tuple(
            fn.resize(images, size=(size, size), antialias=True, roi_start=fn.external_source(name=f"start{i}"),
                      roi_end=fn.external_source(name=f"end{i}"))
            for i, size in enumerate(SIZES)
        )  # fmt: skip

    pipeline = graph()
    pipeline.build()

    def run(jpegs: Sequence[bytes]) -> object:
        pipeline.feed_input("jpegs", [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        for i, crop in enumerate(views(jpegs)):
            pipeline.feed_input(f"start{i}", list(crop.box[:, :2].astype(np.float32)))
            pipeline.feed_input(f"end{i}", list((crop.box[:, :2] + crop.box[:, 2:]).astype(np.float32)))
        return pipeline.run()

    return run


def dalis_pipeline(args: argparse.Namespace) -> Callable[[Sequence[bytes]], object]:
    """The same steps by DALI's operators, with its own random numbers; float16 on a GPU."""
    on_gpu = args.device != "cpu"
    side = "gpu" if on_gpu else "cpu"

    def crop(images: Any, spec: CropSpec) -> Any:
        x = fn.random_resized_crop(images, size=(spec.size, spec.size), random_area=spec.scale, device=side)
        jittered = fn.random.coin_flip(probability=0.8)
        near_one = [1 + jittered * fn.random.uniform(range=(-0.8, 0.8)) for _ in range(3)]
        x = fn.color_twist(x, brightness=near_one[0], contrast=near_one[1], saturation=near_one[2],
                           hue=jittered * fn.random.uniform(range=(-72.0, 72.0)))  # fmt: skip
        x = fn.hsv(x, saturation=1.0 - fn.random.coin_flip(probability=0.2))
        x = fn.gaussian_blur(x, sigma=fn.random.uniform(range=(0.1, 2.0)))
        return fn.crop_mirror_normalize(
            x, mirror=fn.random.coin_flip(), mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
            dtype=types.FLOAT16 if on_gpu else types.FLOAT,
        )  # fmt: skip

    @pipeline_def(batch_size=args.batch, num_threads=args.threads, device_id=0 if on_gpu else None)
    def graph() -> tuple[Any, ...]:
        images = fn.decoders.image(fn.external_source(name="jpegs"), device="mixed" if on_gpu else "cpu")
        return tuple(crop(images, spec) for spec in CROPS for _ in range(spec.count))

    pipeline = graph()
    pipeline.build()
    ahead = [2]  # batches that it wants at first: it works on the next one while its user has one

    def run(jpegs: Sequence[bytes]) -> object:
        for _ in range(ahead.pop() if ahead else 1):
            pipeline.feed_input("jpegs", [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        return pipeline.run()

    return run


def torchvision_v2(device: str) -> Callable[[Sequence[bytes]], object]:
    """torchvision's v2 transforms on the device, image by image, for each draws its own strengths."""
    import_torchvision()
    from torchvision.transforms import v2

    def recipe(spec: CropSpec) -> Callable[[torch.Tensor], torch.Tensor]:
        return v2.Compose([
            v2.RandomResizedCrop(spec.size, scale=spec.scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])  # fmt: skip

    recipes = [recipe(spec) for spec in CROPS for _ in range(spec.count)]

    def crops(jpegs: Sequence[bytes]) -> object:
        images = [image.torch().permute(2, 0, 1) for image in decode(jpegs, device).tensors]
        return [torch.stack([make(image) for image in images]) for make in recipes]

    return crops


def torchvision_crops() -> Callable[[Sequence[bytes]], object]:
    """SwAV's transforms, as its repository composes them."""
    import_torchvision()
    from torchvision import transforms as tv

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))

    def recipe(spec: CropSpec) -> Callable[[Image.Image], torch.Tensor]:
        return tv.Compose([
            tv.RandomResizedCrop(spec.size, scale=spec.scale),
            tv.RandomHorizontalFlip(),
            tv.RandomApply([tv.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([tv.Lambda(blur)], p=0.5),
            tv.ToTensor(),
            tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])  # fmt: skip

    recipes = [recipe(spec) for spec in CROPS for _ in range(spec.count)]

    def crops(jpegs: Sequence[bytes]) -> object:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs]
        return [torch.stack([make(image) for image in images]) for make in recipes]

    return crops


if __name__ == "__main__":
    main()
