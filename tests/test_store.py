"""Stores in a folder, on an S3-compatible server, through fsspec: whole or not at all, exact ranges, clear refusals."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet
from seer_pipe.store import Entry, FolderStore, S3Store, Store, open_store, split_url
from tests.test_shards import make_set


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    s3.create_bucket(Bucket="stores")
    return "s3://stores"


@pytest.fixture(params=["folder", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> Store:
    places = {"folder": tmp_path / "store", "s3": f"{bucket}/{tmp_path.name}", "memory": f"memory://{tmp_path.name}"}
    return open_store(places[request.param])


def test_what_is_put_is_got(store: Store, tmp_path: Path) -> None:
    store.put("a/b.bin", b"0123456789")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get_range("a/b.bin", 3, 4) == b"3456"
    assert store.get_range("a/b.bin", 3, 0) == b""
    store.put("a/b.bin", b"over")
    assert (store.get("a/b.bin"), store.size("a/b.bin")) == (b"over", 4)
    local = tmp_path / "local.bin"
    local.write_bytes(b"x" * 1000)
    store.put_file("c.bin", local)
    assert not local.exists()
    assert list(store.list()) == [Entry("a/b.bin", 4), Entry("c.bin", 1000)]
    assert list(store.list("a/")) == [Entry("a/b.bin", 4)]
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.size("a/b.bin") is None
    assert list(store.list()) == [Entry("c.bin", 1000)]


def test_what_is_missing_or_short_is_told(store: Store, at_once: None) -> None:
    with pytest.raises(FileNotFoundError):
        store.get("nothing")
    store.put("short", b"abc")
    with pytest.raises(OSError, match=r"2|416|InvalidRange|short"):
        store.get_range("short", 2, 5)
    assert list(store.list("nothing")) == []


def test_a_folder_never_shows_a_half_written_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("file", b"0" * 100_000)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.get("file")[:1] + store.get("file")[-1:])
            seen.add(len(store.get("file")))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        store.put("file", str(turn % 10).encode() * 100_000)
    stop.set()
    reader.join()
    assert {item for item in seen if isinstance(item, int)} == {100_000}
    assert [entry.path for entry in store.list()] == ["file"]


def test_deleting_takes_empty_folders_along(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b/c", b"1")
    store.put("a/d", b"2")
    store.delete("a/b/c")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["d"]


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_path_cannot_leave_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="leaves the store"):
        FolderStore(tmp_path).get(path)


def test_addresses_that_are_no_store(bucket: str) -> None:
    with pytest.raises(UserError, match="no bucket"):
        open_store("s3:///x")
    with pytest.raises(UserError, match="there is no bucket"):
        open_store("s3://nowhere-at-all/x").get("y")


def test_a_shard_set_is_the_same_on_s3(bucket: str, tmp_path: Path) -> None:
    local = make_set(tmp_path / "set", [[b"one", b"two" * 300], [b"three"]])
    remote_store = open_store(f"{bucket}/set")
    for entry in local.store.list():
        remote_store.put(entry.path, local.store.get(entry.path))
    remote = ShardSet.open(f"{bucket}/set")
    assert remote.fingerprint == local.fingerprint
    for shard in range(2):
        rows = remote.sidecar(shard).to_pylist()
        assert [remote.read(shard, row) for row in rows] == [local.read(shard, row) for row in rows]


ODD = "a#b/c?d=e/f%20g//h i/*.bin"


def test_keys_are_as_they_are_and_a_prefix_is_a_folder(bucket: str) -> None:
    store = open_store(f"{bucket}/odd#?/")
    assert store.url == f"{bucket}/odd#?"
    store.put(ODD, b"0123")
    assert (store.get(ODD), store.get_range(ODD, 1, 2), store.size(ODD)) == (b"0123", b"12", 4)
    assert list(store.list()) == [Entry(ODD, 4)]
    root, key = split_url(f"{store.url}/{ODD}")
    assert (root, key) == (bucket, f"odd#?/{ODD}")
    assert open_store(root).get(key) == b"0123"
    open_store(f"{bucket}/odd#?0").put("x", b"")
    assert list(store.list()) == [Entry(ODD, 4)]
    inner = open_store(f"{bucket}/odd#?/a#b/c?d=e/f%20g//")  # the folder without a name in f%20g
    assert list(inner.list()) == [Entry("h i/*.bin", 4)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried a second time."""

    def waits(seconds: float) -> None:
        pytest.fail("it is tried again")

    monkeypatch.setattr("seer_pipe.store.base.time.sleep", waits)


@pytest.mark.parametrize(
    "url", ["s3://not a bucket/x", "s3://a%b", "s3://-/x", "s3://bücher/x", "s3://My_Bucket!", "s3://My_Bucket!/x"]
)
def test_a_name_that_no_bucket_can_have_is_said_at_once(bucket: str, url: str, at_once: None) -> None:
    with pytest.raises(UserError, match="bucket") as caught:
        open_store(url).get("y")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "status", [(400, "ExpiredToken"), (403, "AccessDenied"), (404, "NoSuchBucket"), (501, "NotImplemented")]
)
@pytest.mark.parametrize("verb", ["get", "get_range", "put", "put_file", "list", "delete"])
def test_what_the_server_refuses_for_good_is_said_at_once(
    verb: str, status: tuple[int, str], tmp_path: Path, bucket: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real client of a server that says so; what was to be uploaded stays."""
    local = tmp_path / "local"
    local.write_bytes(b"x" * 100)
    ask: dict[str, Callable[[Store], object]] = {
        "get": lambda store: store.get("a"),
        "get_range": lambda store: store.get_range("a", 0, 3),
        "put": lambda store: store.put("a", b"b"),
        "put_file": lambda store: store.put_file("a", local),
        "list": lambda store: list(store.list()),
        "delete": lambda store: store.delete("a"),
    }
    with answering(*status) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match=f"no bucket|{status[1]}"):
            ask[verb](open_store(bucket))
    assert local.exists()


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """The address of a server that has one answer."""
    body = f"<Error><Code>{code}</Code></Error>".encode()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_local_file_that_is_missing_is_said_at_once(bucket: str, tmp_path: Path, at_once: None) -> None:
    with pytest.raises(FileNotFoundError):
        open_store(bucket).put_file("a", tmp_path / "nothing")


def test_what_may_pass_is_tried_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("seer_pipe.store.base.time.sleep", waited.append)
    monkeypatch.setattr(S3Store, "PATIENCE", 5.0)
    for status in ((503, "SlowDown"), (400, "RequestTimeout"), (520, "Unknown"), (429, "TooManyRequests")):
        waited.clear()
        with answering(*status) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            with pytest.raises(OSError, match="gave up after"):
                open_store(bucket).get("a")
        assert waited
    with pytest.raises(OSError, match="gave up after"):  # nobody listens there any more
        open_store(bucket).get("a")


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "nonsense"), ("AWS_PROFILE", "nobody")])
def test_a_client_that_cannot_be_made_is_said_at_once(
    bucket: str, name: str, value: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=value):
        open_store(bucket).get("y")
