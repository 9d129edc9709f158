"""What other libraries call a trunk's tensors.

A trunk's tensors sit in the stem (convolution, norm) or in a part of a block, and their last name (weight, bias,
running_mean, ...) is the same everywhere. So a library's naming is two names of the stem, the name of block j
(from 0) of stage i (from 1), and the names of the block's parts, in the order of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Stages = Sequence[tuple[int, int]]  # (output channels, blocks) of each


@dataclass(frozen=True)
class Naming:
    stem: str
    block: Callable[[int, int], str]
    parts: str

    def modules(self, stages: Stages) -> list[str]:
        """Every module that may own tensors, the stem first."""
        blocks = [self.block(i, j) for i, (_, depth) in enumerate(stages, 1) for j in range(depth)]
        return self.stem.split() + [f"{block}.{part}" for block in blocks for part in self.parts.split()]

    def translation(self, theirs: Naming, stages: Stages) -> Mapping[str, str]:
        """{name of a module by this naming: its name by ``theirs``}."""
        return dict(zip(self.modules(stages), theirs.modules(stages), strict=True))
