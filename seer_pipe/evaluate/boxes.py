"""Images with boxes, as COCO and VOC write them down.

a file .json    in COCO's format; its images lie in a folder that is named, or else beside the file
a file .txt     a list of VOC, ROOT/ImageSets/Main/NAME.txt: images in ROOT/JPEGImages, boxes in ROOT/Annotations

A difficult object of VOC is what a crowd is in COCO: it is not learnt, and finding it is neither right nor wrong.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from seer_pipe.errors import UserError


@dataclass(frozen=True)
class Photo:
    """An image and its things. Boxes are left, top, right, bottom in pixels, and kinds places in ``classes``."""

    file: Path
    size: tuple[int, int] | None  # width, height; None where it is not written down
    boxes: list[list[float]]
    kinds: list[int]
    crowd: list[bool]
    areas: list[float]

    def load(self) -> Tensor:
        """[3, height, width], from 0 to 1. UserError where it cannot be read, or is not of the annotated size."""
        try:
            with Image.open(self.file) as opened:
                image = opened.convert("RGB")
                if self.size is not None and image.size != self.size:
                    image = ImageOps.exif_transpose(opened).convert("RGB")
        except Exception as error:  # a damaged file can raise anything
            raise UserError(f"{self.file}: {error}") from None
        if self.size is not None and image.size != self.size:
            raise UserError(
                f"{self.file}: has {image.width} x {image.height} pixels, and its boxes are of {self.size[0]} x "
                f"{self.size[1]}; is it the right file?"
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def to_learn(self) -> tuple[Tensor, Tensor]:
        """Boxes [n, 4] and kinds [n] without crowds, cut at the image's border; what has no area then is left out."""
        found = [
            (box, kind)
            for box, kind, crowd in zip(map(self._inside, self.boxes), self.kinds, self.crowd, strict=True)
            if not crowd and box[2] > box[0] and box[3] > box[1]
        ]
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
        return boxes, torch.tensor([kind for _, kind in found], dtype=torch.int64)

    def _inside(self, box: list[float]) -> list[float]:
        if self.size is None:
            return [max(0.0, box[0]), max(0.0, box[1]), *box[2:]]
        return [min(max(0.0, value), self.size[i % 2]) for i, value in enumerate(box)]


@dataclass(frozen=True)
class Boxes:
    """A set of images with boxes."""

    where: str
    photos: list[Photo]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.photos)

    def with_boxes(self) -> tuple[list[Photo], Counter[str]]:
        """The images that something can be learnt from, and how many things and images are left out, by reason."""
        kept = [photo for photo in self.photos if len(photo.to_learn()[0])]
        crowds = sum(sum(photo.crowd) for photo in self.photos)
        things = sum(len(photo.boxes) for photo in self.photos)
        left = Counter(crowds=crowds, images_without_boxes=len(self.photos) - len(kept))
        left["boxes_without_area"] = things - crowds - sum(len(photo.to_learn()[0]) for photo in kept)
        if not kept:
            raise UserError(f"{self.where}: no image has a box that can be learnt")
        return kept, left

    def as_coco(self) -> dict[str, Any]:
        """COCO's tree, with ids of its own: of an image its place from 1, of a category its place among the classes."""
        things = [
            {
                "image_id": number,
                "category_id": kind,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, photo in enumerate(self.photos, 1)
            for box, kind, crowd, area in zip(photo.boxes, photo.kinds, photo.crowd, photo.areas, strict=True)
        ]
        return {
            "images": [{"id": number} for number in range(1, len(self.photos) + 1)],
            "annotations": [{"id": number, **thing} for number, thing in enumerate(things, 1)],  # 0 would be no match
            "categories": [{"id": kind, "name": name} for kind, name in enumerate(self.classes)],
        }


def open_boxes(files: Sequence[Path], images: Path | None = None, classes: list[str] | None = None) -> Boxes:
    """The sets of these files as one.

    ``classes``: of what is learnt, where these are to be tested on; others are a UserError. So is an image that is not
    there, and whatever else contradicts itself.
    """
    parts = [_voc(file) if file.suffix == ".txt" else _coco(file, images or file.parent) for file in files]
    names = sorted({name for part in parts for name in part.classes}) if classes is None else classes
    place = {name: number for number, name in enumerate(names)}
    photos = []
    for part in parts:
        strange = sorted({part.classes[kind] for photo in part.photos for kind in photo.kinds} - set(names))
        if strange:
            raise UserError(f"{part.where}: category {strange[0]!r} is not among those that are learnt")
        absent = [photo.file for photo in part.photos if not photo.file.is_file()]
        if absent:
            more = f", and {len(absent) - 1} others" if len(absent) > 1 else ""
            raise UserError(f"{part.where}: {absent[0]}: no such image{more}; --images says where they are")
        photos += [
            Photo(
                one.file, one.size, one.boxes, [place[part.classes[kind]] for kind in one.kinds], one.crowd, one.areas
            )
            for one in part.photos
        ]
    if not photos:
        raise UserError(f"{', '.join(map(str, files))}: there are no images in it")
    return Boxes(", ".join(map(str, files)), photos, names)


def _coco(file: Path, folder: Path) -> Boxes:
    try:
        tree = json.loads(file.read_bytes())
        categories = {one["id"]: number for number, one in enumerate(tree["categories"])}
        names = [str(one["name"]) for one in tree["categories"]]
        things: dict[Any, list[tuple[list[float], int, bool, float]]] = defaultdict(list)
        known = {image["id"] for image in tree["images"]}
        for thing in tree["annotations"]:
            left, top, width, height = map(float, thing["bbox"])
            if thing["category_id"] not in categories:
                raise UserError(f"{file}: a box is of category {thing['category_id']}, which is none of its categories")
            if thing["image_id"] not in known:
                raise UserError(f"{file}: a box is of image {thing['image_id']}, which is none of its images")
            box = [left, top, left + width, top + height]
            area = float(thing.get("area", width * height))
            things[thing["image_id"]].append((box, categories[thing["category_id"]], bool(thing.get("iscrowd")), area))
        photos = [
            _photo(folder / image["file_name"], _size(image.get("width"), image.get("height")), things[image["id"]])
            for image in tree["images"]
        ]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: no file of boxes in COCO's format ({error!r})") from None
    return Boxes(str(file), photos, names)


def _voc(file: Path) -> Boxes:
    try:
        root = file.parents[2]
        rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
        names = [row[0] for row in rows if len(row) == 1 or row[1] != "-1"]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise UserError(f"{file}: no list of VOC, as ROOT/ImageSets/Main/trainval.txt ({error})") from None
    kinds: dict[str, int] = {}
    photos = []
    for name in names:
        page = root / "Annotations" / f"{name}.xml"
        try:
            tree = ET.parse(page).getroot()
            things = []
            for thing in tree.iter("object"):
                left, top, right, bottom = (
                    float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                box = [left - 1, top - 1, right, bottom]  # VOC counts pixels from 1, and the last one belongs to it
                kind = kinds.setdefault(_text(thing, "name"), len(kinds))
                hard = thing.findtext("difficult", "0").strip() == "1"
                things.append((box, kind, hard, (box[2] - box[0]) * (box[3] - box[1])))
            size = _size(tree.findtext("size/width"), tree.findtext("size/height"))
            photos.append(_photo(root / "JPEGImages" / f"{name}.jpg", size, things))
        except OSError as error:
            raise UserError(f"{page}: {error.strerror}; {file} names it") from None
        except (ET.ParseError, ValueError) as error:
            raise UserError(f"{page}: no boxes in VOC's format ({error})") from None
    return Boxes(str(file), photos, list(kinds))


def _photo(file: Path, size: tuple[int, int] | None, things: list[tuple[list[float], int, bool, float]]) -> Photo:
    columns = zip(*things, strict=True) if things else ([], [], [], [])
    boxes, kinds, crowd, areas = map(list, columns)
    return Photo(file, size, boxes, kinds, crowd, areas)


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    return (int(width), int(height)) if width and height else None


def _text(thing: ET.Element, path: str) -> str:
    found = thing.findtext(path)
    if found is None:
        raise ValueError(f"an object without {path}")
    return found.strip()
