"""Features of many images under a trunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from seer_pipe.config import Frames
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.media import Clips, stills
from seer_pipe.data.order import Ints
from seer_pipe.data.seen import cut
from seer_pipe.data.views import Crops, CropSpec, centre
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.pictures import Picture, Pictures, ShardPictures, ahead
from seer_pipe.export import Preprocessing

#: From the numbers, heights and widths of n images to the box of each.
View = Callable[[Ints, Ints, Ints], Crops]


@dataclass(frozen=True)
class Features:
    """``matrix``: [n, width] float32 on the CPU, a row for each of ``samples`` (numbers of the images)."""

    matrix: torch.Tensor
    samples: list[int]


class Images:
    """Images decoded and cropped in batches, one batch ahead of whoever uses them; of a clip the one in its middle, or
    the ``frames`` there. UserError where frames are wanted, and these are no clips.

    What cannot be read or decoded is skipped, and recorded in ``left_out``: {number: reason}.
    """

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        frames: Frames | None = None,
        *,
        batch: int = 64,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if len(pictures) == 0:
            raise UserError(f"{pictures.where}: there are no images in it")
        if frames is not None and not (isinstance(pictures, ShardPictures) and pictures.shards.media == "video"):
            raise UserError(
                f"{pictures.where}: the trunk takes clips; give it a set that seer-ingest --media video made"
            )
        self.pictures, self.size, self._batch = pictures, size, min(batch, len(pictures))
        threads = threads or min(8, len(os.sched_getaffinity(0)))
        self._augmenter = Augmenter([CropSpec(1, size, (1, 1))], device=device, threads=threads, max_batch=self._batch)
        self._clips = None if frames is None else Clips(frames, threads=threads)
        self.left_out: dict[int, str] = {}

    def centre(self, numbers: Ints, height: Ints, width: Ints) -> Crops:
        """The usual evaluation view, the one that an export's model card has as code."""
        return centre(height, width, self.size, Preprocessing(self.size).resize)

    def batches(
        self, numbers: Ints | None = None, view: View | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers of the images, and their pixels [n, 3, size, size], of clips [n, 3, frames, size, size].

        Of all, or of those given, in that order.
        """
        if numbers is None:
            numbers = np.arange(len(self.pictures))
        return ahead(self._batches(numbers, view or self.centre))

    def full_batches(self, numbers: Ints, view: View, instead: Ints) -> Iterator[tuple[list[int], torch.Tensor]]:
        """As ``batches``, and none has a gap: for an image that cannot be used stands the next of ``instead`` that can.

        UserError where none of them can.
        """
        return ahead(self._full_batches(numbers, view, instead))

    def _batches(self, numbers: Ints, view: View) -> Iterator[tuple[list[int], torch.Tensor]]:
        for batch in ahead(self.pictures.read(numbers, self._batch)):
            if (found := self._usable(batch, view)) is not None:
                yield found

    def _full_batches(self, numbers: Ints, view: View, instead: Ints) -> Iterator[tuple[list[int], torch.Tensor]]:
        for batch in ahead(self.pictures.read(numbers, self._batch)):
            found = self._usable(batch, view)
            parts = [] if found is None else [found]
            good = set() if found is None else set(found[0])
            parts += [self._next(picture.number, view, instead) for picture in batch if picture.number not in good]
            yield [number for part in parts for number in part[0]], torch.cat([pixels for _, pixels in parts])

    def _next(self, number: int, view: View, instead: Ints) -> tuple[list[int], torch.Tensor]:
        """The image of ``instead`` behind this one, passing over those that cannot be used."""
        place = int(np.searchsorted(instead, number))
        for other in np.roll(instead, -place - 1):
            if other not in self.left_out:
                (picture,) = next(self.pictures.read(np.array([other]), 1))
                if (found := self._usable([picture], view)) is not None:
                    return found
        raise UserError(f"{self.pictures.where}: none of its images can be used")

    def _usable(self, batch: list[Picture], view: View) -> tuple[list[int], torch.Tensor] | None:
        """Those of them that can be used; None where none can."""
        self.left_out |= {picture.number: picture.reason for picture in batch if picture.data is None}
        pictures = [picture for picture in batch if picture.data is not None]
        while pictures:
            try:
                return [picture.number for picture in pictures], self._decode(pictures, view)
            except BadImages as error:
                bad = dict(zip(error.indices, error.reasons, strict=True))
                self.left_out |= {pictures[i].number: reason for i, reason in bad.items()}
                pictures = [picture for i, picture in enumerate(pictures) if i not in bad]
        return None

    def _decode(self, pictures: list[Picture], view: View) -> torch.Tensor:
        numbers, heights, widths = np.array([picture[:3] for picture in pictures]).T
        encoded = [picture.data for picture in pictures if picture.data is not None]
        shown = [stills(encoded)] if self._clips is None else self._clips(encoded, np.full(len(encoded), 0.5))
        return cut(self._augmenter, shown, [view(numbers, heights, widths)])[0]

    def close(self) -> None:
        self._augmenter.close()
        if self._clips is not None:
            self._clips.close()


@torch.no_grad()
def extract(trunk: nn.Module, images: Images, numbers: Ints | None = None, view: View | None = None) -> Features:
    """The trunk's features in evaluation mode, one row an image."""
    trunk.eval()
    device = next(trunk.parameters()).device
    found: list[int] = []
    rows = []
    for batch, pixels in images.batches(numbers, view):
        found += batch
        rows.append(trunk(pixels.to(device)).float().cpu())
    return Features(torch.cat(rows) if rows else torch.empty(0, int(trunk.width)), found)  # type: ignore[arg-type]


def extract_shared(trunk: nn.Module, images: Images, numbers: Ints, world: World) -> Features | None:
    """As ``extract``, every rank a contiguous share; the first rank gets all rows, in order, and the others None."""
    mine = extract(trunk, images, np.array_split(numbers, world.size)[world.rank])
    if world.size == 1:
        return mine
    samples = world.gather(mine.samples)
    if not world.is_first:
        dist.send(mine.matrix, 0)
        return None
    whole = torch.empty(sum(map(len, samples)), mine.matrix.shape[1])
    blocks = whole.split([len(share) for share in samples])
    blocks[0].copy_(mine.matrix)
    for rank, block in enumerate(blocks[1:], start=1):
        dist.recv(block, rank)
    return Features(whole, [number for share in samples for number in share])
