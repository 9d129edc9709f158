"""What features are worth for following objects: the masks of a video's first frame, carried on by likeness.

As Jabri, Owens and Efros evaluate (2020, arXiv 2006.14613, section 3.1, and their code, ajabri/videowalk): each cell of
a frame's feature map takes the labels of the cells that are most alike, anywhere in the first frame, and near its own
place in the last few ones. Nothing is learnt.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.evaluate.davis import Numbers, Sequence, open_davis
from seer_pipe.evaluate.masks import contour_accuracy, region_similarity
from seer_pipe.evaluate.pictures import FilePictures
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.stages import ALL, readings
from seer_pipe.evaluate.workbench import on_bench
from seer_pipe.export import Preprocessing
from seer_pipe.models import Trunk

AT_ONCE = 1 << 24  # cosines


@dataclass(frozen=True)
class Carrying:
    """How labels are carried on."""

    context: int = 20  # frames before a frame, besides the first
    k: int = 10  # cells that are most alike
    radius: float = 12  # cells within which those of the context are looked for, and less
    temperature: float = 0.05  # of the weights of the k


def evaluate_propagation(
    path: Path,
    data: Path,
    carrying: Carrying,
    *,
    stage: str | None = None,
    untrained: bool = False,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Carry the first masks of DAVIS's sequences on, by the features of a stage of the trunk, and compare the others.

    ``stage``: a number, ``all``, or by default the last but one, as published. ``j``, ``f`` and their mean ``j_and_f``
    are means over all objects, as in the benchmark, those in ``sequences`` over each one's. ``out``: a folder for the
    masks. None but on the first rank.
    """
    if out is not None and stage == ALL:
        raise UserError("--out takes the masks of one stage: give --stage its number")
    sequences = open_davis(data)
    objects = [sequence.objects() for sequence in sequences]
    pictures = FilePictures([frame for sequence in sequences for frame in sequence.frames], str(data))
    with on_bench(path, pictures, untrained) as bench:
        if not bench.world.is_first:
            return None
        trunk, results = bench.subject.trunk, {}
        wanted = readings(trunk, bench.subject.size, stage or str(max(1, len(trunk.stages) - 1)), grid=False)
        for reading in wanted:  # each goes through the frames anew: the maps of all stages would take gigabytes
            scores: dict[str, dict[str, list[float]]] = {}
            for sequence, count in zip(sequences, objects, strict=True):
                scores[sequence.name] = _judged(trunk, reading.stage, sequence, count, carrying, out)
                one = _means(scores[sequence.name])
                say(f"stage {reading.stage}: {sequence.name}: J {one['j']:.4f}, F {one['f']:.4f}")
            every = {name: [value for one in scores.values() for value in one[name]] for name in ("j", "f")}
            result = {
                **_means(every),
                "sequences": {name: _means(one) for name, one in scores.items()},
                "objects": sum(objects),
                "stage": reading.stage,
                **asdict(carrying),
                "data": str(data),
            }
            name = "propagation" if stage is None else f"propagation-stage{reading.stage}"
            results[reading.stage] = keep(path, name, result, bench.subject, untrained)
        if stage != ALL:
            return results[wanted[0].stage]
        best = max(results, key=lambda number: results[number]["j_and_f"])
        return {"evaluation": "propagation", "best_stage": best, "stages": {str(n): one for n, one in results.items()}}


def _means(scores: dict[str, list[float]]) -> dict[str, float]:
    """Over objects."""
    j, f = (statistics.fmean(scores[name]) for name in ("j", "f"))
    return {"j_and_f": (j + f) / 2, "j": j, "f": f}


def _judged(
    trunk: Trunk, stage: int, sequence: Sequence, objects: int, carrying: Carrying, out: Path | None
) -> dict[str, list[float]]:
    """J and F of each object, means over the frames but the first and the last."""
    found: dict[str, list[list[float]]] = {"j": [], "f": []}
    last = len(sequence.frames) - 1
    for number, mask in enumerate(carried(trunk, stage, sequence, objects, carrying)):
        if out is not None:
            _write(mask, sequence, number, out)
        if 0 < number < last:
            truth = sequence.mask(number)
            pairs = [(mask == one, truth == one) for one in range(1, objects + 1)]
            found["j"].append([region_similarity(*pair) for pair in pairs])
            found["f"].append([contour_accuracy(*pair) for pair in pairs])
    return {name: np.mean(values, axis=0).tolist() for name, values in found.items()}


def _write(mask: Numbers, sequence: Sequence, number: int, out: Path) -> None:
    folder = out / sequence.name
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask).convert("P")
    image.putpalette(sequence.palette() or [level for level in range(256) for _ in range(3)])
    image.save(folder / sequence.masks[number].name)


@torch.no_grad()
def carried(trunk: Trunk, stage: int, sequence: Sequence, objects: int, carrying: Carrying) -> Iterator[Numbers]:
    """The mask of each frame; the first is as it is given."""
    device = next(trunk.parameters()).device
    first = sequence.mask(0)
    yield first
    maps = (trunk.stage_maps(_pixels(frame, device))[stage - 1][0] for frame in sequence.frames)
    one_hot = F.one_hot(torch.from_numpy(first).long(), 256)[..., : objects + 1].permute(2, 0, 1).float().to(device)
    for labels in carry(maps, one_hot, carrying):
        whole = F.interpolate(labels[None], first.shape, mode="bilinear")[0]
        yield whole.argmax(0).to(torch.uint8).cpu().numpy()


def carry(maps: Iterable[Tensor], first: Tensor, carrying: Carrying) -> Iterator[Tensor]:
    """The labels of all frames but the first, [K, h, w]: shares of K labels in each cell.

    Args:
        maps: features [C, h, w] of each frame.
        first: [K, H, W], the labels of the first frame, of more pixels than it has cells.
    """
    coming = iter(maps)
    begin = next(coming)
    size = (begin.shape[1], begin.shape[2])
    places = torch.cartesian_prod(*(torch.arange(length, device=begin.device) for length in size))
    given = (_unit(begin), F.adaptive_avg_pool2d(first, size).flatten(1).T)
    context: deque[tuple[Tensor, Tensor]] = deque(maxlen=carrying.context)
    for features in coming:
        query = _unit(features)
        labels = _labels(query, [given, *context], places, carrying)
        context.append((query, labels))
        yield labels.T.unflatten(1, size)


def _labels(query: Tensor, known: list[tuple[Tensor, Tensor]], places: Tensor, carrying: Carrying) -> Tensor:
    """Of the cells ``query`` [h · w, C] at ``places`` [h · w, 2], [h · w, K], by frames whose features and labels are
    ``known``; the first of these is the first frame, which is looked at as a whole."""
    keys, labels = (torch.cat(each) for each in zip(*known, strict=True))
    cells, found = len(query), []
    for rows in torch.arange(cells, device=query.device).split(max(1, AT_ONCE // len(keys))):
        cosines = query[rows] @ keys.T
        far = (places[rows, None] - places).square().sum(2) >= carrying.radius**2
        cosines[:, cells:].masked_fill_(far.repeat(1, len(known) - 1), -torch.inf)
        likest = cosines.topk(min(carrying.k, len(keys)), dim=1)
        weights = (likest.values / carrying.temperature).softmax(1)
        found.append((weights[..., None] * labels[likest.indices]).sum(1))
    return torch.cat(found)


def _unit(features: Tensor) -> Tensor:
    """[C, h, w] -> [h · w, C]."""
    return F.normalize(features.flatten(1).T, dim=1)


def _pixels(frame: Path, device: torch.device) -> Tensor:
    """[1, 3, H, W], as trunks see images. UserError where it cannot be read."""
    try:
        with Image.open(frame) as image:
            levels = torch.from_numpy(np.array(image.convert("RGB"))).to(device)
    except OSError as error:
        raise UserError(f"{frame}: {error}") from None
    about = Preprocessing()
    mean, std = (torch.tensor(values, device=device) for values in (about.mean, about.std))
    return ((levels / 255 - mean) / std).permute(2, 0, 1)[None].contiguous()
