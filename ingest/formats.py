"""The formats of images: which one some bytes are of, and opening those that are no JPEG.

What is opened is not decoded yet, so that its size can be looked at before; of JPEG XL alone the size is known only
after decoding (in a process whose memory is limited).
"""

from __future__ import annotations

import re
from io import BytesIO

from PIL import Image

from ingest.png import parse_png

ORIENTATION_TAG = 0x0112
Image.MAX_IMAGE_PIXELS = None  # how many pixels are too many, the settings say

#: How each format begins, by the name that Pillow has for it where Pillow decodes it.
SIGNATURES: list[tuple[str, bytes]] = [
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WEBP", rb"RIFF.{4}WEBP"),
    ("BMP", rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"),  # and the size of a header that there is
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("JPEG2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("PPM", rb"P[1-6](?:\s|#[^\n]*\n)+\d"),
    ("JXL", rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a"),
    ("AVIF", rb".{4}ftyp.{,52}avi[fs]"),
    ("HEIF", rb".{4}ftyp.{,52}(?:hei|hev|mif1|msf1)"),
    ("ICO", rb"\0\0\x01\0[^\0]\0"),  # and how many pictures there are
    ("CUR", rb"\0\0\x02\0[^\0]\0"),
    ("PSD", rb"8BPS\0[\x01\x02]"),
    ("DDS", rb"DDS \x7c\0\0\0"),
    ("QOI", rb"qoif"),
    ("BPG", rb"BPG\xfb"),
    ("MNG", rb"\x8aMNG\r\n\x1a\n"),
    ("JNG", rb"\x8bJNG\r\n\x1a\n"),
    ("XCF", rb"gimp xcf"),
    ("PostScript", rb"%!PS"),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    (
        "SVG",  # as its root element, not somewhere in a page (and never tried again in another way: *+)
        rb"(?i:(?:\xef\xbb\xbf)?(?:\s|<\?xml.*?\?>|<!--.*?-->|<!doctype\s+svg[^>[]*(?:\[.*?\]\s*)?>)*+<svg[\s>])",
    ),
]
#: How the commonest containers of video and sound begin.
MEDIA_SIGNATURES = [
    ("MOV", rb".{4}(?:ftyp|moov|mdat|free|skip|wide)"),
    ("MATROSKA", rb"\x1aE\xdf\xa3"),
    ("RIFF", rb"RIFF.{4}(?:AVI |WAVE)"),
    ("OGG", rb"OggS"),
    ("FLAC", rb"fLaC"),
    ("MP3", rb"ID3"),
    ("FLV", rb"FLV\x01"),
    ("ASF", rb"0&\xb2u"),
    ("MPEG", rb"\x00\x00\x01\xba"),
]
START = re.compile(b"|".join(b"(%s)" % pattern for _, pattern in SIGNATURES), re.DOTALL)  # a group a format
LONGEST_START = 4096  # bytes looked at, of comments before an SVG's root, say
BY_PILLOW = {
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF", "ICO", "CUR", "PSD", "DDS", "QOI",
}  # fmt: skip
UNKNOWN = 0xFFFFFFFF  # bytes of a RIFF file that was written as a stream
DECODED = BY_PILLOW | {"HEIF", "JXL"}  # by the packages of the extra ``formats``


def sniff(data: bytes) -> str | None:
    """The image format that ``data`` begins as, or None."""
    found = START.match(data[:LONGEST_START])
    return None if found is None or found.lastindex is None else SIGNATURES[found.lastindex - 1][0]


def sniff_media(data: bytes) -> str:
    """The container that ``data`` begins as; empty where it is of no common one."""
    return next((name for name, start in MEDIA_SIGNATURES if re.match(start, data, re.DOTALL)), "")


def open_image(data: bytes, format: str) -> Image.Image:
    """Open what is no JPEG. ImportError where the package that decodes it is not installed.

    Its metadata never makes a picture unsound: what is broken in it is dropped.
    """
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif format == "JXL":
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = 1  # a worker has one core
    if format != "PNG":
        image = Image.open(BytesIO(data), formats=[format])
        if format == "JXL" and not image.jpeg:  # type: ignore[attr-defined]
            image.info.pop("exif", None)  # the codestream has the orientation, and it is applied
        return image
    png = parse_png(data)
    image = Image.open(BytesIO(png.data), formats=[format])
    image.info["exif"], image.info["icc_profile"] = png.exif, png.icc
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, from 1 to 8."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block is common and says nothing about the image
        return 1


def exif_orientation(exif: bytes | None) -> int:
    """As ``orientation``, of an EXIF block."""
    image = Image.new("1", (1, 1))
    image.info["exif"] = exif
    return 1 if exif is None else orientation(image)


def breaks_off(data: bytes, format: str) -> bool:
    """Whether a file is shorter than its own container says."""
    if format in ("WEBP", "RIFF"):
        size = int.from_bytes(data[4:8], "little")
        return 8 + size > len(data) and size != UNKNOWN
    if format in ("AVIF", "HEIF", "MOV"):
        at = size = 0
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if size == 1:
                size = int.from_bytes(data[at + 8 : at + 16], "big")
            if size < 8:  # 0: to the end of the file
                return False
            at += size
        return at > len(data)
    if format == "MATROSKA":
        return _matroska_end(data) > len(data)
    return False


def _matroska_end(data: bytes) -> int:
    """Where the last element of the top level ends; 0 where it does not say so, as of a live stream."""
    at = 0
    while at < len(data):
        at += 9 - data[at].bit_length()  # its identifier
        if at >= len(data) or (length := 9 - data[at].bit_length()) > 8:
            return 0
        size = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
        if size == (1 << 7 * length) - 1:
            return 0
        at += length + size
    return at
