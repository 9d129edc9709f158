"""Stats, verify, dedup and show, on real sets in a folder and on S3."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ingest.cli import app
from ingest.image import ImageSettings, process
from ingest.reasons import Reason
from ingest.sources import IMAGE_FIELDS
from ingest.tools.dedup import MOST, Dedup, block_masks, dedup
from ingest.tools.show import show
from ingest.tools.stats import percentiles, stats
from ingest.tools.verify import verify
from seer_pipe.errors import UserError
from seer_pipe.shards import (
    EXCLUDED,
    FINGERPRINT_KEY,
    SIDECAR_SCHEMA,
    ShardSet,
    ShardWriter,
    sidecar_path,
    to_parquet,
    write_manifest,
)
from seer_pipe.store import open_store


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def make_set(root: str | Path, shards: list[list[bytes]], rejected: list[tuple[str, Reason]] = ()) -> ShardSet:  # type: ignore[assignment]
    store = open_store(root)
    paths = [f"{number:05d}.tar" for number in range(len(shards))]
    for number, images in enumerate(shards):
        writer = ShardWriter(store, paths[number], IMAGE_FIELDS)
        for place, data in enumerate(images):
            image = process(data, ImageSettings())
            writer.add(
                f"{number:05d}-{place:06d}",
                image.jpeg,
                source=f"{number}/{place}",
                width=image.width,
                height=image.height,
                phash=image.phash,
                **{field.name: getattr(image, field.name) for field in IMAGE_FIELDS},
            )
        for source, reason in rejected if number == 0 else []:
            writer.reject(source, reason)
        writer.commit()
    write_manifest(store, paths)
    return ShardSet.open(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [encoded(picture(seed)) for seed in range(8)]
    make_set(tmp_path / "set", [images[:3], [], images[3:]])
    return tmp_path / "set"


def problems(root: str | Path, images: bool = False) -> list[tuple[str, str]]:
    return [(found.key, found.what) for check in verify(root, images) for found in check.problems]


def test_stats_count_what_is_there(tmp_path: Path) -> None:
    jpegs = [encoded(picture(seed, (40 + seed, 200))) for seed in range(10)]
    flat = encoded(Image.new("RGB", (50, 200)), "PNG")
    rejected = [("a", Reason.EMPTY), ("b", Reason.CORRUPT), ("c", Reason.CORRUPT)]
    shards = make_set(tmp_path, [jpegs, [flat]], rejected)
    found = stats(tmp_path)
    assert (found.url, found.shards, found.samples, found.bytes) == (str(tmp_path), 2, 11, int(shards.bytes.sum()))
    assert found.image_bytes == sum(len(process(data, ImageSettings()).jpeg) for data in [*jpegs, flat])
    assert found.megapixels == pytest.approx(sum(40 + seed for seed in range(11)) * 200 / 1e6)
    assert found.short_side == {0: 40, 5: 40, 50: 45, 95: 50, 100: 50}
    assert set(found.long_side.values()) == {200}
    assert found.formats == {"JPEG": 10, "PNG": 1}
    assert (found.reencoded, found.unhashed) == (1, 1)
    assert found.rejected == {"corrupt": 2, "empty": 1}


@given(st.lists(st.integers(0, 99), min_size=1))
def test_percentiles_are_numpy_s(values: list[int]) -> None:
    found = percentiles(np.bincount(values, minlength=100))
    assert found == {p: np.percentile(values, p, method="inverted_cdf") for p in found}


@pytest.mark.parametrize("images", [False, True])
def test_a_sound_set_has_no_problems(root: Path, images: bool) -> None:
    checks = list(verify(root, images))
    assert [check.samples for check in checks] == [3, 0, 5]
    assert [check.bytes for check in checks] == ShardSet.open(root).bytes.tolist()
    assert problems(root, images) == []


@pytest.mark.slow
def test_a_set_on_s3_is_verified_and_counted(s3: Any) -> None:
    s3.create_bucket(Bucket="tools")
    url = "s3://tools/set"
    make_set(url, [[encoded(picture(0)), encoded(picture(1))], [encoded(picture(0))]])
    assert problems(url, images=True) == []
    assert (stats(url).samples, stats(url).excluded) == (3, 0)
    assert dedup(url) == Dedup(f"{url}/{EXCLUDED}", 3, 1, 0)
    assert open_store(url).size(EXCLUDED)
    assert (stats(url).samples, stats(url).excluded) == (3, 1)


def flip(data: bytearray, offset: int) -> None:
    data[offset] ^= 1


@pytest.mark.parametrize(
    ("damage", "key", "what"),
    [
        (lambda data, row: flip(data, row["offset"] + 50), "00002-000001", "checksums"),
        (lambda data, row: flip(data, row["offset"] - 512 + 200), "00002-000001", "no member"),  # in the header
        (lambda data, row: data.__delitem__(slice(row["offset"] + 100, None)), "00002-000002", "no member"),
        (lambda data, row: flip(data, len(data) - 1), "", "not that of the manifest"),  # beyond the end mark
        (lambda data, row: data.extend(bytes(512)), "", "not that of the manifest"),
        (lambda data, row: data.__setitem__(slice(None), b""), "00002-000000", "no member"),
    ],
    ids=["payload", "header", "cut", "padding", "longer", "empty"],
)
def test_damage_to_a_tar_is_found(root: Path, damage: Callable, key: str, what: str) -> None:
    row = ShardSet.open(root).sidecar(2).to_pylist()[1]
    data = bytearray((root / "00002.tar").read_bytes())
    damage(data, row)
    (root / "00002.tar").write_bytes(data)
    found = problems(root)
    assert any(key == where and what in text for where, text in found), found
    assert ("", "the tar's size or hash is not that of the manifest") in found
    assert not any(where.startswith("00000") for where, _ in found)


def test_a_sidecar_that_disagrees_is_found(root: Path) -> None:
    path = root / sidecar_path("00000.tar")
    good = pq.read_table(path)

    def found(table: pa.Table, images: bool = False) -> list[tuple[str, str]]:
        path.write_bytes(to_parquet(table))
        return problems(root, images)

    def changed(column: str, values: list) -> pa.Table:
        place = good.column_names.index(column)
        return good.set_column(place, good.schema.field(column), pa.array(values, good.schema.field(column).type))

    keys = good["key"].to_pylist()
    assert ("", "the sidecar lists 2 samples, the manifest 3") in found(good.slice(0, 2))
    assert ("", f"{keys[2]}.jpg is not in the sidecar") in found(good.slice(0, 2))
    assert ("", "a key occurs more than once") in found(changed("key", [keys[0], keys[0], keys[2]]))
    assert ("other", f"the member is called {keys[0]}.jpg") in found(changed("key", ["other", *keys[1:]]))
    assert any("bytes instead of" in what for _, what in found(changed("length", [1, 2, 3])))
    assert found(changed("width", [1, 96, 96])) == []
    assert found(changed("width", [1, 96, 96]), images=True) == [(keys[0], "is 96 x 64 pixels, not 1 x 64")]
    path.write_bytes(b"not parquet")
    assert "the sidecar is not readable" in problems(root)[0][1]
    path.unlink()
    assert "the sidecar is not readable" in problems(root)[0][1]


def test_an_image_that_does_not_decode_is_found_when_asked(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    data = encoded(picture(0))
    writer = ShardWriter(store, "00000.tar")
    writer.add("grey-band", data[:600] + bytes(200) + data[800:], source="", width=96, height=64)
    writer.commit()
    write_manifest(store, ["00000.tar"])
    assert problems(tmp_path) == []
    [(key, what)] = problems(tmp_path, images=True)
    assert key == "grey-band"
    assert what.startswith("does not decode: corrupt")


def test_a_tar_of_other_making_may_hold_more(tmp_path: Path) -> None:
    """As ``seer-ingest index`` leaves it: sidecars elsewhere, captions in the tar."""
    data = encoded(picture(0))
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for name, body in (("a/b.txt", b"a caption"), ("a/b.jpeg", data)):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))

    result = CliRunner().invoke(app, ["index", str(tmp_path), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert ShardSet.open(tmp_path).sidecar(0)["offset"].to_pylist() == [3 * 512]
    assert problems(tmp_path, images=True) == []


def expected_exclusions(
    digests: list[str], hashes: list[int | None], distance: int
) -> dict[int, tuple[int, int | None]]:
    """By the definition, all against all."""
    found: dict[int, tuple[int, int | None]] = {}
    for later in range(len(hashes)):
        same = [i for i in range(later) if digests[i] == digests[later]]
        near = [
            i
            for i in range(later)
            if None not in (hashes[i], hashes[later]) and (hashes[i] ^ hashes[later]).bit_count() <= distance  # type: ignore[operator]
        ]
        if same:
            found[later] = same[0], None
        elif near:
            found[later] = near[0], 0
    return found


@pytest.mark.parametrize("distance", [0, 1, 4, MOST])
def test_dedup_finds_what_all_against_all_finds(tmp_path: Path, distance: int) -> None:
    random = np.random.default_rng(distance)
    hashes: list[int | None] = []
    digests = []
    for number in range(900):
        flips = sum(1 << int(bit) for bit in random.choice(64, random.integers(0, 11), replace=False))
        old = hashes[random.integers(0, number)] if number and random.random() < 0.6 else None
        hashes.append(int(random.integers(0, 1 << 63)) * 2 if old is None else old ^ flips)
        digests.append(digests[-1] if number and random.random() < 0.1 else random.bytes(32).hex())
    for place in range(0, 900, 50):
        hashes[place] = None
    store, paths = open_store(tmp_path), []
    for number, start in enumerate(range(0, 900, 300)):
        columns: dict[str, list] = {field.name: [0] * 300 for field in SIDECAR_SCHEMA}
        columns |= {"key": [f"k{i}" for i in range(start, start + 300)], "source": [""] * 300}
        columns |= {"sha256": digests[start : start + 300], "phash": hashes[start : start + 300]}
        table = pa.table(columns, SIDECAR_SCHEMA)
        paths.append(f"{number:05d}.tar")
        about = {b"seer_pipe.shard_bytes": b"1", b"seer_pipe.shard_sha256": b"", b"seer_pipe.format_version": b"1"}
        store.put(sidecar_path(paths[-1]), to_parquet(table.replace_schema_metadata(about)))
    write_manifest(store, paths)
    result = dedup(tmp_path, distance)
    table = pq.read_table(tmp_path / EXCLUDED)
    rows = table.to_pylist()
    expected = expected_exclusions(digests, hashes, distance)
    assert [row["sample"] for row in rows] == sorted(expected)
    assert all(row["key"] == f"k{row['sample']}" for row in rows)
    for row in rows:
        of, kind = expected[row["sample"]]
        assert (row["distance"] is None) == (kind is None)
        if kind is None:
            assert row["of"] == of
        else:  # one of the earlier ones, at the distance told
            assert row["of"] < row["sample"]
            apart = hashes[row["of"]] ^ hashes[row["sample"]]  # type: ignore[operator]
            assert apart.bit_count() == row["distance"] <= distance
    assert (result.same, result.near) == tuple(
        sum((kind is None) == same for _, kind in expected.values()) for same in (True, False)
    )
    assert table.schema.metadata[FINGERPRINT_KEY].decode() == ShardSet.open(tmp_path).fingerprint


@given(st.integers(1, MOST), st.data())
def test_near_hashes_meet_in_exactly_one_join(distance: int, data: st.DataObject) -> None:
    bits = data.draw(st.sets(st.integers(0, 63), min_size=1, max_size=distance))
    apart = sum(1 << bit for bit in bits)
    masks = list(block_masks(distance))
    meetings = [1 for joined, others in masks if not apart & joined and all(apart & mask for mask in others)]
    assert len(meetings) == 1
    assert all(joined | sum(others) < 1 << 64 for joined, others in masks)


def test_dedup_of_real_pictures(tmp_path: Path) -> None:
    one, two = picture(1, (400, 300)), picture(2, (400, 300))
    copies = [
        encoded(one),
        encoded(two),
        encoded(one.resize((200, 150)), quality=60),
        encoded(one, "PNG"),
        encoded(two),
    ]
    flat = [encoded(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black")]
    make_set(tmp_path, [copies[:2], copies[2:] + flat])
    assert dedup(tmp_path) == Dedup(f"{tmp_path}/{EXCLUDED}", 7, 1, 2)
    rows = pq.read_table(tmp_path / EXCLUDED).to_pylist()
    assert [(row["key"], row["of"]) for row in rows] == [("00001-000000", 0), ("00001-000001", 0), ("00001-000002", 1)]
    assert problems(tmp_path) == []


def test_the_contact_sheet_shows_the_images_and_the_reasons(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    images = [encoded(Image.new("RGB", (320, 160), colour)) for colour in colours]
    reasons = [(f"https://example.org/{'long/' * 40}{n}", Reason.CORRUPT) for n in range(5)] + [
        ("ü 漢字", Reason.EMPTY)
    ]
    make_set(tmp_path / "set", [images[:2], images[2:]], reasons)
    show(tmp_path / "set", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    for colour in colours:
        wanted = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
        area = (np.abs(sheet - wanted).max(axis=2) < 10).sum()
        assert area == pytest.approx(160 * 80, rel=0.05), colour
    panel = sheet[:, -640:-24]
    assert (panel.min(axis=2) < 100).sum() > 500, "no text"
    assert (sheet[:, -10:] == 255).all(), "text runs out of the sheet"
    again = tmp_path / "again.png"
    show(tmp_path / "set", again)
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()
    show(tmp_path / "set", again, samples=1)
    with pytest.raises(UserError, match="cannot be written"):
        show(tmp_path / "set", tmp_path / "no such folder" / "sheet.png")


def test_the_contact_sheet_shows_the_text_beside_images(tmp_path: Path) -> None:
    """Below each image, on one line; a set without any has no room for it."""
    captions = ["a dog\nin the park " * 20, None, "ü 漢字"]
    for name, extra in (("plain", []), ("captions", [pa.field("caption", pa.string())])):
        store = open_store(tmp_path / name)
        writer = ShardWriter(store, "00000.tar", extra)
        for number, caption in enumerate(captions * 8):
            image = encoded(Image.new("RGB", (64, 64), "red"))
            more = {"caption": caption} if extra else {}
            writer.add(f"{number}", image, source="a", width=64, height=64, **more)
        writer.commit()
        write_manifest(store, ["00000.tar"])
        show(tmp_path / name, tmp_path / f"{name}.png")
    plain, sheet = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("plain", "captions"))
    assert sheet.shape[0] == plain.shape[0] + 3 * 20
    below = sheet[24 + 40 + 160 : 24 + 40 + 160 + 26, 24 : 24 + 166 * 3]
    ink = [(below[:, left : left + 166] < 200).sum() for left in (0, 166, 332)]
    assert ink[0] > ink[2] > ink[1] == 0
    assert (below[:, 160:166] == 255).all(), "text runs into the next image"
    assert ShardSet.open(tmp_path / "captions").captions(0) == captions * 8
    assert ShardSet.open(tmp_path / "plain").captions(0) == []


def test_a_set_of_nothing_is_no_error(tmp_path: Path) -> None:
    make_set(tmp_path, [[]], [("a", Reason.EMPTY)])
    assert stats(tmp_path).short_side == {}
    assert problems(tmp_path, images=True) == []
    assert dedup(tmp_path).same == 0
    show(tmp_path, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 640


def test_what_is_no_set_is_named(tmp_path: Path) -> None:
    for tool in (stats, dedup, lambda path: list(verify(path)), lambda path: show(path, tmp_path / "x.png")):
        with pytest.raises(UserError, match="no shard set here"):
            tool(tmp_path)
    for wrong in (lambda: dedup(tmp_path, distance=9), lambda: show(tmp_path, "x.png", samples=0)):
        with pytest.raises(UserError, match=r"distance = 9|samples = 0"):
            wrong()
