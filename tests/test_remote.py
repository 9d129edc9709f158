"""Stores through fsspec: a real web server with and without ranges, what it refuses, and what is never written down."""

import re
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

import seer_pipe
from seer_pipe.errors import UserError
from seer_pipe.report.ingested import ingested
from seer_pipe.shards import ShardSet
from seer_pipe.store import is_remote, open_store, split_url
from seer_pipe.store.remote import status_of, without_secrets
from tests.ingest.helpers import files, seer_ingest, stored
from tests.ingest.test_run import fill
from tests.ingest.web import jpeg


class Handler(SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges; below ``/ranges`` it does, and the rest is as it is named."""

    asked: Counter[str]

    def do_GET(self) -> None:
        kind, _, name = self.path.lstrip("/").partition("/")
        self.asked[self.path] += 1
        if kind.isdigit() and (kind != "503" or self.asked[self.path] < 3):
            self.send_error(int(kind))
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", f"/{name}?X-Amz-Signature=secret")
            self.end_headers()
        elif kind in ("ranges", "503"):
            file = Path(self.directory, unquote(name.partition("?")[0]))
            self._ranged(file.read_bytes()) if file.is_file() else self.send_error(404)
        else:
            self.path = f"/{name}"
            super().do_GET()

    def _ranged(self, data: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(data) - 1}"))
        assert found is not None
        first, last = int(found[1]), min(int(found[2]), len(data) - 1)
        self.send_response(206 if first < len(data) else 416)
        part = data[first : last + 1]
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}" if part else f"bytes */{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a server that shows it."""
    folder = tmp_path_factory.mktemp("site")
    handler = type("Served", (Handler,), {"asked": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_is_read_by_ranges(site: tuple[Path, str]) -> None:
    folder, url = site
    (folder / "a b").mkdir()
    (folder / "a b" / "é.bin").write_bytes(bytes(range(200)))
    (folder / "empty").touch()
    store = open_store(f"{url}/ranges/")
    assert store.url == f"{url}/ranges"
    assert store.get("a b/é.bin") == bytes(range(200))
    assert store.get_range("a b/é.bin", 150, 50) == bytes(range(150, 200))
    assert store.get_range("a b/é.bin", 150, 0) == b""
    assert (store.size("a b/é.bin"), store.size("empty"), store.local_path("a")) == (200, 0, None)
    for start, length in ((150, 51), (200, 1), (500, 1)):
        with pytest.raises(OSError, match=f"has 200 bytes, not {length} at {start}"):
            store.get_range("a b/é.bin", start, length)
    assert open_store(f"{url}/503").get_range("a b/é.bin", 3, 2) == b"\x03\x04"


def test_a_server_without_ranges_is_refused_with_the_reason(site: tuple[Path, str]) -> None:
    folder, url = site
    (folder / "whole.bin").write_bytes(bytes(100))
    store = open_store(f"{url}/plain")
    assert store.get("whole.bin") == bytes(100)
    for ask in (lambda: store.get_range("whole.bin", 0, 5), lambda: store.size("whole.bin")):
        with pytest.raises(UserError, match=rf"{url}/plain/whole.bin: this server does not answer .* \(ranges\)"):
            ask()


def test_what_a_server_refuses_is_said_at_once(site: tuple[Path, str]) -> None:
    _, url = site
    for status in (404, 410):
        assert open_store(f"{url}/{status}").size("a") is None
        with pytest.raises(FileNotFoundError):
            open_store(f"{url}/{status}").get("a")
    for status in (401, 403, 400):
        with pytest.raises(UserError, match=f"{url}/{status}/a: refused by the server: status {status}"):
            open_store(f"{url}/{status}").get_range("a", 0, 1)
    for write in (lambda: open_store(url).put("a", b""), lambda: open_store(url).delete("a")):
        with pytest.raises(UserError, match="http:// is for reading here"):
            write()
    with pytest.raises(UserError, match=r"a web server lists no files; name them, as in .*/\{00000\.\.00009\}.tar"):
        list(open_store(url).list())


def test_secrets_are_never_written_down(site: tuple[Path, str], tmp_path: Path, monkeypatch) -> None:
    """Neither of a URL, which is refused, nor of one that a server redirects to."""
    _, url = site
    for secret in (f"{url}/a.tar?sig=hidden", url.replace("//", "//me:hidden@") + "/a.tar"):
        with pytest.raises(UserError, match="would stand in manifests and logs") as refused:
            open_store(secret)
        assert "hidden" not in str(refused.value)
        run = seer_ingest("index", secret, "--out", tmp_path / "out")
        assert (run.returncode, "hidden" in run.stderr, "would stand in" in run.stderr) == (2, False, True)
    monkeypatch.setattr("seer_pipe.store.remote.PATIENCE", 0.0)
    for status in (403, 500):
        with pytest.raises(OSError, match=str(status)) as failed:
            open_store(f"{url}/to").get(f"{status}/a")
        assert "Signature=" not in "".join(traceback.format_exception(failed.value))
    assert without_secrets("GET https://a.b/c?sig=x&y failed") == "GET https://a.b/c?… failed"


def test_what_no_library_knows_is_said() -> None:
    with pytest.raises(UserError, match="nothing://a: no store is known for nothing://"):
        open_store("nothing://a")
    with pytest.raises(UserError, match="gs://bucket/a: Please install gcsfs"):
        open_store("gs://bucket/a")
    assert split_url("gs://bucket/a/b.tar") == ("gs://bucket", "a/b.tar")
    assert [is_remote(url) for url in ("az://a", "file:///a", "/a://b", "a/b")] == [True, False, False, False]
    assert status_of(FileNotFoundError(2, "no")) is None


@pytest.mark.slow
def test_public_tars_are_indexed_and_trained_from_without_a_copy(site: tuple[Path, str], tmp_path: Path) -> None:
    """As they stand on a web server; and a shard set that is there whole, with loader processes."""
    folder, url = site
    made = seer_ingest("folder", fill(tmp_path / "in", 12), "--out", folder / "set", "--unit", 6)
    assert made.returncode == 0, made.stderr
    run = seer_ingest("index", f"{url}/ranges/set/{{00000..00001}}.tar", "--out", tmp_path / "index")
    assert run.returncode == 0, run.stderr
    assert "12 images in 2 shards" in run.stdout
    assert not list(tmp_path.glob("index/*.tar"))
    there = ShardSet.open(tmp_path / "index")
    assert there.paths == [f"{url}/ranges/set/0000{shard}.tar" for shard in range(2)]
    original = ShardSet.open(folder / "set")
    images = {original.read(shard, row) for shard in range(2) for row in original.sidecar(shard).to_pylist()}
    assert {there.read(shard, row) for shard in range(2) for row in there.sidecar(shard).to_pylist()} == images
    data = seer_pipe.stream(tmp_path / "index", batch=4)
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=lambda batch: [s["jpg"] for s in batch])
    assert {image for batch in loader for image in batch} == images
    assert {sample["jpg"] for sample in seer_pipe.stream(f"{url}/ranges/set", batch=4)} == images
    assert (
        seer_ingest("stats", f"{url}/ranges/set").stdout.splitlines()[1:]
        == (seer_ingest("stats", folder / "set").stdout.splitlines()[1:])
    )
    assert ingested(ShardSet.open(f"{url}/ranges/set")).rejected == {}
    run = seer_ingest("index", f"{url}/plain/set/00000.tar", "--out", tmp_path / "none")
    assert run.returncode == 2
    assert "(ranges)" in run.stderr


def test_tables_and_lists_are_read_from_a_web_server(site: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = site
    pq.write_table(pa.table({"image": [jpeg(1), jpeg(2)], "label": ["a", "b"]}), folder / "t.parquet")
    run = seer_ingest("parquet", f"{url}/ranges/t.parquet", "--keep-columns", "label", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert [(row["source"], row["label"]) for row in stored(tmp_path / "out")] == [
        ("t.parquet/0", "a"), ("t.parquet/1", "b"),
    ]  # fmt: skip


def test_a_set_made_through_fsspec_is_the_one_of_a_folder(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in", 6)
    for out in ("memory://made", tmp_path / "made"):
        run = seer_ingest("folder", pictures, "--out", out, "--unit", 3)
        assert run.returncode == 0, run.stderr
    store = open_store("memory://made")
    assert {entry.path: store.get(entry.path) for entry in store.list()} == files(tmp_path / "made")
    assert len(ShardSet.open("memory://made")) == 6
