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
from ingest.image import Stored
from ingest.plan import prepare
from ingest.sources import KEPT
from ingest.sources.urls import UrlSource
from ingest.unit import ShardSink
from seer_pipe.errors import UserError
from seer_pipe.store import open_store
from tests.ingest.web import jpeg

#: No control characters and no lone surrogates: they have no place in any of the formats.
cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
urls = cells.map(str.strip).filter(lambda text: text.strip("\ufeff \t") not in ("",) and text == text.strip("\ufeff"))


def read(path: Path | str, keep: tuple[str, ...] = (), url: str = "url") -> list[dict[str, object]]:
    """The rows of a list: the source, what is kept, and where there is one the problem."""
    source = UrlSource(str(path), url, keep, DownloadSettings(), 1 << 20)
    rows = [row for table in source.tables() for row in table.to_pylist()]
    for row in rows:
        assert (row["problem"] == "bad_row") == (row["detail"] is not None)
    return [
        {
            name.removeprefix(KEPT): value
            for name, value in row.items()
            if name != "detail" and (value or name != "problem")
        }
        for row in rows
    ]


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
    assert read(lines) == [
        {"source": "http://a/"},
        {"source": '{"url":', "problem": "bad_row"},
        {"source": "[1, 2]", "problem": "bad_row"},
        {"source": "", "problem": "no_url"},
        {"source": "7"},
        {"source": "", "problem": "no_url"},
    ]
    table = tmp_path / "list.csv"
    table.write_text("id,url\n1,http://a/\n2\n3,http://b/,c.jpg\n4,\n5,http://c/,\n")
    assert read(table) == [
        {"source": "http://a/"},
        {"source": "2", "problem": "bad_row"},
        {"source": "3,http://b/,c.jpg", "problem": "bad_row"},
        {"source": "", "problem": "no_url"},
        {"source": "http://c/"},
    ]
    nothing = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a/", None, None, " "]}), nothing)
    assert read(nothing) == [{"source": "http://a/"}, *3 * [{"source": "", "problem": "no_url"}]]


def test_a_broken_quote_costs_its_row_and_none_after_it(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('url,text\n"http://a/,x\nhttp://b/,"ok\nok"\nhttp://c/,"y"z\nhttp://d/,"say ""hi"""\n"http://e/')
    assert read(path, ("text",)) == [
        {"source": '"http://a/,x', "text": None, "problem": "bad_row"},
        {"source": "http://b/", "text": "ok\nok"},
        {"source": 'http://c/,"y"z', "text": None, "problem": "bad_row"},
        {"source": "http://d/", "text": 'say "hi"'},
        {"source": '"http://e/', "text": None, "problem": "bad_row"},
    ]


def test_quotes_that_backslashes_escape_are_read(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('url,text\nhttp://a/,"He said \\"hi\\", ok"\nhttp://b/,"ends \\""\nhttp://c/,plain\n')
    assert read(path, ("text",)) == [
        {"source": "http://a/", "text": 'He said "hi", ok'},
        {"source": "http://b/", "text": 'ends "'},
        {"source": "http://c/", "text": "plain"},
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_lists_of_other_encodings(tmp_path: Path, encoding: str) -> None:
    for name, text in {
        "a.txt": "http://a/é.jpg\r\nhttp://b/\r\n",
        "b.csv": "url\r\nhttp://a/é.jpg\r\nhttp://b/\r\n",
        "c.jsonl": '{"url": "http://a/é.jpg"}\n{"url": "http://b/"}\n',
        "d.txt.gz": "http://a/é.jpg\nhttp://b/\n",
    }.items():
        data = text.encode(encoding)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "._a.txt").write_bytes(b"Mac OS X")  # what macOS leaves beside the files
    assert read(tmp_path) == 4 * [{"source": "http://a/é.jpg"}, {"source": "http://b/"}]


def test_a_key_may_be_missing_from_rows_but_not_from_all(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"url": "http://a/"}\n{"url": "http://b/", "Text": "x"}\n')
    assert read(path, ("text",)) == [{"source": "http://a/", "text": None}, {"source": "http://b/", "text": "x"}]
    with pytest.raises(UserError, match="no row has a column 'txet'"):
        read(path, ("txet",))


ANY_TYPE = [
    pa.array([1600000000123456789], pa.timestamp("ns", "UTC")),
    pa.array([123], pa.duration("ns")),
    pa.array([12345], pa.time64("ns")),
    pa.array([b"\xff"], pa.binary()),
    pa.array([b"\xff\0"], pa.binary(2)),
    pa.array(["x"], pa.large_string()),
    pa.array(["x"]).dictionary_encode(),
    pa.array([[1, None]], pa.list_(pa.int8())),
    pa.array([{"a": [{"b": "c"}]}]),
    pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64())),
    pa.array([7], pa.uint64()),
    pa.nulls(1),
    pa.array(["1.23"]).cast(pa.decimal128(10, 2)),
]


@pytest.mark.parametrize("array", ANY_TYPE, ids=lambda array: str(array.type))
def test_a_kept_column_of_any_type_comes_into_the_sidecar_as_it_is(tmp_path: Path, array: pa.Array) -> None:
    """Also by a name that has a meaning in the list of inputs."""
    names = ["kept", "place", "problem", "detail", "file", "size", "duplicate"]
    source = pa.table([["http://127.0.0.1:9/1.jpg"], *[array] * len(names)], ["url", *names])
    pq.write_table(source, tmp_path / "list.parquet")
    url_source = UrlSource(str(tmp_path / "list.parquet"), "url", names, DownloadSettings(), 1 << 20)
    plan, _ = prepare(url_source, open_store(tmp_path / "out"), {}, 10)
    (row,) = plan.rows(0)
    assert row == {"source": "http://127.0.0.1:9/1.jpg", "problem": None, "detail": None, "duplicate": False}
    sink = ShardSink(plan, url_source, 0)
    sink.add(0, row, row["source"], Stored(jpeg(0), 64, 64, "JPEG", 64, 64, None, False))
    sink.commit()
    there = pq.read_table(tmp_path / "list.parquet")
    found = pq.read_table(tmp_path / "out" / "00000.parquet")
    for name in names:
        assert found[name].type == there[name].type
        assert found[name].equals(there[name])


def test_text_that_is_not_utf8_costs_nothing_else(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())

    urls, captions = text(b"http://a/1", b"http://a/\xe9", b"http://a/2"), text(b"a", b"\xff", b"c")
    nested = pa.StructArray.from_arrays([captions], ["deep"])
    pq.write_table(pa.table({"url": urls, "text": captions, "nested": nested}), tmp_path / "list.parquet")
    assert read(tmp_path / "list.parquet", ("text", "nested")) == [
        {"source": "http://a/1", "text": "a", "nested": {"deep": "a"}},
        {"source": "http://a/\\xe9", "text": "\\xff", "nested": None},
        {"source": "http://a/2", "text": "c", "nested": {"deep": "c"}},
    ]
    pq.write_table(pa.table({"url": urls.view(pa.binary())}), tmp_path / "list.parquet")
    assert read(tmp_path / "list.parquet")[1] == {"source": "http://a/\\xe9"}


def test_types_are_those_that_hold_all_files(tmp_path: Path) -> None:
    texts = [pa.nulls(1), pa.array(["w"]).dictionary_encode(), pa.array(["x"]), pa.array(["y"], pa.large_string())]
    for number, column in enumerate(texts):
        pq.write_table(pa.table({"url": [f"http://a/{number}"], "c": column}), tmp_path / f"{number}.parquet")
    assert [row["c"] for row in read(tmp_path, ("c",))] == [None, "w", "x", "y"]
    pq.write_table(pa.table({"url": ["http://a/"], "c": [[1]]}), tmp_path / "4.parquet")
    with pytest.raises(UserError, match=r"4.parquet: column 'c' is list<.*> here and large_string in a file before"):
        read(tmp_path, ("c",))


def test_a_column_that_is_there_twice_is_said(tmp_path: Path) -> None:
    twice = pa.table([["http://a/"], ["http://b/"], ["x"]], ["url", "url", "text"])
    pq.write_table(twice, tmp_path / "list.parquet")
    with pytest.raises(UserError, match="2 columns are called 'url'"):
        read(tmp_path / "list.parquet")
    (tmp_path / "list.csv").write_text("url,text,text\nhttp://a/,x,y\n")
    assert read(tmp_path / "list.csv") == [{"source": "http://a/"}]
    for keep in (("text",), ("caption", "caption"), ("width", "input_width")):
        with pytest.raises(UserError, match=r"text|caption|input_width"):
            read(tmp_path / "list.csv", keep)


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
        ("list.csv", b'"url\nhttp://a/\n', "line 1: unexpected end of data"),
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
