"""Which trunk a set of tensors is of, by whose names, and where among the others it stands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from seer_pipe.errors import UserError
from seer_pipe.export.weights import read_weights
from seer_pipe.models import Trunk, build_trunk, trunk_names
from seer_pipe.models.build import FAMILIES, Stem
from seer_pipe.models.trunk import OWN

_HEADS = re.compile(
    r"^(?:fc|head|heads|classifier|linear|projection_head|projector|predictor|prototypes|queue(?:_ptr)?)(?:[.\d]|$)"
)
# A checkpoint may hold a network more than once. What is meant is the one that its authors evaluate: an average over
# the last steps (timm's, DINO's teacher), but not the copy that gives another network its targets.
_AVERAGES = re.compile(r"(?:^|[._])(?:ema|teacher)(?:[._]|$)")
_COPIES = re.compile(r"(?:^|[._])(?:encoder_k|momentum|target|student)(?:[._]|$)")
#: Counts of batches, which no inference needs; files of torch before 0.4.1 lack them.
_COUNTS = "num_batches_tracked"


@dataclass(frozen=True)
class Layout:
    """A trunk's tensors by one library's names."""

    trunk: tuple[str, Stem]  # name and stem
    library: str
    names: Mapping[str, str]  # ours: theirs
    shapes: Mapping[str, torch.Size]  # by their names

    @cached_property
    def signature(self) -> frozenset[tuple[str, torch.Size]]:
        """What the trunk is recognised by."""
        return frozenset((name, shape) for name, shape in self.shapes.items() if not name.endswith(_COUNTS))


@dataclass(frozen=True)
class Match:
    """Tensors ``found`` of a layout, by name and shape, among those whose names begin with ``prefix``."""

    layout: Layout
    prefix: str
    found: int
    named: int  # found by name, in whatever shape

    @property
    def is_trunk(self) -> bool:
        return 2 * self.found > len(self.layout.signature)

    def __str__(self) -> str:
        name, stem = self.layout.trunk
        return f"{name} ({stem} stem), {self.layout.library} names" + (f" under {self.prefix}" if self.prefix else "")


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did."""

    library: str  # whose names the file has
    tensors: int  # loaded into the trunk
    left_out: tuple[str, ...]  # names of the file's other tensors: heads, copies of the network, an optimiser
    prefix: str = ""  # of the trunk's names in the file

    @property
    def parts_left_out(self) -> dict[str, int]:
        """The tensors not taken, counted by the part of the file that they are in."""
        path = self.prefix.split(".")

        def part(name: str) -> str:
            parts = name.split(".")
            shared = next((i for i, (one, other) in enumerate(zip(parts, path, strict=False)) if one != other), 0)
            return ".".join(parts[: shared + 1])

        return dict(Counter(map(part, self.left_out)))


def load_weights(trunk: Trunk, path: Path) -> Loaded:
    """Load a checkpoint of torchvision, timm, Transformers, detectron2, VISSL (SEER), SwAV, MoCo, Barlow Twins, DINO,
    solo-learn, lightly, or one of our exports.

    Names and shapes say whose it is, and where in the file the trunk stands. All of the trunk must be there, and
    nothing beside it but a head: anything else is a `UserError` that says what is missing, what is over, and which
    trunk the file holds instead.
    """
    tensors, _ = read_weights(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    layouts = layouts_of(trunk)
    match = best_match(shapes, layouts)
    if not match.is_trunk:  # then what there is instead is reported against our own names
        match = Match(layouts[0], "", match.found, match.named)
    names, expected = match.layout.names, match.layout.shapes
    inside = {name.removeprefix(match.prefix) for name in tensors if name.startswith(match.prefix)}
    over = inside - expected.keys()
    problems = [
        _listed("missing", {name for name in expected.keys() - inside if not name.endswith(_COUNTS)}),
        _listed("unexpected", {name for name in over if not _HEADS.match(name)}),
        _listed("of another shape", {n for n in expected.keys() & inside if shapes[match.prefix + n] != expected[n]}),
    ]
    if any(problems):
        report = "; ".join(filter(None, problems))
        other = best_match(shapes, known_layouts())
        instead = f"; it holds {other}" if other.is_trunk and other.layout.trunk != match.layout.trunk else ""
        raise UserError(f"{path}: not the weights of {match}: {report}{instead}")
    trunk.load_state_dict({ours: tensors.get(match.prefix + theirs, torch.tensor(0)) for ours, theirs in names.items()})
    used = {match.prefix + name for name in names.values()}
    return Loaded(match.layout.library, len(names), tuple(sorted(tensors.keys() - used)), match.prefix)


def nearest_trunk(shapes: Mapping[str, torch.Size], where: str | Path = "the weights") -> Trunk:
    """The trunk, on the meta device, of which most tensors are there by name (any library's) and shape.

    A `UserError` that names ``where`` if that is not even half of any trunk's.
    """
    match = best_match(shapes, known_layouts())
    if not match.is_trunk:
        example = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:3])
        raise UserError(
            f"{where}: holds no trunk that is known here. Its tensors are named {example}, …; the nearest is {match}, "
            f"of which {match.found} of {len(match.layout.signature)} are there by name and shape, {match.named} by "
            f"name. Known are {', '.join(trunk_names())}"
        )
    name, stem = match.layout.trunk
    with torch.device("meta"):
        return build_trunk(name, stem=stem)


def best_match(shapes: Mapping[str, torch.Size], layouts: Iterable[Layout]) -> Match:
    """Where most of a layout stands: of layouts that have as much there, the one that lacks least, and of places that
    hold as much of it, the one that is evaluated."""
    parts: dict[str, dict[str, torch.Size]] = {}

    def under(prefix: str) -> dict[str, torch.Size]:
        if prefix not in parts:
            parts[prefix] = {n.removeprefix(prefix): shape for n, shape in shapes.items() if n.startswith(prefix)}
        return parts[prefix]

    found: list[tuple[Any, Match]] = []
    for layout in layouts:
        stem = next(iter(layout.shapes))
        places = {name.removesuffix(stem) for name in shapes if name == stem or name.endswith(f".{stem}")}
        for prefix in sorted(places) or [""]:
            there = under(prefix)
            match = Match(
                layout, prefix, len(there.items() & layout.signature), len(there.keys() & layout.shapes.keys())
            )
            preferred = bool(_AVERAGES.search(prefix)) - bool(_COPIES.search(prefix))
            found.append(((match.found, match.named, -len(layout.shapes), preferred, -len(prefix)), match))
    return max(found, key=lambda one: one[0])[1]


def layouts_of(trunk: Trunk) -> list[Layout]:
    """A trunk's tensors by the names of every library that knows its family."""
    state = trunk.state_dict()
    layouts = []
    for library in trunk.namings or [OWN]:
        names = trunk.names_in(library)
        shapes = {names[ours]: tensor.shape for ours, tensor in state.items()}
        layouts.append(Layout((trunk.name, trunk.stem_kind), library, names, shapes))
    return layouts


@cache
def known_layouts() -> tuple[Layout, ...]:
    """Those of all trunks with all their stems."""
    layouts = []
    for family in FAMILIES:
        for stem in family.stems:
            with torch.device("meta"):
                layouts += [layout for name in family.names for layout in layouts_of(build_trunk(name, stem=stem))]
    return tuple(layouts)


def _listed(what: str, keys: Iterable[str]) -> str:
    """ "3 missing (a, b, c)", or nothing where there are none; a few are named."""
    keys = sorted(keys)
    return f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})" if keys else ""
