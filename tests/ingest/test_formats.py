"""What else there is on the web than plain JPEGs: odd JPEGs, other formats, broken metadata, and what is no image."""

import io
import struct
import sys
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.formats import breaks_off, open_image, sniff
from ingest.image import UPRIGHT, BadImage, process
from ingest.png import SIGNATURE, parse_png
from ingest.reasons import Reason
from tests.ingest.jpegs import sampled
from tests.ingest.test_image import ANY, SWAPPED, differ, file, jpeg, photo, reason

EXACT = replace(ANY, quality=100)
EOI = b"\xff\xd9"


def chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


def png_with(*chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    data = file(photo(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize(
    "factors",
    [((2, 2), (1, 1), (1, 1)), ((4, 2), (1, 1), (1, 1)), ((1, 3), (1, 1), (1, 1)), ((2, 2), (2, 1), (1, 1))],
    ids=["4:2:0", "4:1:0", "1x3", "two kinds"],
)
def test_a_jpeg_of_any_subsampling_is_decoded(factors: tuple[tuple[int, int], ...]) -> None:
    data = sampled(photo(192, 128), factors)
    stored = process(data, EXACT)
    assert stored.reencoded == (factors[0] != (2, 2) or factors[1] != (1, 1))
    assert differ(stored.jpeg, data) < 2
    if stored.reencoded:
        assert reason(data, replace(ANY, reencode="never")) is Reason.NEEDS_REENCODING
        assert reason(data[:-40]) is Reason.TRUNCATED
        scaled = process(data, replace(ANY, short_side=64))
        assert (scaled.width, scaled.height, scaled.original_width) == (96, 64, 192)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\xaa"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_padding_before_the_end_is_no_damage(fill: bytes, options: dict) -> None:
    data = jpeg(photo(), **options)
    padded = data[:-2] + 500 * fill + EOI
    assert differ(process(padded, ANY).jpeg, data) == 0
    assert not process(padded, ANY).reencoded
    assert differ(process(padded, replace(ANY, reencode="always", quality=100)).jpeg, data) < 2


def test_bytes_that_are_left_over_are_damage() -> None:
    """The decoder came to the last block too early, so it lost its way before."""
    data = jpeg(photo())
    assert reason(data[:-2] + bytes(range(100)) + EOI) is Reason.CORRUPT


def test_a_scan_header_that_says_nonsense_where_nothing_is_asked_is_put_right() -> None:
    """In a baseline JPEG a scan has all of every block; some cameras write other values, which decoders ignore."""
    data = jpeg(photo())
    scan = data.index(b"\xff\xda")
    end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    odd = data[: end - 3] + b"\0\0\0" + data[end:]
    assert process(odd, ANY).jpeg == data
    assert reason(odd, replace(ANY, reencode="never")) is Reason.NEEDS_REENCODING


@pytest.mark.parametrize(
    "data",
    [
        png_with(chunk(b"eXIf", b"http://ns.adobe.com/xap/1.0/")),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 2_000_000))),
        png_with(chunk(b"tEXt", b"k\0v", damage=1)),
        png_with(chunk(b"zTXt", b"k\0\0not deflated")),
        png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(40 << 20)))),
        png_with(chunk(b"iCCP", b"name\0\0not deflated")),
        png_with(chunk(b"iCCP", b"")),
        png_with(chunk(b"tRNS", b"\0", damage=1)),
        png_with(chunk(b"acTL", b"?"), chunk(b"fcTL", b"?")),
        file(photo(), "PNG") + b"after the end",
        file(photo(), "WEBP", exif=b"garbage, no TIFF", lossless=True),
        file(photo(), "WEBP", icc_profile=b"no profile", lossless=True),
        file(photo(), "TIFF", icc_profile=b"no profile"),
        file(photo(), "AVIF", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03", quality=95),
    ],
)
def test_metadata_never_makes_a_picture_unsound(data: bytes) -> None:
    assert differ(process(data, EXACT).jpeg, photo()) < 3


def test_what_metadata_says_of_the_picture_is_heeded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert process(file(photo(120, 80), "PNG", exif=exif), ANY).height == 120
    red, blue = Image.new("RGB", (64, 64), (250, 20, 20)), Image.new("RGB", (64, 64), (20, 20, 250))
    assert differ(process(file(red, "PNG", icc_profile=SWAPPED), ANY).jpeg, blue) < 12


def write(image: Image.Image, format: str, **options: object) -> bytes:
    """With the plugins, which opening something registers."""
    with suppress(Exception):
        open_image(b"", "HEIF")
    with suppress(Exception):
        open_image(b"", "JXL")
    return file(image, format, **options)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("HEIF", {"quality": 95}),
        ("JXL", {"quality": 98}),
        ("JXL", {"quality": 98, "use_container": True}),
        ("AVIF", {"quality": 95}),
        ("ICO", {"sizes": [(120, 80)]}),
        ("DDS", {}),
        ("QOI", {}),
        *[("TIFF", {"compression": name}) for name in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate")],
        *[("TIFF", {"compression": name}) for name in ("tiff_deflate", "zstd", "lzma", "jpeg", "group3", "group4")],
    ],
)
def test_what_a_library_decodes_is_transcoded(format: str, options: dict) -> None:
    image = photo()
    if "group" in str(options.get("compression")):
        image = image.convert("1")
    stored = process(write(image, format, **options), EXACT)
    assert (stored.format, stored.reencoded) == (format, True)
    assert differ(stored.jpeg, image) < 5
    assert reason(write(image, format, **options), replace(ANY, reencode="never")) is Reason.NEEDS_REENCODING


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_containers_say_how_to_turn(tmp_path: Path, turn: int) -> None:
    upright = photo().transpose(UPRIGHT[turn])
    exif = Image.Exif()
    exif[0x0112] = turn
    for format in ("HEIF", "AVIF"):
        assert differ(process(write(photo(), format, quality=95, exif=exif.tobytes()), EXACT).jpeg, upright) < 5
    # JPEG XL has the orientation in the picture itself, unless it wraps a JPEG
    assert differ(process(write(photo(), "JXL", quality=98, exif=exif.tobytes()), EXACT).jpeg, photo()) < 5
    (tmp_path / "a.jpg").write_bytes(jpeg(photo(), exif=exif))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert differ(process(write(opened, "JXL", lossless_jpeg=True), EXACT).jpeg, upright) < 5


def test_without_the_package_the_reason_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(photo(), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage) as caught:
        process(data, ANY)
    assert (caught.value.reason, "seer-pipe[formats]" in caught.value.detail) == (Reason.UNSUPPORTED_FORMAT, True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<!doctype html><body><svg width=1></svg>", None),
        (b"  <?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg [<!ENTITY a 'b'>]>\n<svg>", "SVG"),
        (b"\xef\xbb\xbf<SVG xmlns='x'>", "SVG"),
        (b"<!---->" * 600, None),  # no way to read it but one
        (b"BMW is a car maker. " * 9, None),
        (b"P3 is a parking lot", None),
        (b"P6\n# a comment\n3 2\n255\n", "PPM"),
        (bytes([0, 0, 2]) + bytes(60), None),  # TGA
        (file(photo(), "BMP"), "BMP"),
    ],
)
def test_a_format_is_more_than_a_few_letters(data: bytes, expected: str | None) -> None:
    assert sniff(data) == expected


def test_reasons_are_true() -> None:
    with pytest.raises(BadImage, match="begins with b'<html>'"):
        process(b"<html>", ANY)
    wide = file(Image.new("L", (65_535, 40)), "PNG")
    assert reason(wide) is Reason.TOO_LONG
    assert process(wide, replace(ANY, short_side=20)).height == 20
    for format in ("WEBP", "HEIF", "AVIF"):
        whole = write(photo(), format)
        assert not breaks_off(whole, format)
        assert reason(whole[:-100]) is Reason.TRUNCATED


def test_as_many_pixels_as_allowed_are_decoded() -> None:
    data = file(Image.new("1", (15_000, 13_500)), "PNG", compress_level=1)
    assert reason(data) is Reason.TOO_MANY_PIXELS
    stored = process(data, replace(ANY, max_pixels=300_000_000, short_side=100))
    assert (stored.height, stored.original_width) == (100, 15_000)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.binary(min_size=4, max_size=4), st.binary(max_size=50))), st.binary(max_size=50))
def test_a_png_s_chunks_are_walked_whatever_they_are(chunks: list[tuple[bytes, bytes]], rest: bytes) -> None:
    data = SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks) + rest
    parsed = parse_png(data)
    assert parse_png(parsed.data).data == parsed.data
    assert len(parsed.data) <= len(data)


DAMAGE = (  # what our decoder says where it lost its way; PIL and DALI show what they then find, both alike
    "extraneous bytes", "premature end", "no marker at byte", "Unknown Adobe color transform",
)  # fmt: skip


@pytest.mark.slow
def test_what_both_decoders_show_whole_and_alike_is_refused_for_damage_alone(real_data: Path) -> None:
    """Over all real files. (That each of the listed is damaged, by eye: none shows its picture.)"""
    import tarfile

    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode():  # type: ignore[no-untyped-def]
        return fn.decoders.image(fn.external_source(name="images"), adjust_orientation=False)

    def shown_alike(data: bytes) -> bool:
        try:
            with Image.open(io.BytesIO(data)) as opened:
                theirs = np.asarray(opened.convert("RGB")).astype(int)
            pipeline = decode()
            pipeline.build()
            pipeline.feed_input("images", [np.frombuffer(data, np.uint8)])
            ours = np.asarray(pipeline.run()[0].as_array()[0]).astype(int)
        except Exception:
            return False
        return theirs.shape == ours.shape and bool(np.abs(theirs - ours).mean() < 3)

    listed, inputs = [], 0
    for path in sorted(real_data.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                data, inputs = tar.extractfile(member).read(), inputs + 1  # type: ignore[union-attr]
                try:
                    process(data, ANY)
                except BadImage as error:
                    known = error.reason is Reason.TOO_MANY_PIXELS or any(sign in error.detail for sign in DAMAGE)
                    if not known and shown_alike(data):
                        listed.append(f"{path.name}/{member.name}: {error.reason}: {error.detail}")
    assert inputs > 10_000
    assert listed == []
