"""From an image file to what a trunk takes, in the words of each library that prepares images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How images are shown to a trunk when it is evaluated: the shorter side resized by bilinear interpolation with
    antialiasing, the middle cut out, RGB scaled to [0, 1], less ``mean``, over ``std``. Of a clip all ``frames`` alike,
    from its middle."""

    size: int = 224  # pixels a side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frames: tuple[int, float] | None = None  # of a clip: how many, and how many a second

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the trunk takes: channels, of a clip frames, rows, columns."""
        return (3, self.size, self.size) if self.frames is None else (3, self.frames[0], self.size, self.size)

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the cut: ImageNet's 256 for 224, in proportion."""
        return round(self.size * 256 / 224)

    @property
    def crop(self) -> float:
        """The share of the resized image that is kept: size / crop, rounded down as timm does, is ``resize``."""
        share = self.size / self.resize
        return share if math.floor(self.size / share) == self.resize else math.nextafter(share, 0)

    def code(self) -> str:
        """The transformation in torchvision's words, as Python that ends with ``images``, or clips, of one file."""
        transform = f"""transform = transforms.Compose([
    transforms.Resize({self.resize}, transforms.InterpolationMode.BILINEAR),  # the shorter side
    transforms.CenterCrop({self.size}),
    transforms.ToTensor(),  # RGB in [0, 1]
    transforms.Normalize({list(self.mean)}, {list(self.std)}),
])"""
        shape = [1, *self.shape]
        if self.frames is None:
            return f"""from PIL import Image, ImageOps
from torchvision import transforms

{transform}
image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
images = transform(image)[None]  # {shape}"""
        count, fps = self.frames
        return f"""import av
import torch
from torchvision import transforms

{transform}
with av.open("clip.mp4") as clip:
    length = float(clip.streams.video[0].duration * clip.streams.video[0].time_base)
    decoded = [(frame.time, frame.to_image()) for frame in clip.decode(video=0)]
first = decoded[0][0] + max(0, length - {count - 1} / {fps:g}) / 2  # so that all lie in the middle
moments = [first + number / {fps:g} for number in range({count})]
frames = [[image for time, image in decoded if time < moment + 1e-6][-1] for moment in moments]  # on show then
images = torch.stack([transform(image) for image in frames], dim=1)[None]  # {shape}"""

    def timm(self) -> dict[str, Any]:
        """Of timm's ``pretrained_cfg``, what its ``create_transform`` goes by."""
        return {
            "input_size": [3, self.size, self.size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": self.crop,
            "crop_mode": "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def transformers(self) -> dict[str, Any]:
        """Transformers' ``preprocessor_config.json``; its processor for ConvNeXt cuts nothing from 384 pixels on."""
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.resize},
            "resample": 2,  # PIL's number of bilinear
            "do_center_crop": True,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
