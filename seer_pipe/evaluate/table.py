"""Rows of a CSV file, or one line that says which of the many things that can be wrong with one is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from seer_pipe.errors import UserError

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK": "a spreadsheet or another zip file"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(file: Path, *headers: tuple[str, ...]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The first of ``headers`` whose columns the file has, and these columns of all rows that are not empty.

    UTF-8, commas, quotes where a field needs them, and a first line with the columns' names, in any order and with
    others beside them. Anything else is a `UserError` that says what it is, and in which line.
    """
    wanted = " or ".join(",".join(header) for header in headers)
    text = _decoded(file)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        first = next((row for row in lines if row), None)
        if first is None:
            raise UserError(f"{file}: is empty; its first line is to be the columns' names, {wanted}")
        names = [name.strip() for name in first]
        header = next((header for header in headers if set(header) <= set(names)), None)
        if header is None:
            raise UserError(f"{file}: {_why_no_header(names, headers)}; its first line is to be {wanted}")
        twice = next((name for name in header if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{file}: has two columns {twice}; leave one")
        places, rows = [names.index(name) for name in header], []
        for row in filter(None, lines):
            if len(row) != len(names):
                raise UserError(
                    f"{file}: line {lines.line_num}: {len(row)} fields, where the first line names {len(names)}; "
                    'a field with a comma in it stands in quotes: "a,b"'
                )
            rows.append(tuple(row[place].strip() for place in places))
    except csv.Error as error:
        fault = "a quote that is opened is not closed" if "end of data" in str(error) else str(error)
        raise UserError(
            f"{file}: line {lines.line_num}: {fault}; a field with quotes stands in quotes, each of its own doubled"
        ) from None
    if not rows:
        raise UserError(f"{file}: has its first line alone, and no rows")
    return header, rows


def read_pairs(file: Path, *headers: tuple[str, str]) -> tuple[tuple[str, str], dict[str, str], int]:
    """Of a file with two columns as `read_csv` reads it: {first: second}, and how many rows repeated another.

    Two rows that give one thing two values are a `UserError`.
    """
    header, rows = read_csv(file, *headers)
    found: dict[str, str] = {}
    for name, value in rows:
        if found.setdefault(name, value) != value:
            raise UserError(f"{file}: {header[0]} {name!r} has two values of {header[1]}: {found[name]!r}, {value!r}")
    return (header[0], header[1]), found, len(rows) - len(found)


def _decoded(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    kind = next((kind for mark, kind in _MARKS.items() if data.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{file}: is {kind}; save it as a CSV file in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}: line {line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{file}: line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a zero byte; it is no text file"
        )
    return text


def _why_no_header(names: list[str], headers: tuple[tuple[str, ...], ...]) -> str:
    known = {name for header in headers for name in header}
    if len(names) == 1:
        for mark, word in _SEPARATORS.items():
            parts = {part.strip(' "') for part in names[0].split(mark)}
            if mark in names[0] and parts & known:
                return f"separates its columns by {word}; save it with commas"
    small = {name.lower() for name in names}
    if any(set(header) <= small for header in headers):
        return f"names its columns {','.join(names)}, in other letters"
    if not small & known:
        return f"begins with {','.join(names)!r}, which names none of its columns"
    return f"names the columns {','.join(names)} alone"
