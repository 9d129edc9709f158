"""Web archives: images in responses, however they were transferred and packed."""

import gzip
import io
import random
import zlib
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from ingest.reasons import UnfetchedError
from ingest.sources.inflate import Address, inflated
from ingest.sources.records import next_record
from ingest.sources.warc import Place, WarcReader, captures
from seer_pipe.shards import ShardSet
from tests.ingest.helpers import rejected, seer_ingest, stored
from tests.ingest.web import jpeg

DATE = "2020-02-03T04:05:06Z"


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def record(kind: str, url: str, body: bytes, *headers: str) -> bytes:
    content = "application/http" if kind != "resource" else "image/jpeg"
    lines = [
        "WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", f"WARC-Date: {DATE}", f"Content-Type: {content}",
        *headers, f"Content-Length: {len(body)}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + body + b"\r\n\r\n"


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (100, body[:100], len(body) - 100, body[100:])


JPEG = "Content-Type: image/jpeg"
RECORDS = [
    record("warcinfo", "", b"software: test"),
    record("request", "http://a/plain", b"GET / HTTP/1.1\r\n\r\n"),
    record("response", "http://a/plain", http(jpeg(1), JPEG)),
    record("response", "http://a/chunked", http(chunked(jpeg(2)), JPEG, "Transfer-Encoding: chunked")),
    record("response", "http://a/packed", http(gzip.compress(jpeg(3)), JPEG, "Content-Encoding: gzip")),
    record("response", "http://a/decoded", http(jpeg(4), JPEG, "Transfer-Encoding: chunked", "Content-Encoding: gzip")),
    record("response", "http://a/untold", http(jpeg(5), "Content-Type: application/octet-stream")),
    record("response", "http://a/page", http(b"<html>", "Content-Type: text/html; charset=utf-8")),
    record("response", "http://a/data", http(b"just data", "Content-Type: application/octet-stream")),
    record("response", "http://a/gone", http(jpeg(6), JPEG, status="404 Not Found")),
    record("response", "http://a/lies", http(b"<html>", JPEG)),
    record("revisit", "http://a/again", http(b"", JPEG), "WARC-Refers-To-Target-URI: http://a/plain"),
    record("resource", "http://a/resource", jpeg(7)),
    record("response", "http://a/same", http(jpeg(1), JPEG)),
]
STORED = ["plain", "chunked", "packed", "decoded", "untold", "resource"]
REJECTED = {"http://a/lies": "not_an_image", "http://a/again": "revisit", "http://a/same": "duplicate"}
PASSED = "3 records: 1 text/html, 1 application/octet-stream, 1 status 404"


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_images_in_responses_and_nothing_else(tmp_path: Path, name: str) -> None:
    parts = [gzip.compress(part) if name.endswith("gz") else part for part in RECORDS]
    (tmp_path / name).write_bytes(b"".join(parts))
    run = seer_ingest("warc", tmp_path / name, "--out", tmp_path / "out", "--unit", 100)
    assert run.returncode == 0, run.stderr
    rows = stored(tmp_path / "out")
    assert [row["source"] for row in rows] == [f"http://a/{path}" for path in STORED]
    assert {row["date"][:19] for row in rows} == {DATE[:19]}
    assert {row["width"] for row in rows} == {64}
    assert rejected(tmp_path / "out") == REJECTED | {name: "passed_over"}
    assert rejected(tmp_path / "out", "detail")[name] == PASSED


def arc(url: str, kind: str, body: bytes) -> bytes:
    return f"{url} 10.0.0.1 20200203040506 {kind} {len(body)}\n".encode() + body + b"\n"


ARC = [
    arc("filedesc://test.arc", "text/plain", b"1 0 test\nURL IP-address Archive-date Content-type Archive-length\n"),
    arc("http://a/plain", "image/jpeg", http(jpeg(1), JPEG)),
    arc("http://a/page", "text/html", http(b"<html>" * 9, "Content-Type: text/html")),
    arc("http://a/with space", "image/jpeg", http(chunked(jpeg(2)), JPEG, "Transfer-Encoding: chunked")),
    arc("dns:a", "text/dns", b"20200203040506\na. IN A 10.0.0.1\n"),
    arc("http://a/large", "image/jpeg", http(jpeg(3, 1024), JPEG)),
]


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_arc(tmp_path: Path, name: str) -> None:
    parts = [gzip.compress(part) if name.endswith("gz") else part for part in ARC]
    (tmp_path / name).write_bytes(b"".join(parts))
    run = seer_ingest("warc", tmp_path / name, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    rows = stored(tmp_path / "out")
    assert [row["source"] for row in rows] == ["http://a/plain", "http://a/with space", "http://a/large"]
    assert {row["date"][:19] for row in rows} == {DATE[:19]}
    assert rejected(tmp_path / "out", "detail") == {name: "1 records: 1 text/html"}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.arc", "a.arc.gz"])
def test_a_file_that_breaks_off_is_told(tmp_path: Path, name: str) -> None:
    records = [*RECORDS[:4], RECORDS[5]] if "warc" in name else ARC
    data = b"".join(gzip.compress(part) if name.endswith("gz") else part for part in records)
    (tmp_path / name).write_bytes(data[:-1000])
    found = list(captures(str(tmp_path / name), name))
    assert sum(capture.problem is None for capture in found) >= 2
    assert [capture.detail for capture in found if capture.problem == "unreadable"] == [
        "damaged from here on: its last record is not complete"
    ]


@given(st.binary(max_size=2000), st.sampled_from(["a.warc", "a.warc.gz", "a.arc", "a.arc.gz"]), st.booleans())
def test_no_bytes_are_so_wrong_that_listing_them_fails(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, after: bool
) -> None:
    path = tmp_path_factory.mktemp("junk") / name
    start = b"".join(ARC[:2] if "arc" in name else RECORDS[:3]) if after else b""
    path.write_bytes(gzip.compress(start + data) if name.endswith("gz") else start + data)
    for capture in captures(str(path), name):
        assert capture.url


def test_real_web_archives(tmp_path: Path, real_data: Path) -> None:
    run = seer_ingest("warc", real_data / "warc", "--out", tmp_path / "out", "--min-side", 8)
    assert run.returncode == 0, run.stderr
    rows = stored(tmp_path / "out")
    assert sum("books.toscrape.com" in row["source"] for row in rows) == 20
    assert len(rows) == 24
    refused = rejected(tmp_path / "out")
    assert {"broken.warc/…", "clipped.warc.gz/…"} == {name for name, why in refused.items() if why == "unreadable"}
    assert {why for name, why in refused.items() if "…" not in name} == {"passed_over"}


def tell(url: str, body: bytes, *headers: str, kind: str = "response", told: str = JPEG) -> bytes:
    return record(kind, f"http://a/{url}", http(body, told, *headers))


def in_chunks(body: bytes, extension: bytes) -> bytes:
    return b"%x%s\r\n%s\r\n0\r\n\r\n" % (len(body), extension, body)


DEFLATE = zlib.compressobj(wbits=-15)
ODD = [
    tell("text", jpeg(1), told="Content-Type: text/plain"),
    tell("download", jpeg(2), told="Content-Type: application/force-download"),
    tell("jpg", jpeg(3), told="Content-Type: jpg"),
    tell("untold", jpeg(4), told="Server: x"),
    tell("chunked text", chunked(jpeg(5)), "Transfer-Encoding: chunked", told="Content-Type: text/plain"),
    tell("zipped text", gzip.compress(jpeg(6)), "Content-Encoding: gzip", told="Content-Type: text/plain"),
    tell("extensions", in_chunks(jpeg(7), b";name=value"), "Transfer-Encoding: chunked"),
    tell("x-gzip", gzip.compress(jpeg(8)), "Content-Encoding: x-gzip"),
    tell("both", in_chunks(gzip.compress(jpeg(9)), b""), "Transfer-Encoding: chunked", "Content-Encoding: gzip"),
    tell("raw deflate", DEFLATE.compress(jpeg(10)) + DEFLATE.flush(), "Content-Encoding: deflate"),
    tell("zlib", zlib.compress(jpeg(11)), "Content-Encoding: deflate"),
    tell("br", pa.compress(jpeg(12), "brotli", asbytes=True), "Content-Encoding: br"),
    tell("zstd", pa.compress(jpeg(13), "zstd", asbytes=True), "Content-Encoding: zstd"),
    tell("not told of", gzip.compress(jpeg(14))),
    record("response", "http://a/bare line feeds", b"HTTP/1.0 200 OK\nContent-Type: image/jpeg\n\n" + jpeg(15)),
    record("response", "http://a/no head", jpeg(16)),
    tell("long head", jpeg(17), "X-Long: " + "x" * 20_000),
    record("conversion", "http://a/conversion", jpeg(18)).replace(b"application/http", b"image/jpeg"),
    record("resource", "<http://a/in brackets>", jpeg(19)),
    record("response", "http://a/bare warc", http(jpeg(20), JPEG)).replace(b"\r\nWARC", b"\nWARC"),
    record("response", "http://a/folded", http(jpeg(21), "Content-Type:", " image/jpeg")),
]


def test_whatever_the_head_says_an_image_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(b"".join(map(gzip.compress, [*ODD, tell("page", b"<html>" * 9)])))
    run = seer_ingest("warc", tmp_path / "a.warc.gz", "--out", tmp_path / "out", "--workers", 1)
    assert run.returncode == 0, run.stderr
    rows = stored(tmp_path / "out")
    assert [row["source"] for row in rows] == [f"http://a/{url}" for url in (
        "text", "download", "jpg", "untold", "chunked text", "zipped text", "extensions", "x-gzip", "both",
        "raw deflate", "zlib", "br", "zstd", "not told of", "bare line feeds", "no head", "long head", "conversion",
        "in brackets", "bare warc", "folded",
    )]  # fmt: skip
    shards = ShardSet.open(tmp_path / "out")
    assert [shards.read(0, row) for row in rows] == [jpeg(number) for number in range(1, 22)]
    assert rejected(tmp_path / "out") == {"http://a/page": "not_an_image"}


def test_an_archive_that_is_no_longer_the_same_gives_no_image_to_another_url(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(tell(str(number), jpeg(number)) for number in range(3)))
    found = list(captures(str(path), "a.warc"))
    path.write_bytes(b"".join(tell(str(number), jpeg(number)) for number in (1, 0, 2)))
    reader = WarcReader(str(path))
    for capture in found[:2]:
        with pytest.raises(ValueError, match=r"another record is at this place|no record begins here"):
            reader.read(Place(Address(capture.place, capture.skip), capture.url), 1 << 20)
    reader.close()


def test_an_inflating_body_is_inflated_no_further_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(tell("bomb", gzip.compress(jpeg(1) + bytes(100 << 20)), "Content-Encoding: gzip"))
    (capture,) = captures(str(path), "a.warc")
    reader = WarcReader(str(path))
    with pytest.raises(UnfetchedError, match="too_large"):
        reader.read(Place(Address(capture.place, capture.skip), capture.url), 1 << 20)
    reader.close()


def members(data: bytes, records: list[bytes], cuts: list[float], padding: int) -> bytes:
    """``data`` as gzip members, divided anywhere."""
    ends = sorted(int(cut * len(data)) for cut in cuts)
    parts = [data[start:end] for start, end in pairwise([0, *ends, len(data)])]
    return bytes(padding).join(map(gzip.compress, parts)) + bytes(padding)


PACKINGS = {
    "plain": lambda data, records, cuts, padding: data,
    "a member each": lambda data, records, cuts, padding: b"".join(map(gzip.compress, records)),
    "one member": lambda data, records, cuts, padding: gzip.compress(data),
    "members": members,
    "one frame": lambda data, records, cuts, padding: pa.compress(data, "zstd", asbytes=True),
    "frames": lambda data, records, cuts, padding: b"".join(pa.compress(r, "zstd", asbytes=True) for r in records),
}


@pytest.mark.parametrize("packing", sorted(PACKINGS))
@settings(max_examples=25)
@given(
    which=st.lists(st.sampled_from([*RECORDS, *ODD]), max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    padding=st.sampled_from([0, 0, 3, 70_000]),
    shuffled=st.randoms(use_true_random=False),
)
def test_every_packing_of_the_same_records_has_the_same_images(
    tmp_path_factory: pytest.TempPathFactory,
    packing: str,
    which: list[bytes],
    cuts: list[float],
    padding: int,
    shuffled: random.Random,
) -> None:
    """Those that warcio finds in the plain file, in any order of reading, whatever the members are."""
    data = b"".join(which)
    theirs: dict[tuple[str, str], list[bytes]] = {}
    for item in ArchiveIterator(io.BytesIO(data), no_record_parse=True):
        kind, url = item.rec_type, unquote(item.rec_headers.get_header("WARC-Target-URI") or "")
        theirs.setdefault((kind, url.strip("<>")), []).append(item.content_stream().read())
    path = tmp_path_factory.mktemp("packing") / "a.warc.gz"
    path.write_bytes(PACKINGS[packing](data, which, cuts, padding))
    file = path.open("rb")
    stream = inflated(file)
    ours: dict[tuple[str, str], list[bytes]] = {}
    places = []
    while (item := next_record(stream)) is not None:
        ours.setdefault((item.kind, item.url), []).append(stream.read(item.length))
        places.append((item, ours[item.kind, item.url][-1]))
    assert ours == theirs
    shuffled.shuffle(places)
    for item, content in places:
        stream.go(item.address)
        again = next_record(stream)
        assert again is not None
        assert (again.url, stream.read(again.length)) == (item.url, content)
    file.close()
