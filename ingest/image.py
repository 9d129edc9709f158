"""From bytes to a stored image: a JPEG that DALI and Pillow decode, or a reason why not.

The type is determined by content; sizes are checked from the header, before anything is decoded; at most one decode.

A JPEG that is already fit (8-bit baseline or progressive, grey or YCbCr, upright, in sRGB, small enough) keeps its
compressed data. Its metadata (EXIF with its GPS position, XMP, IPTC, comments, thumbnails, whatever follows the
end of the image) is cut out losslessly; the result is decoded in full by a strict decoder (libjpeg-turbo with
warnings as errors: it notices damage that DALI and OpenCV would show as grey bands). That decode goes to a small
grey image, which reads every bit of the data, costs two thirds, and is what the perceptual hash needs.
Anything else is decoded, turned upright, converted to 8-bit sRGB on white, and encoded.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from ingest.formats import DECODED, breaks_off, exif_orientation, open_image, orientation, sniff
from ingest.jpeg import BASELINE, PROGRESSIVE, Jpeg, NotAJpeg, parse_jpeg, without_padding
from ingest.reasons import Reason, said
from seer_pipe.errors import UserError

Reencode = Literal["auto", "always", "never"]

PIXELS = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}  # of the JPEG: Pillow's mode
KEPT_SUBSAMPLINGS = {"444", "422", "420", "440", "411", "Gray"}  # those that nvJPEG decodes
LONGEST_SIDE = 65_500  # pixels; libjpeg's limit
HASH_SIDE = 32  # pixels; the hash looks at this much of an image
TEXTURE = 2.0  # grey levels of standard deviation; a flatter image has no hash, as all flat images hash alike
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is accepted of images and of media alike. UserError where a value makes no sense."""

    min_side: int = 32  # pixels, as it came
    max_aspect: float = 5.0  # longer side : shorter side
    min_bytes: int = 0
    max_bytes: int = 64 << 20
    max_pixels: int = 64_000_000  # of an image by its header, and what has more is not decoded; of a frame

    def __post_init__(self) -> None:
        self.demand(self.min_side >= 1, "min_side", "at least 1 pixel")
        self.demand(self.max_aspect >= 1, "max_aspect", "at least 1, which is a square")
        self.demand(self.min_bytes >= 0, "min_bytes", "at least 0")
        self.demand(self.max_bytes > self.min_bytes, "max_bytes", "more than min_bytes")
        self.demand(self.max_pixels >= self.min_side**2, "max_pixels", "at least min_side squared")

    def demand(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise UserError(f"{name} = {getattr(self, name)}: {what}")

    def check_bytes(self, data: bytes) -> None:
        """BadImage where an input of so many bytes is not accepted."""
        if not data:
            raise BadImage(Reason.EMPTY, "0 bytes")
        if len(data) < self.min_bytes:
            raise BadImage(Reason.TOO_FEW_BYTES, f"{len(data)} bytes")
        if len(data) > self.max_bytes:
            raise BadImage(Reason.TOO_LARGE, f"{len(data)} bytes")

    def check_size(self, width: int, height: int) -> None:
        """BadImage where an image, or a frame, of so many pixels is not accepted."""
        size = f"{width} x {height}"
        if width < 1 or height < 1:
            raise BadImage(Reason.CORRUPT, size)
        if width * height > self.max_pixels:
            raise BadImage(Reason.TOO_MANY_PIXELS, size)
        if min(width, height) < self.min_side:
            raise BadImage(Reason.TOO_SMALL, size)
        if max(width, height) > self.max_aspect * min(width, height):
            raise BadImage(Reason.BAD_ASPECT, size)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Limits):
    """What is accepted and how it is stored. UserError where a value makes no sense."""

    reencode: Reencode = "auto"  # keep the data of fit JPEGs (auto), of none (always), or take nothing else (never)
    quality: int = 90  # of JPEGs encoded here
    short_side: int | None = None  # pixels; larger images are scaled down to it, smaller ones are left
    repair: bool = False  # store what is there of a truncated JPEG, where that is at least 95 % of its rows

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand(self.reencode in get_args(Reencode), "reencode", "one of auto, always, never")
        self.demand(1 <= self.quality <= 100, "quality", "from 1 to 100")
        self.demand(self.short_side is None or self.short_side >= 1, "short_side", "at least 1 pixel")
        self.demand(
            self.reencode != "never" or not (self.short_side or self.repair),
            "reencode",
            "short_side and repair need encoding; choose auto",
        )


@dataclass(frozen=True)
class Stored:
    """An image fit to be stored."""

    jpeg: bytes
    width: int  # pixels, upright
    height: int
    format: str  # what it came as: JPEG, PNG, GIF, …
    original_width: int  # pixels, by the header, before orientation
    original_height: int
    phash: int | None  # 64-bit perceptual hash; None for a flat image
    reencoded: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.jpeg)

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is stored."""
        return hashlib.sha256(self.jpeg).digest()


class BadImage(Exception):  # noqa: N818 - it is about the image
    """This input cannot be stored; ``reason`` and ``detail`` say why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def process(data: bytes, settings: ImageSettings) -> Stored:
    """Check ``data`` and make it fit to be stored, or raise BadImage."""
    settings.check_bytes(data)
    format = sniff(data)
    if format is None:
        raise BadImage(Reason.NOT_AN_IMAGE, f"begins with {data[:24]!r}")
    if format not in DECODED:
        raise BadImage(Reason.UNSUPPORTED_FORMAT, format)
    try:
        with warnings.catch_warnings(action="ignore"):  # what Pillow warns of is checked here
            return _from_jpeg(data, settings) if format == "JPEG" else _from_other(data, format, settings)
    except BadImage:
        raise
    except MemoryError:
        raise BadImage(Reason.DECODER_MEMORY, format) from None
    except ImportError:
        raise BadImage(Reason.UNSUPPORTED_FORMAT, f"{format}: needs pip install 'seer-pipe[formats]'") from None
    except Exception as error:  # a decoder given nonsense may raise anything
        message = "no valid header" if isinstance(error, UnidentifiedImageError) else said(error)
        cut = isinstance(error, EOFError) or any(word in message.lower() for word in ("truncated", "premature"))
        reason = Reason.TRUNCATED if cut or breaks_off(data, format) else Reason.CORRUPT
        raise BadImage(reason, " ".join(f"{format}: {message}".split())[:200]) from None


def _check_size(width: int, height: int, settings: ImageSettings) -> None:
    settings.check_size(width, height)
    if max(_scaled(width, height, settings)) > LONGEST_SIDE:
        raise BadImage(Reason.TOO_LONG, f"{width} x {height}")


def _from_jpeg(data: bytes, settings: ImageSettings) -> Stored:
    try:
        jpeg = parse_jpeg(data)
    except NotAJpeg as error:
        raise BadImage(Reason.TRUNCATED if error.truncated else Reason.CORRUPT, f"JPEG: {error}") from None
    size = jpeg.width, jpeg.height
    _check_size(*size, settings)
    if jpeg.precision != 8:
        raise BadImage(Reason.UNSUPPORTED_FORMAT, f"JPEG of {jpeg.precision} bits")
    turn = exif_orientation(jpeg.exif)
    try:
        _, _, colours, subsampling = simplejpeg.decode_jpeg_header(jpeg.data)
    except ValueError as error:
        if "subsampling" not in str(error):
            raise
        return _encoded(_uncommon(jpeg, settings), jpeg.icc, turn, "JPEG", size, settings)
    kept = (
        settings.reencode != "always"
        and jpeg.frame in (BASELINE, PROGRESSIVE)
        and colours in ("YCbCr", "Gray")
        and subsampling in KEPT_SUBSAMPLINGS
        and turn not in UPRIGHT
        and (settings.short_side is None or min(size) <= settings.short_side)
        and (jpeg.icc is None or _to_srgb(jpeg.icc, "L" if colours == "Gray" else "RGB") is None)
    )
    mode, least = ("L", (HASH_SIDE, HASH_SIDE)) if kept else (PIXELS[colours], _scaled(*size, settings))
    try:
        if not jpeg.ended and jpeg.frame != BASELINE:  # a scan that is not there at all is no error to a decoder
            raise ValueError("premature end")
        if not kept or not jpeg.tidy:
            _needs_encoding(settings, "JPEG")
        try:
            image = _decoded(jpeg, mode, least)
        except ValueError as error:
            if (without := without_padding(jpeg, str(error))) is None:
                raise
            _needs_encoding(settings, "JPEG")
            jpeg = without
            image = _decoded(jpeg, mode, least)
    except ValueError as error:
        if jpeg.ended:
            raise
        if not settings.repair:
            raise BadImage(Reason.TRUNCATED, f"JPEG: {error}") from None
        return _encoded(_repaired(jpeg.data), jpeg.icc, turn, "JPEG", size, settings)
    if kept:
        return Stored(jpeg.data, *size, "JPEG", *size, phash(image), reencoded=False)
    return _encoded(image, jpeg.icc, turn, "JPEG", size, settings)


def _decoded(jpeg: Jpeg, mode: str, least: tuple[int, int]) -> Image.Image:
    """Decode strictly, scaled down in the DCT to not less than ``least`` (width, height)."""
    layout = "GRAY" if mode == "L" else mode
    pixels = simplejpeg.decode_jpeg(jpeg.data, layout, min_width=least[0], min_height=least[1])
    if mode == "CMYK":
        pixels = 255 - pixels  # JPEG's CMYK is inverted, by Adobe's example
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.data)


def _uncommon(jpeg: Jpeg, settings: ImageSettings) -> Image.Image:
    """A JPEG whose subsampling has no name, which the strict decoder does not take; Pillow overlooks damage inside."""
    _needs_encoding(settings, "JPEG of uncommon subsampling")
    if not jpeg.ended:
        raise EOFError("no end marker")
    return Image.open(BytesIO(jpeg.data), formats=["JPEG"])


def _repaired(jpeg: bytes) -> Image.Image:
    """The whole rows of a truncated JPEG; a decoder fills what is missing with one grey."""
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB", strict=False)
    varied = np.flatnonzero(np.ptp(pixels, axis=1).any(axis=1))  # rows that are not flat
    rows = int(varied[-1]) // 16 * 16 if varied.size else 0  # the last row of blocks may be half there
    if rows < 0.95 * len(pixels):
        raise BadImage(Reason.TRUNCATED, f"JPEG: {rows} of {len(pixels)} rows are there")
    return Image.fromarray(pixels[:rows])


def _from_other(data: bytes, format: str, settings: ImageSettings) -> Stored:
    image = open_image(data, format)
    size = image.size
    _check_size(*size, settings)
    _needs_encoding(settings, format)
    image.load()
    return _encoded(image, image.info.get("icc_profile"), orientation(image), format, size, settings)


def _needs_encoding(settings: ImageSettings, format: str) -> None:
    if settings.reencode == "never":
        raise BadImage(Reason.NEEDS_REENCODING, format)


def _encoded(
    image: Image.Image,
    icc: bytes | None,
    turn: int,
    format: str,
    original: tuple[int, int],
    settings: ImageSettings,
) -> Stored:
    """Convert, scale, turn and encode a decoded image. Scaling comes early, so that the rest has less to do."""
    image = _eight_bit(image)
    target = _scaled(*image.size, settings)
    if image.size != target:
        image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=2.0)
    transform = _to_srgb(icc, image.mode) if icc else None
    if transform is not None:
        image = ImageCms.applyTransform(image, transform) or image
    elif image.mode == "CMYK":
        image = image.convert("RGB")
    if turn in UPRIGHT:
        image = image.transpose(UPRIGHT[turn])
    grey = image.mode == "L"
    pixels = np.asarray(image)
    jpeg = simplejpeg.encode_jpeg(
        pixels[:, :, None] if grey else pixels,
        settings.quality,
        "GRAY" if grey else "RGB",
        "Gray" if grey else "420",  # what hardware decoders take
    )
    return Stored(jpeg, *image.size, format, *original, phash(image), reencoded=True)


def _scaled(width: int, height: int, settings: ImageSettings) -> tuple[int, int]:
    """The size after scaling down; never larger than it was."""
    short = min(width, height)
    if settings.short_side is None or short <= settings.short_side:
        return width, height
    factor = settings.short_side / short
    return max(1, round(width * factor)), max(1, round(height * factor))


def _eight_bit(image: Image.Image) -> Image.Image:
    """As L, RGB or CMYK of 8 bits, transparency laid on white."""
    if image.mode.startswith("I"):
        image = _from_sixteen_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "RGBX", "YCbCr", "HSV", "RGBA"):
        return image.convert("RGB")
    raise BadImage(Reason.UNSUPPORTED_FORMAT, f"{image.format} of mode {image.mode}")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, scaled to 8 (Pillow would saturate it)."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise BadImage(Reason.UNSUPPORTED_FORMAT, f"{image.format} of 32 bits")
    if "transparency" in image.info:
        pixels = np.where(pixels == image.info["transparency"], 0xFFFF, pixels)
    return Image.fromarray((pixels >> 8).astype(np.uint8))


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=64)  # the web uses few profiles
def _to_srgb(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile to sRGB; None where it changes nothing visible, or the profile is of no use."""
    try:
        transform = ImageCms.buildTransform(BytesIO(icc), _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    colours = Image.fromarray(probe[:, :, 0] if mode == "L" else probe)
    changed = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int)
    return transform if np.abs(changed - np.asarray(colours.convert("RGB"))).max() > 4 else None


@cache
def _dct() -> np.ndarray:
    """The 8 lowest frequencies of the DCT-II over HASH_SIDE samples, float32[8, HASH_SIDE]."""
    k, n = np.arange(8)[:, None], np.arange(HASH_SIDE)
    return np.cos(np.pi * k * (2 * n + 1) / (2 * HASH_SIDE)).astype(np.float32)


def phash(image: Image.Image) -> int | None:
    """The 64-bit DCT hash, that of ``imagehash.phash`` but for a quicker way down from large images.

    None for an image without texture.
    """
    grey = image.reduce(max(1, min(image.size) // (2 * HASH_SIDE))).convert("L")
    pixels = np.asarray(grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS), np.float32)
    if pixels.std() < TEXTURE:
        return None
    low = _dct() @ pixels @ _dct().T
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
