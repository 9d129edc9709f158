"""A picture finds its sound among all of the batch, and the sound its picture.

With unit embeddings v of the pictures and a of the sounds of the B samples of the global batch::

    loss = 1/2 mean over i of  -log softmax_i(v_i · a_j / T over all j)  -log softmax_i(a_i · v_j / T over all j)

averaged over the crops of a picture. It is CLIP's loss (Radford et al. 2021, arXiv 2103.00020, figure 3) with a
constant T, on the pairs of AVID (Morgado et al. 2021, arXiv 2004.12943), whose others are of a bank of all samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import rank, world_size
from seer_pipe.distributed.gradients import gather_crops
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import full_precision, unit
from seer_pipe.objectives.metrics import logged, retrieval
from seer_pipe.objectives.pairs import Pair


class ImageAudio(Objective):
    """``temperature``: T."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, outputs: Pair, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(outputs.heard):
            n = len(outputs.heard)
            z = unit(torch.cat(outputs))
            of_all = gather_crops(z, n).unflatten(0, (-1, n * world_size()))
            *pictures, heard = z.unflatten(0, (-1, n))
            *all_pictures, all_heard = of_all
            own = rank() * n + torch.arange(n, device=z.device)
            to_sounds = [seen @ all_heard.T for seen in pictures]
            to_pictures = [heard @ seen.T for seen in all_pictures]
            cosines = torch.stack(to_sounds + to_pictures)
            loss = F.cross_entropy(cosines.flatten(0, 1) / self.temperature, own.repeat(len(cosines)))
            return loss, logged(loss, z, **partners_found(to_sounds, to_pictures, own)) if log else {}


@torch.no_grad()
def partners_found(to_sounds: list[Tensor], to_pictures: list[Tensor], own: Tensor) -> dict[str, Tensor]:
    """Of cosines [n, K] of pictures with sounds and of sounds with pictures, their own ones in the columns ``own`` [n]:
    `positive_similarity` and `negative_similarity`, means with the own and with others, and `sound_found` and
    `picture_found`, how often the own one is the nearest."""
    seen, heard = (
        torch.stack([retrieval(cosines, own) for cosines in some]).mean(0) for some in (to_sounds, to_pictures)
    )
    return {
        "positive_similarity": (seen[0] + heard[0]) / 2,
        "negative_similarity": (seen[1] + heard[1]) / 2,
        "sound_found": seen[2],
        "picture_found": heard[2],
    }
