"""How well objectives learn here beside lightly's own, on the same files: kNN accuracy after the same training.

    pip install --no-deps --target peer lightly==1.5.26 lightning-utilities==0.15.3
    PYTHONPATH=peer python benchmarks/learning.py --data data/imagenette160/train --queries data/imagenette160/val \\
        [--methods swav simclr] [--seeds 3] [--images 60000] [--device cuda --trunk resnet18 --size 128 --batch 256]

The same for both sides: images, trunk and how its first weights are drawn, crops and strengths of their augmentation
(no blur), batch, optimiser and its schedule, images seen, widths of the heads, temperatures; and the evaluation, which
is this project's: each image of --queries is classified by those of --data, k 200, temperature 0.1, one view. lightly's
part is its transforms, heads, losses and momentum updates, in the loop of its examples, with torch's loader.

Printed are means over seeds, their standard errors, and the difference. A result is kept in --out as soon as it is
there and not measured again, so the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import import_torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from seer_pipe import config as settings
from seer_pipe.evaluate.features import Images, extract
from seer_pipe.evaluate.knn import knn_accuracy
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.evaluate.subject import Subject, load_run, recalibrate
from seer_pipe.models import Trunk, build_trunk, init_weights
from seer_pipe.optim.schedule import learning_rate
from seer_pipe.run import start
from seer_pipe.shards import ShardSet

JITTER = (0.4, 0.4, 0.4, 0.1)
HIDDEN, DIM, PROTOTYPES, QUEUE = 512, 64, 128, 4096
MOMENTUM = 0.99
DECAY = 1e-6
WARM = 0.1  # share of the images that the rate warms up in; prototypes are frozen as long
K, TEMPERATURE = 200, 0.1

#: This project's side: settings of the objective.
OURS: dict[str, dict[str, Any]] = {
    "swav": {"name": "swav", "head": {"hidden": [HIDDEN], "dim": DIM}, "prototypes": PROTOTYPES,
             "allow_empty_prototypes": True},
    "simclr": {"name": "simclr", "head": {"hidden": [HIDDEN], "dim": DIM}, "temperature": 0.5},
    "moco_v2": {"name": "moco_v2", "head": {"hidden": [HIDDEN], "dim": DIM, "batch_norm": False}, "temperature": 0.1,
                "queue": QUEUE, "targets": [0, 1]},
    "byol": {"name": "byol", "head": {"hidden": [HIDDEN], "dim": DIM}, "predictor": HIDDEN},
    "simsiam": {"name": "simsiam", "head": {"hidden": [HIDDEN, HIDDEN], "dim": HIDDEN}, "predictor": HIDDEN // 4},
    "barlow_twins": {"name": "barlow_twins", "head": {"hidden": [HIDDEN, HIDDEN], "dim": HIDDEN},
                     "off_diagonal": 0.005},
}  # fmt: skip


class Peer(nn.Module):
    """lightly's side: a trunk under one of its objectives."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Of the crops [n, 3, size, size] of a batch; each objective brings its own."""
        raise NotImplementedError

    def constant(self) -> list[nn.Parameter]:
        """What has the peak's rate throughout."""
        return []


class PeerSwav(Peer):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes

        super().__init__(trunk)
        self.head = SwaVProjectionHead(trunk.width, HIDDEN, DIM)
        self.prototypes = SwaVPrototypes(DIM, PROTOTYPES, frozen_steps)
        self.criterion = SwaVLoss()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        self.prototypes.normalize()
        scores = [self.prototypes(F.normalize(self.head(self.trunk(view)), dim=1), step) for view in views]
        found: Tensor = self.criterion(scores[:2], scores[2:])
        return found


class PeerSimclr(Peer):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__(trunk)
        self.head = SimCLRProjectionHead(trunk.width, HIDDEN, DIM)
        self.criterion = NTXentLoss(temperature=0.5)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        found: Tensor = self.criterion(*(self.head(self.trunk(view)) for view in views))
        return found


class PeerTargets(Peer):
    """Each of two views against what momentum copies make of the other."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        from lightly.models.utils import deactivate_requires_grad

        super().__init__(trunk)
        self.head = head
        self.copied = copy.deepcopy(nn.Sequential(trunk, head))
        deactivate_requires_grad(self.copied)

    def both(self, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Projections of the views, and of the copies, which follow first."""
        from lightly.models.utils import update_momentum

        update_momentum(nn.Sequential(self.trunk, self.head), self.copied, MOMENTUM)
        with torch.no_grad():
            targets = [self.copied(view) for view in views]
        return [self.head(self.trunk(view)) for view in views], targets


class PeerMoco(PeerTargets):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead

        super().__init__(trunk, MoCoProjectionHead(trunk.width, HIDDEN, DIM))
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(QUEUE, DIM))

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        (one, other), (key, other_key) = self.both(views)
        found: Tensor = (self.criterion(one, other_key) + self.criterion(other, key)) / 2
        return found


class PeerByol(PeerTargets):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        super().__init__(trunk, BYOLProjectionHead(trunk.width, HIDDEN, DIM))
        self.predict = BYOLPredictionHead(DIM, HIDDEN, DIM)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        (one, other), (target, other_target) = self.both(views)
        found: Tensor = self.criterion(self.predict(one), other_target) + self.criterion(self.predict(other), target)
        return 2 * found  # the scale of the paper, which this project has


class PeerSimSiam(Peer):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__(trunk)
        self.head = SimSiamProjectionHead(trunk.width, HIDDEN, HIDDEN)
        self.predict = SimSiamPredictionHead(HIDDEN, HIDDEN // 4, HIDDEN)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        one, other = (self.head(self.trunk(view)) for view in views)
        alike = self.criterion(self.predict(one), other.detach()) + self.criterion(self.predict(other), one.detach())
        found: Tensor = alike / 2
        return found

    def constant(self) -> list[nn.Parameter]:
        return list(self.predict.parameters())


class PeerBarlowTwins(Peer):
    def __init__(self, trunk: Trunk, frozen_steps: int) -> None:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules.heads import BarlowTwinsProjectionHead

        super().__init__(trunk)
        self.head = BarlowTwinsProjectionHead(trunk.width, HIDDEN, HIDDEN)
        self.criterion = BarlowTwinsLoss(lambda_param=0.005)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        found: Tensor = self.criterion(*(self.head(self.trunk(view)) for view in views))
        return found


PEERS: dict[str, Callable[[Trunk, int], Peer]] = {
    "swav": PeerSwav, "simclr": PeerSimclr, "moco_v2": PeerMoco, "byol": PeerByol, "simsiam": PeerSimSiam,
    "barlow_twins": PeerBarlowTwins,
}  # fmt: skip


def crops(method: str, size: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Count, pixels and scale of the crops: multi-crop for SwAV, two for the others."""
    large = (2, size, (0.3, 1.0))
    return [large, (4, size // 2, (0.1, 0.4))] if method == "swav" else [large]


def recipe(method: str, args: argparse.Namespace, seed: int) -> settings.Config:
    """The training as this project has it; the peer takes its numbers from here."""
    objective = dict(OURS[method])
    if method == "swav":
        objective["freeze_images"] = round(WARM * args.images)
    if method in ("moco_v2", "byol"):
        objective["momentum"] = {"start": MOMENTUM, "end": MOMENTUM, "batch": args.batch}
    return settings.parse(
        {
            "name": f"{method}-{seed}",
            "seed": seed,
            "data": {"path": str(args.data)},
            "views": {
                "crops": [{"count": n, "size": size, "scale": scale} for n, size, scale in crops(method, args.size)],
                "augment": {"jitter": JITTER, "blur_p": 0.0},
            },
            "model": {"name": args.trunk},
            "objective": objective,
            "optimizer": {"name": "adamw", "lr": args.lr, "final_lr": 0.0, "weight_decay": DECAY,
                          "warmup_images": round(WARM * args.images)},
            "train": {"batch": args.batch, "images": args.images, "device": args.device, "checkpoint_every": 200},
        },
        method,
    )  # fmt: skip


def ours(method: str, args: argparse.Namespace, seed: int) -> Trunk:
    run = args.out / "runs" / f"{method}-{seed}"
    assert start(recipe(method, args, seed), run, say=lambda _: None)
    return load_run(run)[0].trunk


class Files(Dataset[list[Tensor]]):
    """The images of a shard set under lightly's transforms."""

    def __init__(self, shards: ShardSet, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.rows = [
            (shard, row) for shard in range(len(shards.paths)) for row in shards.sidecar(shard).to_pylist()
        ]  # fmt: skip
        self.shards, self.transform = shards, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> list[Tensor]:
        return self.transform(Image.open(io.BytesIO(self.shards.read(*self.rows[number]))).convert("RGB"))


def theirs(method: str, args: argparse.Namespace, seed: int) -> Trunk:
    from lightly.transforms.swav_transform import SwaVTransform

    counts, sizes, scales = zip(*crops(method, args.size), strict=True)
    bright, contrast, saturation, hue = JITTER
    transform = SwaVTransform(
        crop_sizes=sizes, crop_counts=counts, crop_min_scales=[low for low, _ in scales],
        crop_max_scales=[high for _, high in scales], cj_bright=bright, cj_contrast=contrast, cj_sat=saturation,
        cj_hue=hue, gaussian_blur=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    loader = DataLoader(
        Files(ShardSet.open(str(args.data)), transform), args.batch, shuffle=True, drop_last=True,
        num_workers=args.workers, persistent_workers=args.workers > 0,
    )  # fmt: skip
    config, steps = recipe(method, args, seed), args.images // args.batch
    peer = PEERS[method](first_trunk(args.trunk, seed), math.ceil(WARM * args.images / args.batch)).to(args.device)
    constant = set(peer.constant())
    groups = [[p for p in peer.parameters() if p.requires_grad and p not in constant], list(constant)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group], lr=0.0, weight_decay=DECAY)
    peak = config.optimizer.lr * args.batch / 256
    step = 0
    while step < steps:
        for views in loader:
            rate = learning_rate(step * args.batch, peak=peak, final=0.0, total_images=steps * args.batch,
                                 warmup_images=config.optimizer.warmup_images)  # fmt: skip
            for group, its in zip(optimizer.param_groups, (rate, peak), strict=False):
                group["lr"] = its
            loss = peer.loss([view.to(args.device) for view in views], step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break
    return peer.trunk


def first_trunk(name: str, seed: int) -> Trunk:
    trunk = build_trunk(name)
    init_weights(trunk, torch.Generator().manual_seed(seed))
    return trunk


def untrained(_method: str, args: argparse.Namespace, seed: int) -> Trunk:
    trunk = first_trunk(args.trunk, seed)
    recalibrate(Subject(trunk, args.size, 0), open_labelled(str(args.data), "folder").pictures)
    return trunk


def knn(trunk: Trunk, args: argparse.Namespace) -> float:
    parts = []
    for place in (args.queries, args.data):
        labelled = open_labelled(str(place), "folder")
        images = Images(labelled.pictures, args.size, device=args.device)
        try:
            found = extract(trunk.to(args.device), images, labelled.numbers)
        finally:
            images.close()
        parts += [found.matrix, torch.from_numpy(labelled.label_of[found.samples])]
    return knn_accuracy(*parts, k=K, temperature=TEMPERATURE)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; that of one value is not known."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def line(method: str, own: Sequence[float], others: Sequence[float]) -> str:
    """A row of the table, in percent."""
    (mean, error), (other, other_error) = mean_and_error(own), mean_and_error(others)
    difference, its_error = mean - other, math.hypot(error, other_error)
    cells = [f"{100 * m:5.1f} ± {100 * e:.1f}" for m, e in ((mean, error), (other, other_error))]
    return f"{method:14} {cells[0]:>14} {cells[1]:>14} {100 * difference:+8.1f} ± {100 * its_error:.1f}"


SIDES: dict[str, Callable[[str, argparse.Namespace, int], Trunk]] = {
    "ours": ours, "lightly": theirs, "untrained": untrained
}  # fmt: skip


def measure(side: str, method: str, args: argparse.Namespace, seed: int) -> float:
    """The accuracy, taken from --out where it is kept."""
    what = {"side": side, "method": method, "seed": seed,
            **{name: getattr(args, name) for name in ("images", "batch", "trunk", "size", "lr")}}  # fmt: skip
    file = args.out / "results.jsonl"
    for row in file.read_text().splitlines() if file.exists() else []:
        if (kept := json.loads(row)).items() >= what.items():
            return float(kept["accuracy"])
    began = time.perf_counter()
    accuracy = knn(SIDES[side](method, args, seed), args)
    with file.open("a") as out:
        out.write(json.dumps({**what, "accuracy": accuracy, "seconds": time.perf_counter() - began}) + "\n")
    print(f"{side} {method} seed {seed}: {accuracy:.1%}", flush=True)
    return accuracy


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="shard set to train on, an image's folder its class")
    parser.add_argument("--queries", type=Path, required=True, help="shard set to classify")
    parser.add_argument("--methods", nargs="+", choices=sorted(OURS), default=["swav"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=60_000, help="seen in training")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--trunk", default="regnety_200mf")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--lr", type=float, default=0.003, help="peak of AdamW's rate, for 256 images")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes of lightly's loader")
    parser.add_argument("--out", type=Path, default=Path("learning"))
    return parser.parse_args(words)


def main(args: argparse.Namespace) -> None:
    os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # it would ask a server
    import_torchvision()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seeds)
    print(f"untrained: {mean_and_error([measure('untrained', 'none', args, seed) for seed in seeds])[0]:.1%}")
    rows = [
        line(method, *([measure(side, method, args, seed) for seed in seeds] for side in ("ours", "lightly")))
        for method in args.methods
    ]
    print(f"{'kNN, %':14} {'ours':>14} {'lightly':>14} {'difference':>14}")
    print("\n".join(rows))


if __name__ == "__main__":
    main(parse())
