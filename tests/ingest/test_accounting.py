"""Whatever is put into a source is stored or rejected: nothing is lost on the way, and nothing is made up."""

import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.download import DownloadSettings
from ingest.image import ImageSettings, Stored, process
from ingest.index import IndexSink, IndexSource, as_they_are
from ingest.plan import UnitPlan, prepare
from ingest.run import finish, ingest, pending
from ingest.sources import Source
from ingest.sources.archive import ArchiveSource
from ingest.sources.folder import FolderSource
from ingest.sources.urls import UrlSource
from ingest.sources.warc import WarcSource
from ingest.sources.webdataset import WebDatasetSource
from ingest.unit import ShardSink, Unit
from seer_pipe.errors import UserError
from seer_pipe.store import open_store
from tests.ingest.helpers import rejected, stored
from tests.ingest.test_warc import JPEG, arc, http, record
from tests.ingest.web import LOOPBACK, Web, jpeg

MOST = 1 << 20
#: Names as they are met: with dots, in folders, equal ones, in other letters, of macOS
NAMES = st.lists(
    st.tuples(st.sampled_from(["", "d/", "d.e/"]), st.sampled_from(["a", "a.left", "a.2", "b", "ü", "._a"]))
    .map("".join)
    .map(lambda stem: f"{stem}.jpg"),
    max_size=9,
)
CONTENTS = st.sampled_from([*map(jpeg, range(12)), b"", b"<html>", jpeg(1)[:-200], b"\xff\xd8\xff\xe0"])


def tar(inputs: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in inputs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(inputs: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in inputs:
            file.writestr(name, data)
    return buffer.getvalue()


def halves(inputs: list[tuple[str, bytes]]) -> bytes:
    """Two tars, one behind the other."""
    return tar(inputs[: len(inputs) // 2]) + tar(inputs[len(inputs) // 2 :])


def warc(inputs: list[tuple[str, bytes]]) -> list[bytes]:
    return [record("response", f"http://x/{name}", http(data, JPEG)) for name, data in inputs]


def arcs(inputs: list[tuple[str, bytes]]) -> list[bytes]:
    return [arc(f"http://x/{name}", "image/jpeg", http(data, JPEG)) for name, data in inputs]


Pack = Callable[[list[tuple[str, bytes]]], bytes]
PACKINGS: dict[str, tuple[Pack, Callable[[str], Source]]] = {
    "a.tar": (tar, lambda file: ArchiveSource(file, MOST)),
    "two.tar": (halves, lambda file: ArchiveSource(file, MOST)),
    "a.tar.gz": (lambda inputs: gzip.compress(tar(inputs)), lambda file: ArchiveSource(file, MOST)),
    "two.tar.gz": (
        lambda inputs: gzip.compress(tar(inputs[:3])) + gzip.compress(tar(inputs[3:])),
        lambda file: ArchiveSource(file, MOST),
    ),
    "a.zip": (zipped, lambda file: ArchiveSource(file, MOST)),
    "set.tar": (tar, lambda file: WebDatasetSource(file, [], MOST)),
    "index.tar": (tar, lambda file: IndexSource(file, [], MOST)),
    "a.warc": (lambda inputs: b"".join(warc(inputs)), lambda file: WarcSource(file, MOST)),
    "a.warc.gz": (
        lambda inputs: b"".join(map(gzip.compress, warc(inputs))) or gzip.compress(b""),
        lambda file: WarcSource(file, MOST),
    ),
    "a.arc": (lambda inputs: b"".join(arcs(inputs)), lambda file: WarcSource(file, MOST)),
}
WEB = {"a.warc", "a.warc.gz", "a.arc"}


def run(source: Source, out: Path, unit: int | None) -> UnitPlan:
    """All of a run but the worker processes."""

    async def here(data: bytes) -> Stored:
        return process(data, ImageSettings(reencode="never" if unit is None else "auto"))

    plan, _ = prepare(source, open_store(out), {}, unit)
    make_sink = ShardSink if unit else IndexSink
    ingest(source, plan, pending(plan), here if unit else as_they_are(here), make_sink, memory=MOST, as_json=True)
    return plan


@pytest.mark.parametrize("packing", [*PACKINGS, "folder"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, data=st.data())
def test_inputs_are_stored_or_rejected_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, packing: str, names: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("accounting")
    inputs = [(name, data.draw(CONTENTS)) for name in names]
    if packing == "folder":
        inputs = list(dict(inputs).items())
        for name, content in inputs:
            file = folder / "in" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        (folder / "in").mkdir(exist_ok=True)
        source: Source = FolderSource(folder / "in", MOST)
    else:
        pack, make_source = PACKINGS[packing]
        (folder / packing).write_bytes(pack(inputs))
        source = make_source(str(folder / packing))
    expected = [name for name, _ in inputs if packing in WEB or "._" not in name]
    if not expected:
        return
    unit = None if packing == "index.tar" else 4
    plan = run(source, folder / "out", unit)
    summary = finish(plan)
    assert summary.inputs == summary.stored + sum(summary.rejected.values()) == len(expected)
    if packing in ("a.tar", "two.tar", "a.zip", "folder"):
        where = "" if packing == "folder" else f"{packing}/"
        found = [row["source"] for row in stored(folder / "out")]
        refused = rejected(folder / "out")
        assert set(found) | set(refused) == {where + name for name in expected}
        assert not Counter(found) - Counter(where + name for name in expected)


def test_a_unit_that_does_not_add_up_is_not_committed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg(number))
    source = FolderSource(tmp_path / "in", MOST)
    plan, _ = prepare(source, open_store(tmp_path / "out"), {}, 10)
    unit = Unit(plan, source, 0, ShardSink)
    unit.put(0, process(jpeg(0), ImageSettings()))
    with pytest.raises(RuntimeError, match="1 outcomes of 3 inputs"):
        unit.commit()
    unit.discard()
    assert pending(plan) == [0]


def test_a_set_that_does_not_add_up_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg(number))
    plan = run(FolderSource(tmp_path / "in", MOST), tmp_path / "out", 10)
    assert finish(plan).stored == 3
    about = json.loads((tmp_path / "out" / "ingest.json").read_text())
    (tmp_path / "out" / "ingest.json").write_text(json.dumps({**about, "inputs": 4}))
    with pytest.raises(UserError, match="3 stored and 0 rejected, but 4 inputs"):
        finish(prepare(FolderSource(tmp_path / "in", MOST), open_store(tmp_path / "out"), {}, 10)[0])


#: What a list asks for, beside rows that name nothing: images, also twice, pages, what is gone, no URL at all
PATHS = [
    *(f"/jpeg/{number}" for number in range(6)),
    "/html/1",
    "/status/404",
    "/status/410",
    "/packed/1",
    "/to/?url=/jpeg/7",
]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sampled_from([*PATHS, "", "ftp://x/a.jpg", "http://[x/"]), min_size=1, max_size=12))
def test_urls_are_stored_or_rejected_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, server: Web, rows: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("urls")
    urls = [server.url(row) if row.startswith("/") else row for row in rows]
    pq.write_table(pa.table({"url": urls}), folder / "list.parquet")
    download = DownloadSettings(allow_network=LOOPBACK)
    plan = run(UrlSource(str(folder / "list.parquet"), "url", (), download, MOST), folder / "out", 4)
    summary = finish(plan)
    assert summary.inputs == summary.stored + sum(summary.rejected.values()) == len(rows)
    assert summary.rejected.get("no_url", 0) == rows.count("")
