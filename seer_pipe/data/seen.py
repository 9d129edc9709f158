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

    pictures: list[tuple[Encoded, ...]]  # as images are stored: one of each sample, both of a pair, frames, or of each
    # clip of joined ones that in its middle
    views: list[Crops]
    of: list[int]  # the number of the picture that each view is cut from
    crops: list[Tensor]  # [n, 3, size, size] of each of the views; of joined frames [n, 3, frames, size, size]
    sounds: list[Tensor]  # [n, 1, columns, bands], where sound is asked for


class Maker:
    """Makes the crops ``specs`` of samples, or of the ``frames`` of each, and what is heard of them by ``sound``, with
    what ``seed`` draws. Of frames that are joined each of the pictures that crops are cut from has its own moment.

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
        self._media = None if sound is None else Media(sound, frames, device=device, threads=threads)
        self._clips = None if frames is None or sound is not None else Clips(frames, threads=threads)
        self._joined = frames is not None and frames.joined
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
        read = [sample for sample in samples if sample is not None]
        pictures, sounds = self._opened(read, epochs, keys)
        made = []
        for number, (augmenter, frames) in enumerate(zip(self._augmenters, pictures, strict=True)):
            own = [view for view, of in zip(views, self._of, strict=True) if of == number]
            made.append(iter(cut(augmenter, frames, own)))
        crops = [next(made[number]) for number in self._of]
        shown = [frames[len(frames) // 2] for frames in pictures]
        return Seen(list(zip(*shown, strict=True)), views, self._of, crops, sounds)

    def _opened(
        self, samples: list[Encoded], epochs: Ints, keys: Ints
    ) -> tuple[list[list[list[Encoded]]], list[Tensor]]:
        """Of each picture that crops are cut from the frames, one where they are not joined, of n samples; sounds."""
        looks = range(len(self._augmenters))
        if self._media is not None:
            frames, heard = self._media(samples, draw_moments(self._seed, epochs, keys, self._media.sound))
            return [frames], [heard]
        if self._clips is None:
            return [[picture] for picture in ([samples] if len(looks) == 1 else both(samples))], []
        if self._joined:
            return [self._clips(samples, draw_shares(self._seed, epochs, keys, look)) for look in looks], []
        return [[frame] for frame in self._clips(samples, draw_shares(self._seed, epochs, keys))], []

    def close(self) -> None:
        for augmenter in self._augmenters:
            augmenter.close()
        for opener in (self._media, self._clips):
            if opener is not None:
                opener.close()


def cut(augmenter: Augmenter, frames: Sequence[list[Encoded]], views: list[Crops]) -> list[Tensor]:
    """The views [n, 3, size, size] of n pictures; of clips, of which there are several frames, alike of all of them:
    [n, 3, frames, size, size]. Raises BadImages."""
    crops = [augmenter(pictures, views) for pictures in frames]
    return crops[0] if len(frames) == 1 else [torch.stack(clip, dim=2) for clip in zip(*crops, strict=True)]
