"""CSV files as people have them: what is read, and that each fault is called by its name."""

from pathlib import Path

import pytest

from seer_pipe.errors import UserError
from seer_pipe.evaluate.table import read_csv, read_pairs

HEADERS = ("source", "label"), ("key", "label")


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "labels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(
    "content",
    [
        'source,label\na,x\n"b,c",y\n',
        '\ufeffsource,label\r\na,x\r\n\r\n"b,c",y',
        'label, source, score\nx, a, 1\ny, "b,c", 2\n',
        "\n\nsource,label\na,x \nb\\,c,y\n".replace("b\\,c", '"b,c"'),
    ],
    ids=["plain", "byte order mark, CRLF, empty lines", "columns in another order, spaces", "empty lines before"],
)
def test_what_is_read(tmp_path: Path, content: str) -> None:
    header, rows = read_csv(written(tmp_path, content), *HEADERS)
    assert (header, rows) == (("source", "label"), [("a", "x"), ("b,c", "y")])


def test_a_line_separator_of_unicode_ends_no_line(tmp_path: Path) -> None:
    assert read_csv(written(tmp_path, "key,label\na\u2028b,x\n"), *HEADERS)[1] == [("a\u2028b", "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; its first line is to be the columns' names, source,label or key,label"),
        ("source,label\n", "its first line alone, and no rows"),
        ("source;label\na;x\n", "separates its columns by semicolons; save it with commas"),
        ("source\tlabel\na\tx\n", "by tabs"),
        ("a/1.jpg,red\na/2.jpg,blue\n", "begins with 'a/1.jpg,red', which names none of its columns"),
        ("source,class\na,x\n", "names the columns source,class alone"),
        ("Source,Label\na,x\n", "names its columns Source,Label, in other letters"),
        ("source,label,label\na,x,y\n", "two columns label"),
        ("source,label\na,x\nb,c,y\n", 'line 3: 3 fields, where the first line names 2; .* "a,b"'),
        ("source,label\na,x\nb\n", "line 3: 1 fields"),
        ('source,label\na,"x\nb,y\n', "line 3: a quote that is opened is not closed"),
        ('source,label\na,"x" y\n', "line 2: ',' expected after '\"'"),
        ("source,label\na,caf\u00e9\n".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("source,label\na,x\n".encode("utf-16"), "is UTF-16"),
        (b"PK\x03\x04rest", "is a spreadsheet or another zip file"),
        ("source,label\na,\0\n", "line 2: a zero byte"),
    ],
)
def test_each_fault_is_called_by_its_name(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"labels\.csv: .*{message}"):
        read_csv(written(tmp_path, content), *HEADERS)


def test_rows_that_say_the_same_again_are_counted_and_those_that_differ_refused(tmp_path: Path) -> None:
    assert read_pairs(written(tmp_path, "key,label\na,x\nb,y\na,x\n"), *HEADERS) == (
        ("key", "label"), {"a": "x", "b": "y"}, 1
    )  # fmt: skip
    with pytest.raises(UserError, match="key 'a' has two values of label: 'x', 'y'"):
        read_pairs(written(tmp_path, "key,label\na,x\na,y\n"), *HEADERS)
