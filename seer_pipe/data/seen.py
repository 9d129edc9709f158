"""What the network sees of samples: their crops, and the spectrograms of their sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seer_pipe.config import Frames, Sound
from seer_pipe.data.chunks import Encoded
from seer_pipe.data.dali import Augmenter
from seer_pipe.data.media import Clips, Media, both
from seer_pipe.data.order import Ints
from seer_pipe.data.views import Crops, CropSpec, draw, draw_moments, draw_shares


class Seen(NamedTuple):
    """Of n samples."""

    pictures: list[tuple[Encoded, ...]]  # as images are stored: one of each sample, both of a pair, or frames
    views: list[Crops]
    of: list[int]  # the number of the picture that each view is cut from
    crops: list[Tensor]  # [n, 3, size, size] of each of the views
    sounds: list[Tensor]  # [n, 1, columns, bands], where sound is asked for


class Maker:
    """Makes the crops ``specs`` of samples, or of the ``frames`` of each, and what is heard of them by ``sound``, with
    what ``seed`` draws.

    The rest is of the `Augmenter`.
    """

    def __init__(
        self,
        specs: Sequence[CropSpec],
        sound: Sound | None = None,
        frames: Frames | None = None,
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
        self._clips = None if frames is None else Clips(frames, threads=threads)
        self._of = [spec.picture for spec in specs for _ in spec.sizes]
        self._augmenters = [
            Augmenter(
                [spec for spec in specs if spec.picture == picture],
                device=device, threads=threads, max_batch=max_batch, layout=layout, dtype=dtype,
            )
            for picture in range(max(self._of) + 1)
        ]  # fmt: skip

    def __call__(self, samples: Sequence[Encoded | None], epochs: Ints, keys: Ints, height: Ints, width: Ints) -> Seen:
        """Of n samples that were all read; see `draw` for the rest. Raises BadImages."""
        views = draw(self._seed, epochs, keys, height, width, self._specs)
        read, sounds = [sample for sample in samples if sample is not None], []
        if self._media is not None:
            read, heard = self._media(read, draw_moments(self._seed, epochs, keys, self._media.sound))
            sounds = [heard]
        if self._clips is not None:
            pictures = self._clips(read, draw_shares(self._seed, epochs, keys))
        else:
            pictures = [read] if len(self._augmenters) == 1 else both(read)
        made = [
            iter(augmenter(pictures[number], [view for view, of in zip(views, self._of, strict=True) if of == number]))
            for number, augmenter in enumerate(self._augmenters)
        ]
        crops = [next(made[number]) for number in self._of]
        return Seen(list(zip(*pictures, strict=True)), views, self._of, crops, sounds)

    def close(self) -> None:
        for augmenter in self._augmenters:
            augmenter.close()
        for opener in (self._media, self._clips):
            if opener is not None:
                opener.close()
