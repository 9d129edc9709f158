"""From bytes to a stored image: every format, every kind of damage, and real files of both."""

import io
import re
import struct
import tarfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def
from PIL import Image, ImageCms, ImageOps

from ingest.formats import SIGNATURES, sniff
from ingest.image import TEXTURE, BadImage, ImageSettings, phash, process
from ingest.jpeg import NotAJpeg, parse_jpeg
from ingest.reasons import Reason
from seer_pipe.errors import UserError

ANY = ImageSettings(min_side=1, max_aspect=1e9)
GPS = 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# sRGB with red and blue exchanged: what is red by the numbers is blue to the eye
SWAPPED = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def photo(width: int = 120, height: int = 80, seed: int = 0) -> Image.Image:
    """Smooth colours with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) * 0.9 + random.integers(0, 25, (height, width, 1))).astype(np.uint8))


def file(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: object) -> bytes:
    return file(image, "JPEG", **{"quality": 90, **options})


def pixels(data: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def differ(a: bytes | Image.Image, b: bytes | Image.Image) -> float:
    """Mean difference of two images, in grey levels."""
    first, second = (
        pixels(x) if isinstance(x, bytes) else np.asarray(x.convert("RGB")).astype(np.int16) for x in (a, b)
    )
    assert first.shape == second.shape
    return float(np.abs(first - second).mean())


def reason(data: bytes, settings: ImageSettings = ANY) -> Reason:
    with pytest.raises(BadImage) as caught:
        process(data, settings)
    return caught.value.reason


@pipeline_def(batch_size=64, num_threads=2, device_id=None, prefetch_queue_depth=1)
def decode():  # type: ignore[no-untyped-def]
    return fn.decoders.image(fn.external_source(name="jpegs"), adjust_orientation=False)


@pytest.mark.parametrize("name", ["nasty/nasty.tar", "wild/web-photos.tar"])
@pytest.mark.parametrize("change", [{}, {"short_side": 64, "reencode": "always"}], ids=["as it comes", "scaled"])
def test_every_real_file_is_stored_and_decodable_or_has_a_reason(real_data: Path, name: str, change: dict) -> None:
    stored, rejected, inputs = [], [], 0
    with tarfile.open(real_data / name) as tar:
        for member in tar:
            if member.isfile():
                inputs += 1
                try:
                    stored.append(process(tar.extractfile(member).read(), replace(ANY, **change)))  # type: ignore[union-attr]
                except BadImage as error:
                    rejected.append(error)
    assert len(stored) + len(rejected) == inputs
    assert all(error.reason in Reason for error in rejected)
    assert not any("object at 0x" in error.detail for error in rejected), "not the same in every run"
    assert len(stored) > 300
    for image in stored:
        with Image.open(io.BytesIO(image.jpeg)) as opened:
            opened.load()
            assert (opened.format, opened.size) == ("JPEG", (image.width, image.height))
            assert not {"exif", "icc_profile", "comment", "xmp"} & set(opened.info)
    pipeline = decode()
    pipeline.build()
    while stored:
        batch, stored = stored[:64], stored[64:]
        pipeline.feed_input("jpegs", [np.frombuffer(image.jpeg, np.uint8) for image in batch])
        shapes = [tuple(shape) for shape in pipeline.run()[0].shape()]
        assert shapes == [(image.height, image.width, 3) for image in batch]


def test_real_photos_of_every_orientation_come_out_as_one(real_data: Path) -> None:
    with tarfile.open(real_data / "nasty/nasty.tar") as tar:
        for kind in ("Landscape", "Portrait"):
            images = [
                process(tar.extractfile(f"exif-orientation/{kind}_{n}.jpg").read(), ImageSettings())  # type: ignore[union-attr]
                for n in range(9)
            ]
            assert len({(image.width, image.height) for image in images}) == 1
            assert max((images[0].phash ^ image.phash).bit_count() for image in images) <= 6  # type: ignore[operator]


def test_a_fit_jpeg_keeps_its_data_and_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker's name"
    exif.get_ifd(GPS)[1] = "N"
    for image, options in [
        (photo(), {}),
        (photo(), {"progressive": True}),
        (photo(), {"subsampling": 0}),
        (photo().convert("L"), {}),
    ]:
        data = jpeg(image, exif=exif, xmp=b"<x:xmpmeta/>", comment=b"a comment", icc_profile=SRGB, **options)
        clean = jpeg(image, **options)
        stored = process(data + b"after the end", ANY)
        assert (stored.jpeg, stored.reencoded) == (clean, False)
        assert (stored.format, stored.original_width, stored.width, stored.height) == ("JPEG", 120, 120, 80)
        assert differ(stored.jpeg, data) == 0


def test_what_is_stored_is_stored_the_same_again() -> None:
    for data in (jpeg(photo()), file(photo(), "PNG"), jpeg(photo().convert("CMYK"))):
        once = process(data, ANY)
        assert process(once.jpeg, ANY).jpeg == once.jpeg


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo()
    data = file(image, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    stored = process(data, ANY)
    assert (stored.width, stored.height) == upright.size
    assert stored.reencoded == (format != "JPEG" or orientation != 1)
    assert differ(stored.jpeg, upright) < 4


def test_formats_and_modes_keep_their_looks() -> None:
    image = photo()
    grey = image.convert("L")
    for data, expected in [
        (file(image, "PNG"), image),
        (file(image, "BMP"), image),
        (file(image, "PPM"), image),
        (file(image, "TIFF", compression="tiff_lzw"), image),
        (file(image, "WEBP", lossless=True), image),
        (file(image, "AVIF", quality=95), image),
        (file(image, "JPEG2000"), image),
        (file(image.quantize(64), "PNG"), image.quantize(64)),
        (file(image.quantize(64), "GIF"), image.quantize(64)),
        (file(grey, "PNG"), grey),
        (file(grey.convert("1"), "PNG"), grey.convert("1")),
        (jpeg(image.convert("CMYK"), quality=95), image.convert("CMYK").convert("RGB")),
    ]:
        stored = process(data, replace(ANY, quality=100))
        assert stored.reencoded
        assert stored.format == Image.open(io.BytesIO(data)).format
        assert differ(stored.jpeg, expected) < 6, stored.format
    assert Image.open(io.BytesIO(process(file(grey, "PNG"), ANY).jpeg)).mode == "L"


def test_cmyk_is_inverted_as_pillow_has_it() -> None:
    data = jpeg(photo().convert("CMYK"), quality=95)
    for variant in (data, data.replace(b"Adobe", b"Other")):
        expected = Image.open(io.BytesIO(variant)).convert("RGB")
        assert differ(process(variant, replace(ANY, quality=100)).jpeg, expected) < 6


def test_sixteen_bits_are_scaled_and_not_saturated() -> None:
    grey = photo().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for format in ("PNG", "TIFF", "PPM"):
        assert differ(process(file(deep, format), ANY).jpeg, grey) < 3
    floats = Image.fromarray(np.asarray(grey).astype(np.float32))
    assert reason(file(floats, "TIFF")) is Reason.UNSUPPORTED_FORMAT


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 64, 32))
    expected = Image.new("RGB", (64, 64), "white")
    expected.paste((0, 0, 255), (0, 0, 64, 32))
    indexed = Image.new("P", (64, 64), 1)
    indexed.putpalette([0, 0, 255, 255, 0, 0])
    indexed.paste(0, (0, 0, 64, 32))
    for data in (
        file(image, "PNG"),
        file(image, "WEBP", lossless=True),
        file(indexed, "PNG", transparency=1),
        file(indexed, "GIF", transparency=1),
        file(image.convert("RGBa").convert("RGBA"), "TIFF"),
    ):
        assert differ(process(data, ANY).jpeg, expected) < 2
    grey = Image.new("LA", (64, 64), (0, 0))
    assert differ(process(file(grey, "PNG"), ANY).jpeg, Image.new("RGB", (64, 64), "white")) < 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    data = file(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    assert differ(process(data, ANY).jpeg, frames[0]) < 3


def test_colours_are_brought_to_srgb() -> None:
    red, blue = Image.new("RGB", (64, 64), (250, 20, 20)), Image.new("RGB", (64, 64), (20, 20, 250))
    for data in (jpeg(red, icc_profile=SWAPPED), file(red, "PNG", icc_profile=SWAPPED)):
        assert differ(process(data, ANY).jpeg, blue) < 12
    same = jpeg(red, icc_profile=SRGB)
    assert not process(same, ANY).reencoded
    broken = jpeg(red, icc_profile=SRGB[:100])
    assert differ(process(broken, ANY).jpeg, red) < 3
    grey = jpeg(photo().convert("L"), icc_profile=SRGB)  # a profile of another kind than the image is of no use
    assert not process(grey, ANY).reencoded


def test_a_profile_in_many_parts_is_put_together() -> None:
    large = SRGB + bytes(100_000)
    data = jpeg(photo(), icc_profile=large)
    assert parse_jpeg(data).icc == large


def test_scaling_goes_down_to_the_short_side_and_never_up() -> None:
    small = replace(ANY, short_side=64)
    for image in (photo(1000, 600), photo(300, 500)):
        for data in (jpeg(image, quality=95), file(image, "PNG")):
            stored = process(data, replace(small, quality=95))
            assert min(stored.width, stored.height) == 64
            assert stored.width / stored.height == pytest.approx(image.width / image.height, rel=0.01)
            assert (stored.original_width, stored.original_height) == image.size
            expected = image.resize((stored.width, stored.height), Image.Resampling.LANCZOS)
            assert differ(stored.jpeg, expected) < 4
    for image in (photo(64, 90), photo(20, 30)):
        assert not process(jpeg(image), small).reencoded
        stored = process(file(image, "PNG"), small)
        assert (stored.width, stored.height) == image.size


def test_encode_always_and_never() -> None:
    data = jpeg(photo())
    assert process(data, replace(ANY, reencode="always")).reencoded
    never = replace(ANY, reencode="never")
    assert not process(data, never).reencoded
    assert reason(file(photo(), "PNG"), never) is Reason.NEEDS_REENCODING
    assert reason(jpeg(photo().convert("CMYK")), never) is Reason.NEEDS_REENCODING


def png_header(width: int, height: int) -> bytes:
    """A PNG that is a header and almost nothing else."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "change", "expected"),
    [
        (b"", {}, Reason.EMPTY),
        (b"<!DOCTYPE html><html>", {}, Reason.NOT_AN_IMAGE),
        (b"\xff\xd8", {}, Reason.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, Reason.UNSUPPORTED_FORMAT),
        (b"\0\0\0\x18ftypheic\0\0\0\0", {}, Reason.TRUNCATED),
        (b"BPG\xfb", {}, Reason.UNSUPPORTED_FORMAT),
        (png_header(100_000, 100_000), {}, Reason.TOO_MANY_PIXELS),
        (png_header(8_001, 8_000), {}, Reason.TOO_MANY_PIXELS),
        (png_header(66_000, 100), {}, Reason.TOO_LONG),
        (png_header(8_000, 8_000), {}, Reason.TRUNCATED),
        (png_header(0, 10), {}, Reason.CORRUPT),
        (jpeg(photo(100, 31)), {"min_side": 32}, Reason.TOO_SMALL),
        (jpeg(photo(200, 32)), {"max_aspect": 6.0}, Reason.BAD_ASPECT),
        (jpeg(photo(32, 200)), {"max_aspect": 6.0}, Reason.BAD_ASPECT),
        (jpeg(photo()), {"min_bytes": 100_000}, Reason.TOO_FEW_BYTES),
        (jpeg(photo()), {"max_bytes": 100}, Reason.TOO_LARGE),
        (jpeg(photo())[:-500], {}, Reason.TRUNCATED),
        (jpeg(photo())[:300], {}, Reason.TRUNCATED),
        (jpeg(photo(), progressive=True)[:-2], {}, Reason.TRUNCATED),
        (file(photo(), "PNG")[:-500], {}, Reason.TRUNCATED),
        (file(photo(), "GIF")[:-500], {}, Reason.TRUNCATED),
        (file(photo(), "WEBP")[:-500], {}, Reason.TRUNCATED),
    ],
)
def test_what_is_refused_and_why(data: bytes, change: dict, expected: Reason) -> None:
    assert reason(data, replace(ANY, **change)) is expected


def test_a_bomb_is_refused_by_its_header_in_a_jpeg_too() -> None:
    data = bytearray(jpeg(photo()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    assert reason(bytes(data)) is Reason.TOO_MANY_PIXELS


def test_very_many_scans_are_refused() -> None:
    data = jpeg(photo(), progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(NotAJpeg, match="scans"):
        parse_jpeg(data[:-2] + scan * 100 + data[-2:])


def test_a_complete_jpeg_without_its_end_gets_it_back() -> None:
    data = jpeg(photo())
    assert process(data[:-2], ANY).jpeg == data
    assert reason(data[:-2], replace(ANY, reencode="never")) is Reason.NEEDS_REENCODING


@pytest.mark.parametrize("marker", [b"\xff\xe1", b"\xff\xfe"])
def test_metadata_longer_than_it_says_costs_nothing(marker: bytes) -> None:
    """Programs that edit XMP in place leave such files; a strict decoder would refuse them as they come."""
    data = jpeg(photo())
    came = data[:2] + marker + b"\0\x10" + b"<?xpacket end='w'?>" + data[2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(came)
    assert process(came, ANY).jpeg == data
    assert reason(came, replace(ANY, reencode="never")) is Reason.NEEDS_REENCODING  # who indexes has it as it came


def test_repairing_keeps_the_rows_that_are_there() -> None:
    image = photo(400, 2000)
    data = jpeg(image)
    cut, half = data[: int(len(data) * 0.985)], data[: len(data) // 2]
    repair = replace(ANY, repair=True, quality=95)
    assert reason(cut) is Reason.TRUNCATED
    assert reason(half, repair) is Reason.TRUNCATED
    stored = process(cut, repair)
    assert (stored.reencoded, stored.width, stored.original_height) == (True, 400, 2000)
    assert 1900 <= stored.height < 2000
    assert differ(stored.jpeg, image.crop((0, 0, 400, stored.height))) < 4


@settings(max_examples=200)
@given(
    image=st.sampled_from([jpeg(photo(200, 150)), jpeg(photo(200, 150), progressive=True)]),
    place=st.floats(0, 1),
    patch=st.binary(min_size=1, max_size=40) | st.just(bytes(500)),
)
def test_damage_that_a_full_decode_finds_is_found(image: bytes, place: float, patch: bytes) -> None:
    """What is kept was checked by a scaled decode to grey: it must not be laxer than the real one."""
    at = int(place * (len(image) - len(patch)))
    damaged = image[:at] + patch + image[at + len(patch) :]
    try:
        stored = process(damaged, replace(ANY, reencode="never"))
    except BadImage:
        return
    simplejpeg.decode_jpeg(stored.jpeg, strict=True)


@settings(max_examples=300)
@given(data=st.data(), rest=st.binary(max_size=200))
def test_no_bytes_bring_anything_but_an_image_or_a_reason(data: st.DataObject, rest: bytes) -> None:
    name, pattern = data.draw(st.sampled_from(SIGNATURES))
    start = data.draw(st.from_regex(re.compile(rb"\A(?:" + pattern + b")", re.DOTALL)))
    assert sniff(start + rest) in (name, "AVIF")  # HEIF and AVIF share a container, whose brands may name both
    with suppress(BadImage):
        assert process(start + rest, ANY).jpeg


def test_the_hash_is_imagehash_s() -> None:
    for size in (32, 50, 63):  # from twice 32 on, the way down is another
        image = photo(size, size, seed=size)
        assert phash(image) == int(str(imagehash.phash(image)), 16)
    for seed in range(6):
        image = photo(500, 300, seed)
        assert (phash(image) ^ int(str(imagehash.phash(image)), 16)).bit_count() <= 4  # type: ignore[operator]


def test_the_hash_tells_copies_from_others() -> None:
    for seed in range(6):
        image = photo(500, 300, seed)
        original = process(jpeg(image), ANY).phash
        copies = [
            process(jpeg(image.resize((250, 150)), quality=60), ANY),
            process(file(image, "PNG"), replace(ANY, short_side=100)),
            process(file(image, "WEBP", quality=70), ANY),
        ]
        other = process(jpeg(photo(500, 300, seed + 100)), ANY).phash
        assert original is not None
        assert other is not None
        assert max((original ^ copy.phash).bit_count() for copy in copies) <= 10  # type: ignore[operator]
        assert (original ^ other).bit_count() >= 16


def test_a_flat_image_has_no_hash() -> None:
    assert process(jpeg(Image.new("RGB", (64, 64), "white")), ANY).phash is None
    ramp = np.repeat(np.linspace(100, 100 + 8 * TEXTURE, 64)[None], 64, 0).astype(np.uint8)
    assert phash(Image.fromarray(ramp)) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"reencode": "sometimes"},
        {"quality": 0},
        {"quality": 101},
        {"short_side": 0},
        {"min_side": 0},
        {"max_aspect": 0.5},
        {"min_bytes": -1},
        {"max_bytes": 0},
        {"max_pixels": 10},
        {"reencode": "never", "short_side": 256},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ImageSettings(**wrong)
