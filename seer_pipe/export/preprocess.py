"""From an image file to what a trunk takes, in the words of each library that prepares images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How images are shown to a trunk when it is evaluated: the shorter side resized by bilinear interpolation with
    antialiasing, the middle cut out, RGB scaled to [0, 1], less ``mean``, over ``std``."""

    size: int = 224  # pixels a side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

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
        """The transformation in torchvision's words, as Python that ends with ``images`` of one file."""
        return f"""from PIL import Image, ImageOps
from torchvision import transforms

transform = transforms.Compose([
    transforms.Resize({self.resize}, transforms.InterpolationMode.BILINEAR),  # the shorter side
    transforms.CenterCrop({self.size}),
    transforms.ToTensor(),  # RGB in [0, 1]
    transforms.Normalize({list(self.mean)}, {list(self.std)}),
])
image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
images = transform(image)[None]  # [1, 3, {self.size}, {self.size}]"""

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
