"""The crops alone, for any loop: of encoded images or tensors, by the kernels that training uses."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.layouts import lay_out
from seer_pipe.data.views import Array, Crops, CropSpec, draw
from seer_pipe.errors import UserError


class Views:
    """Makes the crops ``specs`` of images, a pure function of (seed, epoch, sample). What `seer_pipe.views` gives."""

    def __init__(self, specs: Sequence[CropSpec], *, seed: int, device: str, threads: int) -> None:
        self._specs, self._seed, self._device = specs, seed, device
        self._augmenter = Augmenter(specs, device=device, threads=threads, max_batch=32 * threads)

    def __call__(
        self, images: Sequence[bytes] | Sequence[Tensor], samples: Sequence[int] | Tensor, epoch: int = 0
    ) -> list[Tensor]:
        """The crops of n images: a normalised float32 [n, 3, size, size] for each crop of the recipe, in its order.

        Args:
            images: encoded ones (whatever DALI decodes; EXIF orientation is not applied), or uint8 tensors [3, H, W].
            samples: the number of each image in its set. The same number and epoch give the same crops.
            epoch: how often the images were seen before; each time other crops are drawn.

        `BadImages` says which of the images cannot be used (``indices``), and why (``reasons``).
        """
        numbers = np.asarray(samples, np.int64)
        if len(numbers) != len(images):
            raise UserError(f"seer_pipe.views: {len(images)} images and the numbers of {len(numbers)} samples")
        encoded = [image for image in images if isinstance(image, bytes)]
        if encoded:
            height, width = np.array(_sizes(encoded)).T
            return lay_out(self._augmenter(encoded, self._draw(epoch, numbers, height, width)), self._specs)
        tensors = [_picture(image, self._device) for image in images if isinstance(image, Tensor)]
        if len(tensors) != len(images) or not tensors:
            raise UserError("seer_pipe.views: images are bytes, or tensors [3, H, W] of uint8, and at least one")
        height, width = np.array([picture.shape[:2] for picture in tensors]).T
        return lay_out(self._augmenter.cut(tensors, self._draw(epoch, numbers, height, width)), self._specs)

    def _draw(self, epoch: int, numbers: Array, height: Array, width: Array) -> list[Crops]:
        return draw(self._seed, epoch, numbers, height, width, self._specs)

    def close(self) -> None:
        self._augmenter.close()


def _picture(image: Tensor, device: str) -> Tensor:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise UserError(
            f"seer_pipe.views: a tensor {list(image.shape)} of {image.dtype}; images are [3, H, W] of uint8"
        )
    return image.permute(1, 2, 0).contiguous().to(device)


def _sizes(images: Sequence[bytes]) -> list[tuple[int, int]]:
    """Height and width of each, by its header, as it is stored."""
    found, faults = [], {}
    for at, data in enumerate(images):
        try:
            with Image.open(io.BytesIO(data)) as image:
                found.append((image.height, image.width))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            faults[at] = f"no image: {error}"
    if faults:
        raise BadImages(faults)
    return found
