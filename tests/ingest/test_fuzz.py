"""Sound files of every kind that is parsed, damaged at random: what is wrong with one is said, and goes no further.

Each run tries other damage. An example that fails is printed, and tried first the next time.
"""

import gzip
import io
import zipfile
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.image import BadImage, process
from ingest.jpeg import NotAJpeg, parse_jpeg
from ingest.media import MediaSettings
from ingest.media import process as cut
from ingest.png import parse_png
from ingest.reasons import UnfetchedError
from ingest.sources.archive import kind, members
from ingest.sources.inflate import Address
from ingest.sources.readers import DAMAGE
from ingest.sources.warc import Place, WarcReader, captures
from tests.ingest.films import CODECS, film, tone
from tests.ingest.fuzz import EXAMPLES
from tests.ingest.jpegs import sampled
from tests.ingest.test_accounting import tar
from tests.ingest.test_formats import write
from tests.ingest.test_image import ANY, SWAPPED, jpeg, photo
from tests.ingest.test_warc import ARC, ODD, RECORDS

MOST = 1 << 20
fuzz = settings(
    max_examples=2 * EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def damaged(draw: st.DrawFn, seeds: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of a sound file, and it with bytes changed, inserted and cut out."""
    name, seed = draw(st.sampled_from(sorted(seeds.items())))
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)) | st.integers(0, min(600, len(data))))
        data[at : at + draw(st.sampled_from([0, 1, 2, 40]))] = draw(st.binary(max_size=8))
    return name, bytes(data)


def image_seeds() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = photo(48, 40)
    found = {format: write(small, format) for format in ("GIF", "BMP", "PPM", "JPEG2000", "ICO", "DDS", "QOI")}
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JXL"):
        found[format] = write(small, format, exif=exif.tobytes(), icc_profile=SWAPPED)
    found["progressive"] = jpeg(small, progressive=True, exif=exif)
    found["sampled"] = sampled(small, ((4, 2), (1, 1), (1, 1)))
    return found


IMAGES = image_seeds()


def media_seeds() -> dict[str, bytes]:
    times = [k / 25 for k in range(8)]
    found = {name: film(times, format=name, size=(32, 32), sound=tone(0.3, 48_000)) for name in CODECS}
    for format, codec in (("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus")):
        found[format] = film(sound=tone(0.3, 48_000), format=format, codecs=("", codec))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
@settings(fuzz, max_examples=EXAMPLES)
@given(damaged(media_seeds()), st.sampled_from(["video", "audio"]))
def test_damaged_media(seed: tuple[str, bytes], media: Any) -> None:
    with suppress(BadImage):
        clips = cut(seed[1], MediaSettings(media=media, min_seconds=0, max_seconds=20)).clips
        assert all(clip.members and clip.duration > 0 for clip in clips)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@fuzz
@given(damaged(IMAGES))
def test_images(given_: tuple[str, bytes]) -> None:
    _, data = given_
    with suppress(NotAJpeg):
        parse_jpeg(data)
    parse_png(data)
    with suppress(BadImage):
        assert process(data, replace(ANY, max_pixels=1_000_000)).jpeg


def packed() -> dict[str, bytes]:
    inputs = [(f"some/{number}.jpg", bytes([number]) * 300 * number) for number in range(5)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in inputs:
            file.writestr(name, data)
    both = tar(inputs) + tar(inputs)
    return {"a.tar": both, "a.tar.gz": gzip.compress(both), "a.zip": buffer.getvalue()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@fuzz
@given(damaged(packed()))
def test_archives(tmp_path_factory: pytest.TempPathFactory, given_: tuple[str, bytes]) -> None:
    name, data = given_
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    found = list(members(str(path)))
    for member in found:
        assert member.size >= 0
        member.name.encode()
    with suppress(*DAMAGE):
        reader = kind(name).reader(kind(name).open(str(path)))
        for member in found:
            if not member.problem and member.size <= MOST:
                with suppress(*DAMAGE):
                    assert len(reader.read(member.place, member.size)) <= member.size
        reader.close()


def web_archives() -> dict[str, bytes]:
    records = [*RECORDS, *ODD[:12]]
    return {
        "a.warc": b"".join(records),
        "each.warc.gz": b"".join(map(gzip.compress, records)),
        "whole.warc.gz": gzip.compress(b"".join(records)),
        "a.warc.zst": pa.compress(b"".join(records), "zstd", asbytes=True),
        "a.arc": b"".join(ARC),
        "a.arc.gz": b"".join(map(gzip.compress, ARC)),
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
@fuzz
@given(damaged(web_archives()))
def test_web_archives(tmp_path_factory: pytest.TempPathFactory, given_: tuple[str, bytes]) -> None:
    name, data = given_
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    with suppress(*DAMAGE):
        reader = WarcReader(str(path))
        for capture in captures(str(path), name):
            assert capture.url.encode() or capture.detail != ""
            if not capture.problem:
                with suppress(UnfetchedError, *DAMAGE):
                    assert len(reader.read(Place(Address(capture.place, capture.skip), capture.url), MOST)) <= MOST
        reader.close()
