"""A memory bank: a row for each sample of a set, by its id, spread over the ranks.

Rows lie in a fixed number of shards (`layout`); of W ranks each holds a run of whole ones, so a bank is the same
logical tensor [shards, rows, …] for any W, and a checkpoint of one number of ranks loads on any other. A row of zeros
was never written. Who holds which row is known on the host, so no rank waits for its GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from seer_pipe.distributed.collectives import all_gather_rows, all_max_, all_sum_, exchange_rows, rank, world_size
from seer_pipe.errors import UserError
from seer_pipe.objectives.bank_settings import BankSettings, layout
from seer_pipe.objectives.base import take_saved
from seer_pipe.objectives.heads import unit

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Visit:
    """Which rows the ranks ask of each other for the images of one step."""

    order: Tensor  # [n] this rank's images, by the ranks that hold their rows
    asked: list[int]  # how many of them each rank holds
    places: Tensor  # [m] rows of this rank that others ask for, in the order of the global batch
    given: list[int]  # to each rank
    first: Tensor  # [f] of those m, the ones that no earlier image of the batch asks for


class Bank:
    """Rows of ``shape`` [.., D] for ids below ``samples``, unit in their last dimension; a `Memory`, and `Reversible`.

    All ranks call each method together. UserError, on all of them, where a rank has no room for its part.
    """

    echoes = False

    def __init__(
        self, settings: BankSettings, samples: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        self.samples, self._keep = samples, settings.keep
        self.shards, self.depth = layout(samples)
        self._each = -(-self.shards // world_size())  # shards of a rank; the last ones may have fewer
        own = max(0, min(self._each, self.shards - rank() * self._each))
        _check_room(settings, samples, math.prod(shape), torch.device(device))
        part = torch.zeros(own, self.depth, *shape, dtype=getattr(torch, settings.dtype), device=device)
        self.rows = part.flatten(0, 1)
        """This rank's part, [own · depth, ..]."""
        self.logical: Tensor = part
        """The whole bank [shards, depth, ..] as a checkpoint holds it."""
        if world_size() > 1:
            mesh = init_device_mesh(torch.device(device).type, (world_size(),))
            whole = torch.empty(self.shards, *part.shape[1:], device="meta")
            self.logical = DTensor.from_local(part, mesh, [Shard(0)], shape=whole.shape, stride=whole.stride())
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self._changed, self._before = none, self.rows[none]
        self._visit: Visit | None = None

    def recall(self, samples: Tensor, fresh: Tensor) -> Tensor:
        self._visit = self.visit(samples)
        return self.read(self._visit).to(fresh.dtype)

    def remember(self, fresh: Tensor) -> None:
        assert self._visit is not None  # `recall` came before
        self.write(self._visit, fresh)

    def others(self, samples: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.at(drawn.numpy())
        foreign = (samples[:, None] != drawn).to(rows.device, non_blocking=True)
        return rows, foreign & rows.flatten(1).any(1)

    def share(self) -> Tensor:
        return self.rows

    def state_dict(self) -> dict[str, Tensor]:
        return {"bank": self.logical}

    def load_state_dict(self, state: dict[str, Tensor], name: str) -> None:
        self.load(state.get("bank"), name)

    def visit(self, samples: Tensor) -> Visit:
        """Plan the exchange of the rows of this rank's images, [n] int64 on the host, n alike on all ranks."""
        everyone = all_gather_rows(samples.cpu()).numpy()
        ranks, n = world_size(), len(samples)
        holder, place = self._where(everyone)
        mine = np.flatnonzero(holder == rank())
        own = holder[rank() * n : (rank() + 1) * n]
        _, first = np.unique(place[mine], return_index=True)
        return Visit(
            self._there(np.argsort(own, kind="stable")),
            np.bincount(own, minlength=ranks).tolist(),
            self._there(place[mine]),
            np.bincount(mine // n, minlength=ranks).tolist(),
            self._there(np.sort(first)),
        )

    @torch.no_grad()
    def read(self, visit: Visit) -> Tensor:
        """The rows of this rank's images [n, ..], zeros where never written."""
        found = exchange_rows(self.rows[visit.places], visit.given, visit.asked)
        return torch.empty_like(found).index_copy_(0, visit.order, found)

    @torch.no_grad()
    def write(self, visit: Visit, rows: Tensor) -> None:
        """Move the rows of this rank's images towards ``rows`` [n, ..]: normalised keep · old + (1 − keep) · new, or
        the new one where there is none. Of equal ids in a batch the first one counts, in the order of the batch."""
        sent = exchange_rows(_unit(rows)[visit.order], visit.asked, visit.given)
        self._changed = visit.places[visit.first]
        self._before = self.rows[self._changed]
        there = self._before.flatten(1).any(1).view(-1, *[1] * (rows.ndim - 1))
        moved = torch.lerp(sent[visit.first], self._before.to(sent.dtype), self._keep * there.to(sent.dtype))
        self.rows[self._changed] = _unit(moved).to(self.rows.dtype)

    @torch.no_grad()
    def at(self, samples: Ints) -> Tensor:
        """The rows of some ids [k], which all ranks ask for alike, [k, ..] float32 on every rank."""
        holder, place = self._where(samples)
        mine = np.flatnonzero(holder == rank())
        found = torch.zeros(len(samples), *self.rows.shape[1:], device=self.rows.device)
        found[self._there(mine)] = self.rows[self._there(place[mine])].float()
        return all_sum_(found)

    def ids(self) -> Tensor:
        """Of the samples whose rows this rank holds, [own · depth]; some are beyond the last one, and never written."""
        place = torch.arange(len(self.rows), device=self.rows.device)
        return place % self.depth * self.shards + rank() * self._each + place // self.depth

    def take_back(self, bad: Tensor) -> None:
        self._before = torch.where(bad, self._before, self.rows[self._changed])
        self.rows[self._changed] = self._before

    def load(self, saved: Tensor | None, name: str) -> None:
        """Take the rows of a checkpoint; None where they were loaded in place."""
        if saved is not None:
            take_saved(self.logical, saved, f"the bank of {name}", "shard set and head")

    def _where(self, samples: Ints) -> tuple[Ints, Ints]:
        """The rank that holds the row of each id, and its place there."""
        shard = samples % self.shards
        holder = shard // self._each
        return holder, (shard - holder * self._each) * self.depth + samples // self.shards

    def _there(self, numbers: Ints) -> Tensor:
        return torch.from_numpy(numbers).to(self.rows.device, non_blocking=True)


def _unit(rows: Tensor) -> Tensor:
    return unit(rows.detach().flatten(0, -2)).view(rows.shape)


def _check_room(settings: BankSettings, samples: int, numbers: int, device: torch.device) -> None:
    needed, free = settings.bytes(samples, numbers, world_size()), _free(device)
    short = all_max_(torch.tensor(float(needed > free), device=device))
    if short:
        raise UserError(
            f"a bank of {samples:,} rows of {numbers} numbers in {settings.dtype} takes {needed / 1e9:.1f} GB on each "
            f"of {world_size()} ranks, and {free / 1e9:.1f} GB are free: take more ranks, objective.bank.dtype "
            "float16, or a smaller objective.head.dim"
        )


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with Path("/proc/meminfo").open() as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
