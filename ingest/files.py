"""Files to read from, here or in a store, named by path, pattern or folder."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.errors import UserError
from seer_pipe.store import Store, is_remote, open_in, open_store, split_url

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")  # as webdataset has them: a range of numbers, as wide as the first


def locate(where: str) -> tuple[Store, str]:
    """The store that holds a file, and its path in it."""
    root, path = split_url(where)
    return open_store(root), path


def open_file(where: str) -> BinaryIO:
    """A file by its path or URL."""
    return open_in(*locate(where)) if is_remote(where) else Path(where).open("rb")


def expand(where: str, suffixes: Collection[str]) -> list[str]:
    """The files that ``where`` means, in order: itself, the matches of a pattern, or all in a folder that end in one
    of ``suffixes``, but for what macOS puts beside them (``._name``). UserError where there is none.

    In a store a folder is a prefix that ends at a ``/``; of a pattern ``*`` alone has a meaning, and reaches over
    ``/``. A web server lists nothing: there ``{000..099}`` stands for a range of numbers.
    """
    known = ", ".join(sorted(suffixes))
    if is_remote(where):
        found = expand_remote(where, suffixes)
    elif Path(where).is_dir():
        found = sorted(
            str(path) for path in Path(where).rglob("*") if is_one_of(path.name, suffixes) and path.is_file()
        )
    elif Path(where).exists():
        found = [where]
    else:
        found = sorted(path for path in glob.glob(where, recursive=True) if Path(path).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"{where}: no such file, and no folder or pattern with files of these kinds: {known}")
    for file in found:
        if not file.lower().endswith(tuple(suffixes)):
            raise UserError(f"{file}: of no known kind by its name; known are {known}")
    return found


def expand_remote(where: str, suffixes: Collection[str]) -> list[str]:
    if (numbers := BRACES.search(where)) is not None:
        first, last = numbers.groups()
        each = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [file for n in each for file in expand_remote(where.replace(numbers[0], n, 1), suffixes)]
    store, key = locate(where)
    if is_one_of(key, suffixes) and store.size(key) is not None:
        return [where]
    if "*" in key:
        pattern = re.compile(".*".join(map(re.escape, key.split("*"))), re.DOTALL)
        listed = (entry.path for entry in store.list(key.partition("*")[0]))
        found = (path for path in listed if pattern.fullmatch(path) and not is_apple_double(path))
    else:
        folder = key if not key or key.endswith("/") else key + "/"
        found = (entry.path for entry in store.list(folder) if is_one_of(entry.path, suffixes))
    return [f"{store.url}/{path}" for path in found]


def is_one_of(path: str, suffixes: Collection[str]) -> bool:
    return path.lower().endswith(tuple(suffixes)) and not is_apple_double(path)


def is_apple_double(path: str) -> bool:
    """Whether a file is what macOS keeps beside another one, under the same name and suffix."""
    return path.rpartition("/")[2].startswith("._")


def digest(files: Sequence[str]) -> str:
    """SHA-256 over the contents of ``files``."""
    total = hashlib.sha256()
    for file in files:
        with open_file(file) as data:
            total.update(hashlib.file_digest(cast(io.BufferedReader, data), "sha256").digest())
    return total.hexdigest()


def listing(files: Sequence[str]) -> str:
    """SHA-256 over the places, sizes and, of local ones, times of ``files``: distinguishes one list of large files from
    another, and from itself after a change."""
    total = hashlib.sha256()
    for file in files:
        if is_remote(file):
            store, key = locate(file)
            state = f"{file}\t{store.size(key)}"
        else:
            about = Path(file).stat()
            state = f"{Path(file).resolve()}\t{about.st_size}\t{about.st_mtime_ns}"
        total.update(f"{state}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def labels(files: Sequence[str]) -> list[str]:
    """Names for ``files`` that are short and different: what comes after the folder that they have in common."""
    parts = [file.split("/") for file in files]
    common = 0
    for level in zip(*(path[:-1] for path in parts), strict=False):
        if len(set(level)) > 1:
            break
        common += 1
    return [os.fsencode("/".join(path[common:])).decode("utf-8", "backslashreplace") for path in parts]


def read_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Columns of a parquet file. Without threads: one that still holds Python's bytes when the interpreter ends
    takes the process down."""
    return pq.ParquetFile(pa.BufferReader(data)).read(list(columns), use_threads=False)
