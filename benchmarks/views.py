"""Crops a second and core: this project against Pillow + torchvision, on the same JPEGs, in one run.

    python benchmarks/views.py PHOTOS.tar [--device cpu] [--threads 1] [--rounds 5]

Both make SEER's views (2x224 + 6x96: crop, flip, jitter, grey, blur, normalise) of every JPEG of a tar, in turns, so
that a busy machine slows both. Rates are by CPU time of the process where the device is the CPU, and by the clock
elsewhere. The decoder alone is what no arrangement of the rest can pass.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read at import: a core each, and no more

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch
from PIL import Image, ImageFilter

from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.views import CropSpec, draw

CROPS = [CropSpec(2, 224, (0.14, 1.0)), CropSpec(6, 96, (0.05, 0.14))]
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="tar of photographs; what is not a sound JPEG is passed over")
    parser.add_argument("--device", default="cpu", help="where this project's crops are made (default: cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    augmenter = Augmenter(CROPS, device=args.device, threads=args.threads, max_batch=BATCH)
    jpegs = sound_jpegs(args.photos, augmenter)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    contestants: dict[str, tuple[Callable[[Sequence[bytes]], object], Callable[[], float]]] = {
        "Pillow + torchvision": (torchvision_crops(), time.process_time),
        f"seer_pipe, {args.device}": (lambda files: augmenter(files, views(files)), clock),
        "DALI's decoder alone, CPU": (decode, time.process_time),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (make, now) in contestants.items():
            start = now()
            for first in range(0, len(jpegs), BATCH):
                make(jpegs[first : first + BATCH])
            rates[name].append(len(jpegs) / (now() - start))

    print(
        f"{len(jpegs)} JPEGs of {args.photos.name}, mean {megapixels(jpegs):.2f} Mpixel; median of {args.rounds} rounds"
    )
    for name, values in rates.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name:28} {statistics.median(values):7.1f} images/s   ({spread})")
    theirs, ours = list(rates.values())[:2]
    print(f"ratio {statistics.median(b / a for a, b in zip(theirs, ours, strict=True)):.2f}")


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
    width, height = np.array([Image.open(io.BytesIO(data)).size for data in jpegs]).T
    return height, width


def megapixels(jpegs: Sequence[bytes]) -> float:
    height, width = sizes(jpegs)
    return float((height * width).mean() / 1e6)


def views(jpegs: Sequence[bytes]) -> list[Any]:
    return draw(0, 0, np.arange(len(jpegs)), *sizes(jpegs), CROPS)


def decode(jpegs: Sequence[bytes]) -> object:
    with ndd.EvalContext(num_threads=1):
        encoded = ndd.as_batch([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        return ndd.decoders.image(encoded, device="cpu", adjust_orientation=False).evaluate()


def torchvision_crops() -> Callable[[Sequence[bytes]], object]:
    """SwAV's transforms, as its repository composes them."""
    declared = torch.library.Library("torchvision", "FRAGMENT")  # torchvision's kernels are not built for every torch
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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
