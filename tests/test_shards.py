"""The shard format, held against Python's own tar reader and webdataset."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def
from wds2idx import IndexCreator

from seer_pipe.errors import UserError
from seer_pipe.shards import (
    FORMAT_VERSION,
    MANIFEST,
    VERSION_KEY,
    ShardSet,
    ShardWriter,
    is_run,
    members_of,
    rejected_path,
    sidecar_path,
    to_parquet,
    ustar_header,
    write_manifest,
)
from seer_pipe.store import open_store


def make_set(root: Path, shards: list[list[bytes]]) -> ShardSet:
    store = open_store(root)
    paths = []
    for number, images in enumerate(shards):
        writer = ShardWriter(store, f"{number:05d}.tar")
        for row, image in enumerate(images):
            writer.add(f"{number:05d}{row:05d}", image, source=f"{number}/{row}", width=row + 1, height=2)
        writer.commit()
        paths.append(f"{number:05d}.tar")
    write_manifest(store, paths)
    return ShardSet.open(root)


@settings(max_examples=20)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=2000), max_size=5), min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, shards: list[list[bytes]]) -> None:
    root = tmp_path_factory.mktemp("set")
    made = make_set(root, shards)
    assert made.counts.tolist() == [len(images) for images in shards]
    assert len(made) == sum(map(len, shards))
    for number, images in enumerate(shards):
        rows = made.sidecar(number).to_pylist()
        assert [made.read(number, row) for row in rows] == images
        assert [row["sha256"] for row in rows] == [hashlib.sha256(image).hexdigest() for image in images]
        start, stop = made.starts[number : number + 2]
        assert made.shards_of(np.arange(start, stop)).tolist() == [number] * len(images)
        index = made.index(number)
        data = (root / f"{number:05d}.tar").read_bytes()
        assert [data[o : o + n] for o, n in zip(index.offset, index.length, strict=True)] == images
        with tarfile.open(root / f"{number:05d}.tar") as tar:
            assert [tar.extractfile(m).read() for m in tar.getmembers()] == images  # type: ignore[union-attr]


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    images = [b"first", b"second" * 500]
    make_set(tmp_path, [images])
    samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == images
    assert [sample["__key__"] for sample in samples] == ["0000000000", "0000000001"]


@pytest.mark.parametrize("indexed", [False, True])
def test_dali_reads_our_shards(tmp_path: Path, indexed: bool) -> None:
    """DALI's own reader, with index files of its own tool or with what it finds by reading the headers."""
    made = make_set(tmp_path, [[b"first", b"second" * 500], [bytes(512)]])
    tars = [made.url(shard) for shard in range(2)]
    for tar in tars if indexed else []:
        with IndexCreator(tar, f"{tar}.idx", verbose=False) as index:
            index.create_index()

    @pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def pipeline() -> object:
        indices = {"index_paths": [f"{tar}.idx" for tar in tars]} if indexed else {}
        return fn.readers.webdataset(paths=tars, ext=["jpg"], name="shards", **indices)

    built = pipeline()
    built.build()
    (read,) = built.run()
    rows = [(shard, row) for shard in range(2) for row in made.sidecar(shard).to_pylist()]
    assert [np.asarray(read[n]).tobytes() for n in range(3)] == [made.read(shard, row) for shard, row in rows]
    assert built.epoch_size("shards") == len(made) == 3


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    first = make_set(tmp_path / "a", [[b"x", b"y" * 513]])
    second = make_set(tmp_path / "b", [[b"x", b"y" * 513]])
    assert (tmp_path / "a/00000.tar").read_bytes() == (tmp_path / "b/00000.tar").read_bytes()
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != make_set(tmp_path / "c", [[b"x"], [b"y" * 513]]).fingerprint


def test_a_shard_is_done_only_when_committed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = ShardWriter(store, "00000.tar", extra=[pa.field("caption", pa.string())])
    writer.add("0", b"image", source="s", width=1, height=1, caption="a word")
    writer.reject("t", "too_small", "3x3")
    assert store.size(sidecar_path("00000.tar")) is None
    writer.commit()
    assert store.size(sidecar_path("00000.tar")) is not None
    assert pq.read_table(tmp_path / "00000.parquet")["caption"].to_pylist() == ["a word"]
    assert pq.read_table(tmp_path / rejected_path("00000.tar")).to_pylist() == [
        {"source": "t", "reason": "too_small", "detail": "3x3"}
    ]
    left = ShardWriter(store, "00001.tar")
    left.add("1", b"image", source="s", width=1, height=1)
    left.discard()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.parquet", "00000.tar", "rejected"]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    made = make_set(tmp_path, [[b"image one", b"image two"]])
    row = made.sidecar(0).to_pylist()[1]
    with (tmp_path / "00000.tar").open("r+b") as file:
        file.seek(row["offset"])
        file.write(b"X")
    assert made.read(0, made.sidecar(0).to_pylist()[0]) == b"image one"
    with pytest.raises(OSError, match="checksum"):
        made.read(0, row)


def test_what_is_no_shard_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard set here"):
        ShardSet.open(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not readable"):
        ShardSet.open(tmp_path)
    newer = pa.table({"path": ["0.tar"]}).replace_schema_metadata({VERSION_KEY: str(FORMAT_VERSION + 1)})
    (tmp_path / MANIFEST).write_bytes(to_parquet(newer))
    with pytest.raises(UserError, match="upgrade"):
        ShardSet.open(tmp_path)
    (tmp_path / MANIFEST).write_bytes(to_parquet(pa.table({"x": np.arange(3)})))
    with pytest.raises(UserError, match="not a seer_pipe manifest"):
        ShardSet.open(tmp_path)


def test_a_sample_of_several_members_is_one_run_of_the_tar(tmp_path: Path) -> None:
    store, members = open_store(tmp_path), {"mp4": b"moving", "flac": b"x" * 600, "json": b"{}"}
    writer = ShardWriter(store, "00000.tar")
    writer.add("first", b"image", source="", width=1, height=1)
    writer.add_members("a", members, source="clip", width=4, height=3)
    writer.add_members("b", {"jpg": b"still", "flac": b""}, source="pair", width=4, height=3)
    writer.commit()
    write_manifest(store, ["00000.tar"])
    made = ShardSet.open(tmp_path)
    image, clip, pair = (made.read(0, row) for row in made.sidecar(0).to_pylist())
    assert [is_run(sample) for sample in (image, clip, pair)] == [False, True, True]
    assert members_of(clip) == members
    assert members_of(pair) == {"jpg": b"still", "flac": b""}
    with pytest.raises(ValueError, match="cannot be told apart"):
        members_of(b"\xff" * 1024)
    found = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False, empty_check=False)
    assert [set(sample) - {"__local_path__"} for sample in found] == [
        {"__key__", "__url__", *names} for names in (["jpg"], members, ["jpg", "flac"])
    ]


@pytest.mark.parametrize("key", ["a.b", "é", "x" * 91])
def test_keys_that_readers_would_misread_are_refused(tmp_path: Path, key: str) -> None:
    writer = ShardWriter(open_store(tmp_path), "0.tar")
    with pytest.raises(ValueError, match="key"):
        writer.add(key, b"", source="", width=1, height=1)
    writer.discard()


@given(st.text(st.characters(codec="ascii", exclude_characters="\0/"), max_size=94), st.integers(0, (8 << 30) - 1))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert ustar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
