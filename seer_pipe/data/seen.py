"""What the network sees of samples: their crops, and the spectrograms of their sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seer_pipe.config import Sound
from seer_pipe.data.chunks import Encoded
from seer_pipe.data.dali import Augmenter
from seer_pipe.data.media import Media
from seer_pipe.data.order import Ints
from seer_pipe.data.views import Crops, CropSpec, draw, draw_moments


class Seen(NamedTuple):
    """Of n samples."""

    pictures: list[Encoded]  # as images are stored
    views: list[Crops]
    crops: list[Tensor]  # [n, 3, size, size] of each of the views
    sounds: list[Tensor]  # [n, 1, columns, bands], where sound is asked for


class Maker:
    """Makes the crops ``specs`` of samples and what is heard of them by ``sound``, with what ``seed`` draws.

    The rest is of the `Augmenter`.
    """

    def __init__(
        self,
        specs: Sequence[CropSpec],
        sound: Sound | None = None,
        *,
        seed: int,
        device: str = "cpu",
        threads: int = 2,
        max_batch: int,
        layout: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._specs, self._seed = specs, seed
        self._media = None if sound is None else Media(sound, device=device, threads=threads)
        self._augmenter = Augmenter(
            specs, device=device, threads=threads, max_batch=max_batch, layout=layout, dtype=dtype
        )

    def __call__(self, samples: Sequence[Encoded | None], epochs: Ints, keys: Ints, height: Ints, width: Ints) -> Seen:
        """Of n samples that were all read; see `draw` for the rest. Raises BadImages."""
        views = draw(self._seed, epochs, keys, height, width, self._specs)
        pictures, sounds = [sample for sample in samples if sample is not None], []
        if self._media is not None:
            pictures, heard = self._media(pictures, draw_moments(self._seed, epochs, keys, self._media.sound))
            sounds = [heard]
        return Seen(pictures, views, self._augmenter(pictures, views), sounds)

    def close(self) -> None:
        self._augmenter.close()
        if self._media is not None:
            self._media.close()
