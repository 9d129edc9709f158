"""Existing sets: samples by key, their columns, damage; and sets of ours, again and again the same."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from ingest.sources.webdataset import split
from seer_pipe.shards import ShardSet
from tests.ingest.helpers import files, rejected, seer_ingest, stored
from tests.ingest.web import jpeg


def write_tar(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def about(**values: object) -> bytes:
    return json.dumps(values).encode()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg(number))).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000.jpg", ("000", "jpg")),
        ("a.b/c.v1.JPG", ("a.b/c", "v1.jpg")),
        ("./x/0", ("./x/0", "")),
        ("../up.json", ("../up", "json")),
        (".hidden", ("", "hidden")),
    ],
)
def test_keys_are_those_of_webdataset(name: str, expected: tuple[str, str]) -> None:
    assert split(name) == expected


def test_samples_with_their_columns(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar",
        ("a/000.jpg", jpeg(0)), ("a/000.json", about(URL="http://x/0", similarity=0.5)), ("a/000.txt", b"zero"),
        ("a/001.txt", b"one"), ("a/001.png", png(1)), ("a/001.json", b"{broken"),
        ("a/002.json", about(url="http://x/2")), ("a/002.cls", b"2"),
        ("readme", b"no sample"),
        ("b/000.jpg", b"<html>"),
    )  # fmt: skip
    (tmp_path / "1.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    run = seer_ingest(
        "webdataset", tmp_path / "*.tar", "--out", tmp_path / "out", "--keep-columns", "url,txt,similarity"
    )
    assert run.returncode == 0, run.stderr
    assert [(r["source"], r["url"], r["txt"], r["similarity"], r["format"]) for r in stored(tmp_path / "out")] == [
        ("0.tar/a/000", "http://x/0", "zero", "0.5", "JPEG"),
        ("0.tar/a/001", None, "one", None, "PNG"),
    ]
    assert rejected(tmp_path / "out") == {
        "0.tar/a/002": "not_an_image",
        "0.tar/readme": "not_an_image",
        "0.tar/b/000": "not_an_image",
        "1.tar/a/000": "unreadable",
        "1.tar/…": "unreadable",
    }


@pytest.mark.parametrize("verb", ["webdataset", "index"])
def test_every_image_of_a_sample_is_an_input(tmp_path: Path, verb: str) -> None:
    """Names that agree before their first dot make one sample, whose images are all taken, under keys of their own."""
    write_tar(
        tmp_path / "a.tar",
        ("img_2.5.jpg", jpeg(1)), ("img_2.7.jpg", jpeg(2)), ("img_2.json", about(url="http://x")),
        ("s.left.jpg", jpeg(3)), ("s.right.jpg", jpeg(4)),
        ("d.jpg", jpeg(5)), ("d.jpg", jpeg(6)), ("d.jpg", b"<html>"),
        ("e.jpg", jpeg(7)), ("._e.jpg", b"of macOS"), ("d.jpg", jpeg(8)),
    )  # fmt: skip
    run = seer_ingest(verb, tmp_path / "a.tar", "--out", tmp_path / "out", "--keep-columns", "url", "--json")
    assert run.returncode == 0, run.stderr
    assert [json.loads(run.stdout)[name] for name in ("inputs", "stored")] == [9, 8]
    table = ShardSet.open(tmp_path / "out").sidecar(0).to_pylist()
    keys = ["img_2", "img_2.7", "s", "s.right", "d", "d~2", "e", "d~4"]
    assert [row["source"] for row in table] == [f"a.tar/{key}" for key in keys]
    assert [row["url"] for row in table] == ["http://x"] * 2 + [None] * 6
    assert rejected(tmp_path / "out") == {"a.tar/d~3": "not_an_image"}
    verified = seer_ingest("verify", tmp_path / "out", "--images")
    assert verified.returncode == 0, verified.stdout


def test_a_set_of_ours_made_anew_keeps_sources_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg(number))
    for arguments in (
        ("folder", tmp_path / "in", "--out", tmp_path / "first", "--unit", 4),
        ("webdataset", tmp_path / "first", "--out", tmp_path / "second", "--unit", 7, "--keep-columns", "phash"),
        ("webdataset", tmp_path / "second", "--out", tmp_path / "third", "--unit", 4),
        ("webdataset", tmp_path / "second", "--out", tmp_path / "small", "--short-side", 32),
    ):
        run = seer_ingest(*arguments)
        assert run.returncode == 0, run.stderr
    first, second, third, small = (stored(tmp_path / name) for name in ("first", "second", "third", "small"))
    for again in (second, third, small):
        assert [row["source"] for row in again] == [row["source"] for row in first]
    assert [row["sha256"] for row in second] == [row["sha256"] for row in first]
    assert [row["input_phash"] for row in second] == [row["phash"] for row in first]
    assert {row["width"] for row in small} == {32}
    tars = [{k: v for k, v in files(tmp_path / n).items() if k.endswith(".tar")} for n in ("first", "third")]
    assert tars[0] == tars[1]


def test_what_a_set_of_ours_excludes_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg(number))
    assert seer_ingest("folder", tmp_path / "in", "--out", tmp_path / "first", "--unit", 4).returncode == 0
    again = ("webdataset", tmp_path / "first", "--out", tmp_path / "whole", "--unit", 4)
    assert seer_ingest(*again).returncode == 0
    out = [0, 3, 4, 5, 6, 7, 9]  # the ends of shards, and one of them whole
    keys = [row["key"] for row in stored(tmp_path / "first")]
    (tmp_path / "keys.txt").write_text("".join(f"{keys[number]}\n" for number in out))
    assert seer_ingest("exclude", tmp_path / "first", "--keys", tmp_path / "keys.txt").returncode == 0
    run = seer_ingest("webdataset", tmp_path / "first", "--out", tmp_path / "second", "--unit", 4, "--json")
    assert run.returncode == 0, run.stderr
    assert (json.loads(run.stdout)["inputs"], json.loads(run.stdout)["stored"]) == (3, 3)
    assert [row["source"] for row in stored(tmp_path / "second")] == ["1.jpg", "2.jpg", "8.jpg"]
    assert json.loads(seer_ingest("stats", tmp_path / "second", "--json").stdout)["excluded"] == 0
    begun = seer_ingest(*again)  # with another list it is another run
    assert (begun.returncode, begun.stdout) == (2, "")
    assert "was begun with another" in begun.stderr
    rest = [key for number, key in enumerate(keys) if number not in out]
    (tmp_path / "keys.txt").write_text("\n".join(rest))
    assert seer_ingest("exclude", tmp_path / "first", "--keys", tmp_path / "keys.txt").returncode == 0
    nothing = seer_ingest("webdataset", tmp_path / "first", "--out", tmp_path / "third")
    assert (nothing.returncode, nothing.stderr) == (2, "error: the input is empty: there is nothing to ingest\n")


@pytest.mark.parametrize("verb", ["webdataset", "index"])
def test_kept_columns_may_have_any_name(tmp_path: Path, verb: str) -> None:
    """Those of the list of inputs among them: what a JSON calls a file is never read."""
    names = ["file", "place", "problem", "size", "detail", "duplicate", "key"]
    said = dict.fromkeys(names, "EMPTY") | {"file": str(tmp_path / "secret.jpg")}
    (tmp_path / "secret.jpg").write_bytes(jpeg(9))
    path = tmp_path / "a.tar"
    write_tar(path, ("k.jpg", jpeg(1)), ("k.json", about(**said)))
    out = tmp_path / "out"
    run = seer_ingest(verb, path, "--out", out, "--workers", 1, "--keep-columns", ",".join(names))
    assert run.returncode == 0, run.stderr
    shards = ShardSet.open(out)
    (row,) = shards.sidecar(0).to_pylist()
    assert shards.read(0, row) == jpeg(1)
    assert {name: row["input_key" if name == "key" else name] for name in names} == said
    twice = seer_ingest(verb, path, "--out", tmp_path / "twice", "--keep-columns", "file,file")
    assert (twice.returncode, twice.stdout) == (2, "")
    assert "file would be in the sidecar more than once" in twice.stderr
