"""What is to be done to the pixels of every crop, as a table: what both implementations take (docs/views.md)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seer_pipe.data.views import Array, Crops

MEAN = (123.675, 116.28, 103.53)  # of ImageNet's training images, .485 .456 .406 of 255
STD = (58.395, 57.12, 57.375)  # .229 .224 .225 of 255


#: What is to be done for one crop of one image, as both implementations take it: 112 bytes, each number at a multiple
#: of its own size. Truths are 0 or 1; grey is as in `Crops`.
RECORD = np.dtype([
    ("box", np.float64, 4),  # top, left, height, width in pixels of the image, perhaps between them
    ("image", np.uint64),  # address of the decoded image: [height, width, 3] levels of uint8, without gaps
    ("within", np.int32, 4),  # top, left, bottom, right: the pixels of the image that the crop may be made from
    ("factors", np.float32, 4),  # brightness, contrast, saturation (1: unchanged), hue in turns (0)
    ("order", np.int32, 4),  # in which order those four are applied
    ("width", np.int32),  # of the image in pixels, so a row of it is 3 * width bytes
    ("radius", np.int32),  # of the blur in pixels: the kernel has 2 * radius + 1 taps
    ("sigma", np.float32),  # of the blur in pixels, 0: none
    ("flip", np.int32),
    ("grey", np.int32),
    ("solarise", np.int32),
])  # fmt: skip


def pack(views: Sequence[Crops], height: Array, width: Array, address: Array) -> npt.NDArray[np.void]:
    """The table of RECORD for n decoded images, [crops, n]: a row for each of `views`, in their order.

    `height`, `width` (pixels of each image as decoded) and `address` (of its first byte, where the kernel runs) are
    arrays of length n. Nothing in it depends on the other images.
    """
    table = np.zeros((len(views), len(address)), RECORD)
    table["image"], table["width"] = address, width
    for row, view in zip(table, views, strict=True):
        row["box"] = view.box
        if view.box.dtype.kind == "i":  # the box alone, as if it had been cut out first
            row["within"][:, :2] = view.box[:, :2]
            row["within"][:, 2:] = view.box[:, :2] + view.box[:, 2:]
        else:
            row["within"][:, 2], row["within"][:, 3] = height, width
        for name in ("factors", "order", "sigma", "flip", "grey", "solarise"):
            row[name] = getattr(view, name)
        row["radius"] = np.ceil(3 * view.sigma.astype(np.float64))
    return table
