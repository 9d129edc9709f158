"""From encoded images and their views to normalised crops: one decode, every crop cut from it.

DALI decodes; all that follows is one compiled kernel on a CPU (`seer_pipe.data.pixels_cpu`), and a few of Triton's on a
GPU (`seer_pipe.data.pixels_gpu`). DALI holds no random state, and no image outlives its call.

Chosen by numbers, on one core, from photographs of the web (docs/views.md). DALI's dynamic mode and not its pipeline
mode: that is 3 % faster at decoding and cutting, but an undecodable image can end a pipeline for good, while in dynamic
mode the call raises and the next one works. Whole images decoded once: regions crop by crop take twice as long, and the
region of all crops is nearly the image. Not DALI's kernels past the decoder: its hue turns in YIQ, where torchvision's
turns in HSV, and on a GPU each operator of the dynamic mode is a call of its own, for each crop.
"""

import gc
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from seer_pipe.errors import UserError

try:
    import nvidia.dali.experimental.dynamic as ndd
    from nvidia.dali.types import DALIImageType
except ModuleNotFoundError as error:
    raise UserError(
        f"no DALI ({error}): pip install 'seer-pipe[cuda13]', or [cuda12] where torch's CUDA is 12; either runs on a "
        "CPU alone"
    ) from None

from seer_pipe.data import pixels_cpu
from seer_pipe.data.pixels import pack
from seer_pipe.data.stray import SIEVE
from seer_pipe.data.views import Crops, CropSpec

MAX_PIXELS = 2**30 // 12  # Pillow's own bound against decompression bombs: 256 MiB of RGB
#: The share of the JPEGs that a GPU's JPEG engine is given, where there is one and it can decode them: all of them. By
#: default it is a part of each batch, so that an image's decoder, and so its pixels, would depend on its batch.
ENGINE = 1.0
CHUNK = 32  # images for each thread to decode before they are cut: enough to share out, little to hold


# A fork, as of a DataLoader's worker, has none of its parent's threads. Where it collected garbage of its parent, DALI
# would wait for those of a decoder that is among it, and crash: so what came along is left alone there.
os.register_at_fork(after_in_child=gc.freeze)


class BadImages(Exception):  # noqa: N818 - it names what it carries
    """Some images of a batch cannot be used: `indices` in the batch, and a reason for each, a line of text."""

    def __init__(self, faults: dict[int, str]) -> None:
        self.indices = sorted(faults)
        self.reasons = [faults[i] for i in self.indices]
        super().__init__("; ".join(f"image {i}: {faults[i]}" for i in self.indices))


class Augmenter:
    """Makes the crops of `crops` (`CropSpec.sizes` matter here) on `device` ("cpu", "cuda", "cuda:1").

    `threads` work on the CPU's part. At most `max_batch` images are decoded at a time; longer batches are done in
    turns, so it bounds memory and changes no value. May be called from any thread, one call at a time; the heavy
    work releases the interpreter lock. Every image's crops are the same bytes in whatever batch it comes.

    `layout` (torch.contiguous_format or torch.channels_last) and `dtype` are what the crops come in, written there
    once, where a later `contiguous` took 0.7 to 1.2 ms of CPU an image of 2x224+6x96. The arithmetic is float32 in any
    case.
    """

    def __init__(
        self,
        crops: Sequence[CropSpec],
        *,
        device: str = "cpu",
        threads: int = 2,
        max_batch: int,
        layout: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._sizes = [size for spec in crops for size in spec.sizes]
        self._layout, self._dtype = layout, dtype
        self._ndd_device, self._device = device, torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._turn = min(max_batch, CHUNK * threads) if self._stream is None else max_batch
        self._threads = threads
        SIEVE.hold()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")
        if self._stream is None:
            pixels_cpu.kernel()  # compiled now, if it was not: the first batch shall not wait
            self._make = self._make_on_cpu
        else:
            self._make = self._make_on_gpu
        with ndd.Device(device):
            self._context = ndd.EvalContext(num_threads=threads, cuda_stream=self._stream)

    def __call__(self, jpegs: Sequence[bytes | np.ndarray], views: Sequence[Crops]) -> list[torch.Tensor]:
        """The crops of n encoded images: for each of `views` a tensor [n, 3, size, size] on the device.

        Any format DALI decodes (JPEG of any colour space, PNG, WebP, TIFF, BMP, JPEG 2000); EXIF orientation is
        not applied, as the boxes of the views are in stored pixels. Raises BadImages for the images that do not
        decode, are larger than MAX_PIXELS or smaller than their views say.
        """
        faults: dict[int, str] = {}
        with self._on_stream(), self._context, ndd.EvalMode.sync_cpu:
            out = [self._empty(len(jpegs), size) for size in self._sizes]
            for start in range(0, len(jpegs), self._turn):
                turn = range(len(jpegs))[start : start + self._turn]
                files, crops = [jpegs[i] for i in turn], [crop.take(turn) for crop in views]
                try:
                    images = _decode(files, crops, self._ndd_device)
                except (RuntimeError, ValueError):
                    found = self._faults(files, crops)
                    if not found:
                        raise  # not the images' fault
                    faults |= {start + i: reason for i, reason in found.items()}
                else:
                    if not faults:
                        self._make(images, crops, [crop[start : turn.stop] for crop in out])
        if faults:
            raise BadImages(faults)
        return out

    def cut(self, images: Sequence[torch.Tensor], views: Sequence[Crops]) -> list[torch.Tensor]:
        """As a call, of n images that are decoded: uint8 [H, W, 3] each, contiguous and on the device, all at once."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with self._on_stream():
            out = [self._empty(len(images), size) for size in self._sizes]
            self._make(_Decoded(images), views, out)
        return out

    def _empty(self, n: int, size: int) -> torch.Tensor:
        return torch.empty(n, 3, size, size, dtype=self._dtype, device=self._device, memory_format=self._layout)

    def close(self) -> None:
        self._pool.shutdown()
        SIEVE.release()

    def _faults(self, jpegs: Sequence[bytes | np.ndarray], crops: Sequence[Crops]) -> dict[int, str]:
        """Each image alone: a failed batch does not say which of them it was, nor whether there are more."""
        faults = {}
        for i, jpeg in enumerate(jpegs):
            try:
                _decode([jpeg], [crop.take([i]) for crop in crops], self._ndd_device)
            except ValueError as error:
                faults[i] = str(error)
            except RuntimeError as error:
                faults[i] = f"does not decode: {' '.join(str(error).split())}"
        return faults

    def _make_on_gpu(self, images: Any, crops: Sequence[Crops], out: Sequence[torch.Tensor]) -> None:
        """Launched by this thread, and waited for in it: the streams of others wait for nothing."""
        from seer_pipe.data import pixels_gpu  # it needs Triton, which torch brings along for GPUs alone

        height, width = np.array([shape[:2] for shape in images.shape]).T
        address = np.array([image.__cuda_array_interface__["data"][0] for image in images.tensors], np.uint64)
        pixels_gpu.make(pack(crops, height, width, address), out, self._layout)
        for x in out:
            x.record_stream(torch.cuda.default_stream(self._device))  # where it will be used
        torch.cuda.current_stream(self._device).synchronize()

    def _make_on_cpu(self, images: Any, crops: Sequence[Crops], out: Sequence[torch.Tensor]) -> None:
        """Each thread calls the kernel once, and takes image after image until none is left."""
        pictures = [np.from_dlpack(image) for image in images.tensors]
        height, width = np.array([picture.shape[:2] for picture in pictures]).T
        table = pack(crops, height, width, np.array([picture.ctypes.data for picture in pictures], np.uint64))
        arguments = (
            table, np.array([x.data_ptr() for x in out]), np.array(self._sizes), np.zeros(1, np.int64),
            self._layout == torch.channels_last, pixels_cpu.KINDS[self._dtype],
        )  # fmt: skip
        make = pixels_cpu.kernel()
        for done in [self._pool.submit(make, *arguments) for _ in range(self._threads)]:
            done.result()

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


class _Decoded:
    """Images as a batch of DALI's gives them."""

    def __init__(self, images: Sequence[torch.Tensor]) -> None:
        self.tensors, self.shape = images, [tuple(image.shape) for image in images]


def _decode(jpegs: Sequence[bytes | np.ndarray], crops: Sequence[Crops], device: str) -> Any:
    """RGB images, a DALI batch on the device. RuntimeError or ValueError where one cannot be used."""
    encoded = ndd.as_batch([np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
    shapes = ndd.peek_image_shape(encoded, adjust_orientation=False)
    needed = np.max([crop.box[:, :2] + crop.box[:, 2:] for crop in crops], axis=0).round().astype(int)
    for (height, width, _), (bottom, right) in zip(np.asarray(shapes.torch()).tolist(), needed.tolist(), strict=True):
        if height * width > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, more than the {MAX_PIXELS} allowed")
        if height < bottom or width < right:
            raise ValueError(f"{width}x{height} pixels, fewer than recorded: a crop reaches {right}x{bottom}")
    return ndd.decoders.image(
        encoded, device=device, output_type=DALIImageType.RGB, adjust_orientation=False, hw_decoder_load=ENGINE
    )
