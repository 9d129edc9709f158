"""The network: one trunk run a resolution, rows in the order of the crops."""

import torch
from torch import Tensor, nn

from seer_pipe.objectives.base import Network


class Trunk(nn.Module):
    """The mean of an image's pixels; remembers the shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.shape)
        return images.mean(dim=(2, 3))


def test_the_trunk_runs_once_a_resolution_and_rows_keep_the_crops_order() -> None:
    sizes = [8, 4, 8, 4, 4]
    crops = [torch.randn(3, 3, size, size) for size in sizes]
    trunk = Trunk()
    rows = Network(trunk, nn.Identity())(crops)
    assert trunk.seen == [(6, 3, 8, 8), (9, 3, 4, 4)]
    torch.testing.assert_close(rows, torch.cat([crop.mean(dim=(2, 3)) for crop in crops]))
