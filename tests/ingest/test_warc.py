"""Web archives: images in responses, however they were transferred and packed."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sources.warc import captures
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
    assert rejected(tmp_path / "out") == REJECTED


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
    assert rejected(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.arc", "a.arc.gz"])
def test_a_file_that_breaks_off_is_told(tmp_path: Path, name: str) -> None:
    records = [*RECORDS[:4], RECORDS[5]] if "warc" in name else ARC
    data = b"".join(gzip.compress(part) if name.endswith("gz") else part for part in records)
    (tmp_path / name).write_bytes(data[:-1000])
    *whole, last = captures(str(tmp_path / name), name)
    assert len(whole) >= 2
    assert last.problem == "unreadable"
    assert "damaged from here on" in str(last.detail)


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
    assert rejected(tmp_path / "out") == {"broken.warc/…": "unreadable", "clipped.warc.gz/…": "unreadable"}
