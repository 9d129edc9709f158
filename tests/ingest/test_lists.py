"""URL lists in every format: what is written is what is read, and what is broken is said."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.download import DownloadSettings
from ingest.sources.urls import UrlSource
from seer_pipe.errors import UserError

#: No control characters and no lone surrogates: they have no place in any of the formats.
cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
urls = cells.map(str.strip).filter(lambda text: text.strip("\ufeff \t") not in ("",) and text == text.strip("\ufeff"))


def read(path: Path | str, keep: tuple[str, ...] = (), url: str = "url") -> list[dict[str, object]]:
    source = UrlSource(str(path), url, keep, DownloadSettings(), 1 << 20)
    return [row for table in source.tables() for row in table.to_pylist()]


@given(st.lists(urls))
def test_a_line_of_text_is_a_url_whatever_is_in_it(tmp_path_factory: pytest.TempPathFactory, urls: list[str]) -> None:
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    path.write_bytes("\r\n\n".join(urls).encode())
    assert [row["source"] for row in read(path)] == urls


@given(st.lists(st.tuples(urls, cells)))
def test_rows_of_csv_jsonl_and_parquet(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("lists")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("caption", "URL"), *((caption, url) for url, caption in rows)])
    (folder / "a.csv").write_bytes(text.getvalue().encode())
    lines = "".join(json.dumps({"url": url, "caption": caption}) + "\n" for url, caption in rows)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "c.jsonl.zst").write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
    table = pa.table(
        {"caption": [c for _, c in rows], "Url": [u for u, _ in rows]},
        pa.schema([("caption", pa.string()), ("Url", pa.string())]),
    )
    pq.write_table(table, folder / "d.parquet")
    expected = [{"source": url, "caption": caption} for url, caption in rows]
    for path in folder.iterdir():
        assert read(path, ("caption",)) == expected, path.name
    assert read(folder, ("caption",)) == 4 * expected
    assert read(folder / "[ab].*", ("caption",)) == 2 * expected


def test_tabs_separate_and_quotes_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text('url\ttext\nhttp://a/"1".jpg\t"so\nhttp://b/,2.jpg\tit is\n')
    assert read(path, ("text",)) == [
        {"source": 'http://a/"1".jpg', "text": '"so'},
        {"source": "http://b/,2.jpg", "text": "it is"},
    ]


def test_rows_that_are_broken_are_rows_still(tmp_path: Path) -> None:
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"url": "http://a/"}\n{"url": \n[1, 2]\n\n{"url": null}\n{"url": 7}\n{"other": 1}\n')
    assert [row["source"] for row in read(lines)] == ["http://a/", '{"url":', "[1, 2]", "", "7", ""]
    short = tmp_path / "list.csv"
    short.write_text("id,url\n1,http://a/\n2\n")
    assert [row["source"] for row in read(short)] == ["http://a/", ""]


def test_bytes_that_are_no_text_are_kept_visible(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfhttp://a/\xff.jpg\n\x80\n")
    assert [row["source"] for row in read(path)] == ["http://a/\\xff.jpg", "\\x80"]
    surrogate = tmp_path / "list.jsonl"
    surrogate.write_text('{"url": "http://a/\\ud800"}\n')
    assert [row["source"] for row in read(surrogate)] == ["http://a/\\ud800"]


def test_parquet_columns_keep_their_type_and_reserved_names_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a/"], "width": [640], "similarity": [0.5]}), path)
    assert read(path, ("width", "similarity")) == [{"source": "http://a/", "input_width": 640, "similarity": 0.5}]


def test_a_real_list(real_data: Path) -> None:
    rows = read(real_data / "urls" / "laion-like-1000.parquet", ("TEXT",), "url")
    assert len(rows) == 1000
    assert all(str(row["source"]).startswith("http") and row["TEXT"] for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"link,text\nhttp://a/,x\n", "no column 'url'; it has 'link', 'text'"),
        ("list.csv", b"", "no column 'url'"),
        ("list.csv", b'url\n"http://a/\nhttp://b/\n', "line 3: unexpected end of data"),
        ("list.jsonl", b'{"link": "http://a/"}\n', "no column 'url'"),
        ("list.parquet", b"PAR1 not really", "not readable"),
        ("list.csv.gz", b"url\nhttp://a/\n", "not readable"),
        ("list.csv.gz", gzip.compress(b"url\n" + b"http://a/\n" * 99, mtime=0)[:-12], "not readable"),
        ("list.xlsx", b"", "of no known kind"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    for where in (tmp_path / "none.txt", tmp_path / "*.csv", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            read(where)


def test_secrets_are_not_written_down(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("http://a/\n")
    source = UrlSource(str(path), "url", (), DownloadSettings(), 1)
    shown = {
        "https://b.s3.amazonaws.com/i.jpg?X-Amz-Credential=AK&x=1&X-Amz-Signature=abc": (
            "https://b.s3.amazonaws.com/i.jpg?X-Amz-Credential=REDACTED&x=1&X-Amz-Signature=REDACTED"
        ),
        "https://me:pass@host/i.jpg": "https://REDACTED@host/i.jpg",
        "https://host/i.jpg?sig=a%2Fb&size=3#key": "https://host/i.jpg?sig=REDACTED&size=3#key",
        "https://host/i@2x.jpg?design=3": "https://host/i@2x.jpg?design=3",
    }
    for url, expected in shown.items():
        assert source.shown({"source": url}) == expected
