"""Positives by consensus: of each sample those that are nearest in picture and sound alike."""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import all_sum_
from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.cma.settings import PIECE

#: Samples that all ranks compare theirs with at once.
COMPARED = 8192


@torch.no_grad()
def agreed(bank: Bank, positives: int) -> tuple[Tensor, Tensor]:
    """Of a bank of two rows a sample, of all its N samples: ids of the P others of the greatest min(cosine of pictures,
    cosine of sounds), nearest first, [N, P] int32 on the host; -1 where there are fewer. And the mean of those minima,
    []. Samples without rows have none and are none. All ranks call it, and get the same.

    A rank compares the samples that it holds the rows of with all others, so many at once that memory is bounded.
    """
    mine = bank.rows.flatten(1).any(1).nonzero()[:, 0]
    own = bank.ids()[mine].int()
    nearest = torch.full((len(mine), positives), -torch.inf, device=own.device)
    which = torch.full_like(nearest, -1, dtype=torch.int32)
    everyone = torch.arange(bank.samples).split(COMPARED)
    for others in everyone:
        rows, ids = bank.at(others.numpy()), others.int().to(own.device)
        none = ~rows.flatten(1).any(1)
        for part in torch.arange(len(mine), device=own.device).split(PIECE // COMPARED):
            some = bank.rows[mine[part]].float()
            near = torch.minimum(*(some[:, i] @ rows[:, i].T for i in range(2)))
            near.masked_fill_(none | (own[part, None] == ids), -torch.inf)
            nearest[part], place = torch.cat([nearest[part], near], 1).topk(positives)
            which[part] = torch.cat([which[part], ids.expand(len(part), -1)], 1).gather(1, place)
    found = nearest.isfinite()
    which.masked_fill_(~found, -1)
    total = all_sum_(torch.stack([nearest.masked_fill(~found, 0).sum(dtype=torch.float64), found.sum().double()]))
    return _of_all(which, own, everyone), (total[0] / total[1].clamp_min(1)).float()


def _of_all(which: Tensor, own: Tensor, everyone: tuple[Tensor, ...]) -> Tensor:
    """The rows ``which`` [m, P] of the ids ``own`` [m] of all ranks, by ids, on the host."""
    table = torch.empty(sum(map(len, everyone)), which.shape[1], dtype=torch.int32)
    for ids in everyone:
        first, last = int(ids[0]), int(ids[-1])
        here = (own >= first) & (own <= last)
        piece = torch.zeros(len(ids), which.shape[1], dtype=torch.int32, device=own.device)
        piece[(own[here] - first).long()] = which[here] + 1
        table[first : last + 1] = (all_sum_(piece) - 1).cpu()
    return table
