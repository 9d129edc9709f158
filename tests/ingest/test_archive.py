"""Archives: every member is stored or has its reason, nothing is extracted, damage costs what is behind it."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sources.archive import ArchiveSource, kind, members
from seer_pipe.errors import UserError
from tests.ingest.helpers import files, rejected, seer_ingest, stored
from tests.ingest.web import jpeg

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
    st.sampled_from(["../up.jpg", "/etc/passwd", "a/../../b", ".", "..", "same.jpg", "x" * 300, "a" * 100, "\udcff"]),
)
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
    ]
)
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=2000)), max_size=12)


def write_tar(path: Path, members: Sequence[tuple[str, bytes, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w", format=form) as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(data)
            elif kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    return path


def text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@given(MEMBERS, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.sampled_from(["a.tar", "a.tgz"]))
def test_every_member_is_listed_whatever_its_name_and_kind(
    tmp_path_factory: pytest.TempPathFactory, given_: list[tuple[str, bytes, bytes]], form: int, name: str
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    path = write_tar(folder / name, given_, form)
    found = list(members(str(path)))
    expected = [(name, kind, data) for name, kind, data in given_ if kind != tarfile.DIRTYPE]
    if given_ and not any(member.detail and "damaged" in member.detail for member in found):
        assert [member.size for member in found] == [len(d) if k == tarfile.REGTYPE else 0 for _, k, d in expected]
        assert [bool(member.problem) for member in found] == [kind != tarfile.REGTYPE for _, kind, _ in expected]
    assert [path.name for path in folder.iterdir()] == [name]
    for member in found:
        member.name.encode()  # text that a parquet column can hold


@given(st.binary(max_size=3000), st.sampled_from(["a.tar", "a.tar.gz", "a.zip"]))
def test_no_bytes_are_so_wrong_that_listing_them_fails(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("junk") / name
    path.write_bytes(data)
    for member in members(str(path)):
        assert member.problem


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 700, 5000, 5120])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_that_is_cut_says_so(tmp_path: Path, cut: int, name: str) -> None:
    """Even where the cut is between two members, which a reader of streams takes for the end."""
    whole = write_tar(tmp_path / "whole.tar", [(f"{i}.jpg", tarfile.REGTYPE, bytes([i]) * 4608) for i in range(2)])
    data = whole.read_bytes()[:cut]
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = list(members(str(tmp_path / name)))
    assert found[-1].problem == "unreadable"
    assert "damaged from here on" in str(found[-1].detail)


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(5 << 30)  # holes
    (member,) = members(str(path))
    assert "a header of" in str(member.detail)


def test_the_same_images_in_any_wrapping_make_the_same_shards(tmp_path: Path) -> None:
    images = {f"some/{number:03d}.jpg": jpeg(number) for number in range(12)}
    (tmp_path / "folder" / "in.x" / "some").mkdir(parents=True)
    for suffix in ("tar", "tar.gz", "zip"):
        (tmp_path / suffix).mkdir()
    plain = [(name, tarfile.REGTYPE, data) for name, data in images.items()]
    write_tar(tmp_path / "tar" / "in.x", plain).rename(tmp_path / "tar" / "in.tar")
    write_tar(tmp_path / "tar.gz" / "in.gz", plain).rename(tmp_path / "tar.gz" / "in.tar.gz")
    with zipfile.ZipFile(tmp_path / "zip" / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    made = {}
    for suffix in ("tar", "tar.gz", "zip"):
        out = tmp_path / f"out-{suffix}"
        run = seer_ingest("archive", tmp_path / suffix, "--out", out, "--unit", 5)
        assert run.returncode == 0, run.stderr
        assert [row["source"] for row in stored(out)] == [f"in.{suffix}/{name}" for name in images]
        made[suffix] = {name: data for name, data in files(out).items() if name.endswith(".tar")}
    assert made["tar"] == made["tar.gz"] == made["zip"]
    assert len(made["tar"]) == 3


def test_what_is_unsafe_or_damaged_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    inside = tmp_path / "in" / "deep"
    inside.mkdir(parents=True)
    members_ = [
        ("../../../escape.jpg", tarfile.REGTYPE, jpeg(1)),
        ("link.jpg", tarfile.SYMTYPE, b""),
        ("hard.jpg", tarfile.LNKTYPE, b""),
        ("device", tarfile.CHRTYPE, b""),
        ("twice.jpg", tarfile.REGTYPE, jpeg(2)),
        ("twice.jpg", tarfile.REGTYPE, jpeg(3)),
        ("page.jpg", tarfile.REGTYPE, b"<html>"),
    ]
    write_tar(inside / "a.tar", members_)
    whole = write_tar(tmp_path / "b.tar", [("4.jpg", tarfile.REGTYPE, jpeg(4)), ("5.jpg", tarfile.REGTYPE, jpeg(5))])
    (tmp_path / "in" / "b.tar").write_bytes(whole.read_bytes()[: list(members(str(whole)))[1].place + 100])
    with zipfile.ZipFile(tmp_path / "in" / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("6.jpg", jpeg(6))
        link = zipfile.ZipInfo("7.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(100 << 20))
    data = bytearray((tmp_path / "in" / "c.zip").read_bytes())
    (tmp_path / "in" / "d.zip").write_bytes(data)
    data[60] ^= 0xFF  # in the first member's data
    (tmp_path / "in" / "c.zip").write_bytes(data)
    (tmp_path / "in" / "notes.txt").write_text("no archive, not looked at")
    run = seer_ingest("archive", tmp_path / "in", "--out", tmp_path / "out", "--max-bytes", 1 << 20)
    assert run.returncode == 0, run.stderr
    assert [row["source"] for row in stored(tmp_path / "out")] == [
        "b.tar/4.jpg", "d.zip/6.jpg", "deep/a.tar/../../../escape.jpg", "deep/a.tar/twice.jpg", "deep/a.tar/twice.jpg",
    ]  # fmt: skip
    assert rejected(tmp_path / "out") == {
        "b.tar/5.jpg": "unreadable",
        "b.tar/…": "unreadable",
        "c.zip/6.jpg": "unreadable",
        "c.zip/7.jpg": "unsafe_member",
        "c.zip/bomb.png": "too_large",
        "d.zip/7.jpg": "unsafe_member",
        "d.zip/bomb.png": "too_large",
        "deep/a.tar/device": "unsafe_member",
        "deep/a.tar/hard.jpg": "unsafe_member",
        "deep/a.tar/link.jpg": "unsafe_member",
        "deep/a.tar/page.jpg": "not_an_image",
    }
    assert not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize("name", ["c.tar", "c.tar.gz"])
def test_what_was_appended_behind_the_end_of_a_tar_is_read(tmp_path: Path, name: str) -> None:
    """As by ``cat a.tar b.tar``; each part may have padding of its own, and may be a gzip member of its own."""
    parts = [
        write_tar(tmp_path / f"{n}.tar", [(f"{n}{i}.jpg", tarfile.REGTYPE, bytes([i]) * 700) for i in range(2)])
        for n in "abc"
    ]
    data = [part.read_bytes() for part in parts]
    data[1] += bytes(100_352)
    (tmp_path / name).write_bytes(b"".join(map(gzip.compress, data) if name.endswith("gz") else data))
    found = list(members(str(tmp_path / name)))
    assert [member.name for member in found] == ["a0.jpg", "a1.jpg", "b0.jpg", "b1.jpg", "c0.jpg", "c1.jpg"]
    reader = kind(name).reader(kind(name).open(str(tmp_path / name)))
    assert [reader.read(member.place, 3) for member in found] == [b"\0\0\0", b"\1\1\1"] * 3
    reader.close()
    (tmp_path / name).write_bytes(b"".join([data[0], b"no tar at all" * 99]))
    if name == "c.tar":
        assert [member.name for member in members(str(tmp_path / name))] == ["a0.jpg", "a1.jpg", "…"]


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_what_macos_puts_beside_files_is_passed_over(tmp_path: Path, name: str) -> None:
    names = ["x.jpg", "__MACOSX/._x.jpg", "d/._y.jpg", "d/y.jpg"]
    if name == "a.tar":
        write_tar(tmp_path / name, [(n, tarfile.REGTYPE, b"data") for n in names])
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for n in names:
                archive.writestr(n, b"data")
    assert [member.name for member in members(str(tmp_path / name))] == ["x.jpg", "d/y.jpg"]


def test_an_archive_whose_own_name_is_no_text(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", tarfile.REGTYPE, jpeg(1))])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tar")
    path.rename(odd)
    for verb in ("archive", "webdataset"):
        run = seer_ingest(verb, odd, "--out", tmp_path / verb)
        assert run.returncode == 0, run.stderr
        (row,) = stored(tmp_path / verb)
        assert row["source"] == {"archive": "caf\\xe9.tar/1.jpg", "webdataset": "caf\\xe9.tar/1"}[verb]
    run = seer_ingest("index", odd, "--out", tmp_path / "index")
    assert (run.returncode, "rename it" in run.stderr) == (2, True)


def test_a_member_of_a_zip_may_have_no_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in (("", jpeg(0)), ("b.jpg", jpeg(1))):
            info = zipfile.ZipInfo("some")
            info.filename = name
            with archive.open(info, "w") as file:
                file.write(data)
    run = seer_ingest("archive", tmp_path / "a.zip", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert [row["source"] for row in stored(tmp_path / "out")] == ["a.zip/", "a.zip/b.jpg"]


def test_another_list_of_archives_is_another_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", tarfile.REGTYPE, jpeg(1))])
    before = ArchiveSource(str(path), 1).identity
    assert ArchiveSource(os.path.relpath(path), 1).identity == before
    write_tar(path, [("1.jpg", tarfile.REGTYPE, jpeg(1) + bytes(20_000))])
    assert ArchiveSource(str(path), 1).identity != before
    os.utime(path, ns=(0, 0))  # another content may have the same size
    assert ArchiveSource(str(path), 1).identity != before
    with pytest.raises(UserError, match="no such file"):
        ArchiveSource(str(tmp_path / "*.zip"), 1)
