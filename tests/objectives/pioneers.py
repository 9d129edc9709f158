"""Pioneers: the least objective that needs each widening of the seam, trained through the real entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from seer_pipe.config import Views
from seer_pipe.distributed.collectives import all_gather_rows, all_mean, all_sum_, rank, world_size
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Group, Moment, Network, Objective, pooled
from seer_pipe.objectives.heads import projection
from seer_pipe.objectives.settings import Settings, Setup


def logged(loss: Tensor, log: bool) -> tuple[Tensor, dict[str, Tensor]]:
    return loss, {"loss": all_mean([loss.detach()])[0]} if log else {}


class RingNetwork(Network):
    """Queries of crop 0 by trunk and head, keys of crop 1 by their momentum copies."""

    def __init__(self, trunk: Trunk, head: nn.Module, key_trunk: Trunk, key_head: nn.Module) -> None:
        super().__init__(trunk, head)
        self.key_trunk, self.key_head = key_trunk, key_head

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.key_trunk, self.trunk), (self.key_head, self.head)]

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        queries = F.normalize(self.head(pooled(self.trunk, crops[:1])), dim=1)
        with torch.no_grad():
            return queries, F.normalize(self.key_head(pooled(self.key_trunk, crops[1:])), dim=1)


class Ring(Objective):
    """A query is its key's among the keys of earlier steps (MoCo); the ring holds them, the oldest are overwritten."""

    def __init__(self, setup: Setup, length: int, dim: int, weight: float) -> None:
        generator = torch.Generator().manual_seed(setup.seed)
        self.ring = F.normalize(torch.randn(length, dim, generator=generator), dim=1).to(setup.device)
        self.next = torch.zeros((), dtype=torch.int64, device=setup.device)
        self.weight = weight

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        queries, keys = outputs
        logits = torch.cat([(queries * keys.detach()).sum(1, keepdim=True), queries @ self.ring.T], dim=1) / 0.2
        fresh = all_gather_rows(keys.detach())
        places = (self.next + torch.arange(len(fresh), device=fresh.device)) % len(self.ring)
        self.ring = self.ring.index_copy(0, places, fresh)  # not in place: the gradient needs the rows before
        self.next = (self.next + len(fresh)) % len(self.ring)
        return logged(F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64)), log)

    def momentum(self, moment: Moment) -> float:
        return 1 - (1 - self.weight) * (1 - moment.progress)

    def state_dict(self) -> dict[str, Tensor]:
        return {"ring": self.ring, "next": self.next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.ring.copy_(state["ring"])
        self.next.copy_(state["next"])


class RingSettings(Settings):
    name: Literal["ring"] = "ring"
    weight: float = 0.9
    batch_norm: bool = True

    def check(self, views: Views, batch: int) -> None:
        if views.count != 2:
            raise ValueError(f"objective ring needs 2 crops, views has {views.count}")

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        one, other = trunk(), trunk()
        heads = [projection([one.width, 16, 8], self.batch_norm) for _ in range(2)]
        return RingNetwork(one, heads[0], other, heads[1])

    def objective(self, network: Network, setup: Setup) -> Objective:
        return Ring(setup, 24, 8, self.weight)


class Bank:
    """An embedding of each sample, sharded by its id over the ranks. `Reversible`: it takes back its last write."""

    def __init__(self, setup: Setup, dim: int) -> None:
        self.rows = torch.zeros(setup.samples, dim, device=setup.device)
        self.first, self.part = 0, self.rows
        if dist.is_initialized():
            mesh = init_device_mesh(setup.device.type, (world_size(),))
            self.part = self.rows.chunk(world_size())[rank()].clone()
            self.first = rank() * -(-setup.samples // world_size())
            self.rows = DTensor.from_local(self.part, mesh, [Shard(0)], shape=self.rows.shape, stride=(dim, 1))
        self._written, self._before = torch.empty(0, dtype=torch.int64, device=setup.device), self.part[:0]

    def read(self, ids: Tensor) -> Tensor:
        """The rows of this rank's ids."""
        at, mine = self._here(ids)
        found = self.part[at.clamp(0, len(self.part) - 1)] * mine[:, None]
        return all_sum_(found).chunk(world_size())[rank()]

    def write(self, ids: Tensor, rows: Tensor) -> None:
        at, mine = self._here(ids)
        self._written, self._before = at[mine], self.part[at[mine]]
        self.part[self._written] = all_gather_rows(rows)[mine]

    def take_back(self, bad: Tensor) -> None:
        self.part[self._written] = torch.where(bad, self._before, self.part[self._written])

    def _here(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Places in this rank's part of the ids of all ranks, and which are in it."""
        at = all_gather_rows(ids) - self.first
        return at, (at >= 0) & (at < len(self.part))


class Instance(Objective):
    """An embedding stays near the mean of those that its image had before (as a memory bank's do)."""

    def __init__(self, setup: Setup) -> None:
        self.bank = Bank(setup, 8)

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            kept = self.bank.read(moment.samples)
            self.bank.write(moment.samples, F.normalize((outputs + kept).detach(), dim=1))
        return logged(1 - (F.normalize(outputs, dim=1) * kept).sum(1).mean(), log)

    def state_dict(self) -> dict[str, Tensor]:
        return {"bank": self.bank.rows}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "bank" in state:  # of one process; sharded it was loaded in place
            self.bank.part.copy_(state["bank"])


class BankSettings(Settings):
    name: Literal["bank"] = "bank"

    def check(self, views: Views, batch: int) -> None:
        if views.count != 1:
            raise ValueError(f"objective {self.name} needs 1 crop, views has {views.count}")

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        made = trunk()
        return Network(made, projection([made.width, 8], batch_norm=True))

    def objective(self, network: Network, setup: Setup) -> Objective:
        return Instance(setup)


class Targets(Objective):
    """Embeddings move towards random targets of their samples, drawn again whenever so many images were seen."""

    refresh_images = 24

    def __init__(self, setup: Setup) -> None:
        self.seed = setup.seed
        self.targets = torch.zeros(16, 8, device=setup.device)

    def refresh(self, number: int, moment: Moment) -> None:
        self.targets.copy_(torch.randn(16, 8, generator=torch.Generator().manual_seed(1000 * self.seed + number)))

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        return logged(F.mse_loss(outputs, self.targets[moment.samples % len(self.targets)]), log)

    def state_dict(self) -> dict[str, Tensor]:
        return {"targets": self.targets}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.targets.copy_(state["targets"])


class TargetsSettings(BankSettings):
    name: Literal["targets"] = "targets"  # type: ignore[assignment]

    def objective(self, network: Network, setup: Setup) -> Objective:
        return Targets(setup)


class PacedSettings(TargetsSettings):
    """The head at the peak's rate from the first step on, without decay (as SimSiam's predictor)."""

    name: Literal["paced"] = "paced"  # type: ignore[assignment]

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        network = super().network(trunk)
        network.groups = {"head": Group(constant=True, decay=False)}
        return network


PIONEERS = (RingSettings, BankSettings, TargetsSettings, PacedSettings)
