"""Whole runs: what is stored, what is not, and that killing them changes nothing."""

import asyncio
import io
import json
import os
import random
import resource
import signal
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ingest.budget import Lease
from ingest.image import ImageSettings
from ingest.plan import UnitPlan, prepare
from ingest.reasons import Reason
from ingest.run import finish, ingest, pending, sole
from ingest.sources import Row, Source
from ingest.sources.folder import FolderSource
from ingest.unit import ShardSink
from ingest.workers import DecoderPool
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet
from seer_pipe.store import FolderStore, open_store
from tests.ingest.helpers import COMMAND, files, rejected, seer_ingest, stored
from tests.ingest.web import Web, jpeg

ODD_NAMES = [
    b"plain.jpg",
    b"no suffix",
    b"wrong.png",
    b".hidden.jpg",
    b"two\nlines.jpg",
    b'quote"and,comma.jpg',
    b"not utf-8 \xff\xfe.jpg",
    "grüße/日本語.jpg".encode(),
    b"a.b/c.v1.jpg",
    b"a.b/c.v2.jpg",
    b"deep/" * 50 + b"down.jpg",
    b"x" * 200 + b".jpg",
]


def fill(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.jpg").write_bytes(jpeg(number))
    return folder


def test_a_folder_with_odd_names_and_what_is_no_image(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for number, name in enumerate(ODD_NAMES):
        path = inside / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (inside / "empty").write_bytes(b"")
    (inside / "page.jpg").write_text("<html>")
    (inside / "same.jpg").write_bytes(jpeg(0))
    (inside / "link.jpg").symlink_to("elsewhere.jpg")
    (inside / "loop").symlink_to(inside)
    os.mkfifo(inside / "pipe.jpg")
    run = seer_ingest("folder", inside, "--out", tmp_path / "out", "--json")
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    reasons = rejected(tmp_path / "out")
    assert reasons == {
        "empty": "empty",
        "page.jpg": "not_an_image",
        "same.jpg": "duplicate",
        "link.jpg": "unreadable",
    }
    assert summary["stored"] == len(ODD_NAMES)
    assert summary["inputs"] == len(ODD_NAMES) + len(reasons)
    assert summary["rejected"] == Counter(reasons.values())
    names = {row["source"] for row in stored(tmp_path / "out")}
    assert names == {name.decode("utf-8", "backslashreplace") for name in ODD_NAMES}
    shards = ShardSet.open(tmp_path / "out")
    assert len(shards) == len(ODD_NAMES)
    for row in shards.sidecar(0).to_pylist():
        assert shards.read(0, row)[:2] == b"\xff\xd8"


def test_the_order_of_arrival_leaves_no_trace(tmp_path: Path, server: Web) -> None:
    """The first URLs are answered last, and the same list gives the same bytes as when all come at once."""
    urls = [server.url(f"/slowly/{number}") for number in range(30)]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    for name, connections in (("one", 1), ("many", 30)):
        run = seer_ingest(
            "urls", tmp_path / "list.txt", "--out", tmp_path / name, "--unit", 8,
            "--connections", connections, "--per-host", connections, "--allow-network", "127.0.0.0/8",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    assert [row["source"] for row in stored(tmp_path / "many")] == urls
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_every_url_is_stored_or_has_its_reason(tmp_path: Path, server: Web) -> None:
    expected = {
        server.url("/html"): "not_an_image",
        server.url("/status/404"): "http_404_410",
        server.url("/status/403"): "http_401_403",
        server.url("/tag/5?value=noai"): "opt_out",
        server.url("/jpeg/1?again"): "duplicate",
        "http://10.0.0.1/a.jpg": "blocked_address",
        "file:///etc/passwd": "bad_url",
        "http://a,b.example/c,d.jpg": "dns",
        server.url("/jpeg/2", host="me:secret@127.0.0.1"): "bad_url",
    }
    urls = [server.url("/jpeg/1"), *expected, server.url("/jpeg/1"), server.url("/to?url=/jpeg/2")]
    (tmp_path / "list.txt").write_text("\n".join(urls) + "\n")
    out = tmp_path / "out"
    run = seer_ingest("urls", tmp_path / "list.txt", "--out", out, "--allow-network", "127.0.0.0/8", "--json")
    assert run.returncode == 0, run.stderr
    hidden = {url.replace("me:secret", "REDACTED"): reason for url, reason in expected.items()}
    assert rejected(out) == hidden | {server.url("/jpeg/1"): "duplicate_url"}
    assert [row["source"] for row in stored(out)] == [server.url("/jpeg/1"), server.url("/to?url=/jpeg/2")]
    assert json.loads(run.stdout)["inputs"] == len(urls)
    assert json.loads(run.stderr.splitlines()[-1])["done"] == len(urls)


def test_columns_are_kept_in_the_sidecar(tmp_path: Path, server: Web) -> None:
    (tmp_path / "list.csv").write_text(f'id,link,text\n7,{server.url("/jpeg/1")},"a, b"\n')
    run = seer_ingest(
        "urls", tmp_path / "list.csv", "--out", tmp_path / "out", "--url-column", "link",
        "--keep-columns", "text, id", "--allow-network", "127.0.0.0/8",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (row,) = stored(tmp_path / "out")
    assert (row["text"], row["id"], row["format"], row["original_width"]) == ("a, b", "7", "JPEG", 64)


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 10)
    first = seer_ingest("folder", folder, "--out", tmp_path / "out", "--unit", 4)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    (folder / "later.jpg").write_bytes(jpeg(99))
    again = seer_ingest("folder", folder, "--out", tmp_path / "out", "--unit", 4)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert "11 files now, 10 when this run began" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def kill_and_finish(command: list[str], out: Path, times: int, seed: int, longest: float) -> None:
    """Kill ``command`` with all its children at random moments, then let it finish."""
    draw = random.Random(seed)
    for _ in range(times):
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.3, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in out.glob("0*.parquet"):  # what is done is whole
            assert path.with_suffix(".tar").exists()
            assert (out / "rejected" / path.name).exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_lies_beside_an_image_is_kept(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    (inside / "deep.er").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "a-1.jpg", "b.PNG", "deep.er/c.x.jpg", "deep.er/d", "e.jpg"]):
        (inside / name).write_bytes(jpeg(number))
    (inside / "a.txt").write_text("a cat")
    (inside / "a.json").write_text('{"Width": 5, "tags": ["x", "y"]}')
    (inside / "b.txt").write_bytes(b"caf\xe9")
    (inside / "deep.txt").write_text("not of what lies in deep.er")
    (inside / "deep.er/c.x.txt").write_text("of c.x")
    (inside / "e.json").write_text("{broken")
    (inside / "orphan.txt").write_text("of nothing")
    (inside / "page.html").write_text("<html>")
    arguments = ("folder", inside, "--out", tmp_path / "out", "--keep-columns", "txt,width,tags", "--json")
    run = seer_ingest(*arguments)
    assert run.returncode == 0, run.stderr
    assert rejected(tmp_path / "out") == {"page.html": "not_an_image"}
    assert [(row["source"], row["txt"], row["input_width"], row["tags"]) for row in stored(tmp_path / "out")] == [
        ("a-1.jpg", None, None, None),
        ("a.jpg", "a cat", "5", '["x", "y"]'),
        ("b.PNG", "caf\\xe9", None, None),
        ("deep.er/c.x.jpg", "of c.x", None, None),
        ("deep.er/d", None, None, None),
        ("e.jpg", None, None, None),
    ]
    again = seer_ingest(*arguments)
    assert again.returncode == 0
    assert "files now" not in again.stderr


@pytest.mark.parametrize(
    ("times", "options"),
    [
        (4, []),
        pytest.param(20, [], marks=pytest.mark.slow),
        pytest.param(20, ["--shuffle"], marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path, server: Web, times: int, options: list[str]) -> None:
    paths = [f"/jpeg/{number}" if number % 7 else "/status/404" for number in range(300)]
    paths[50] = paths[20]
    paths[9] = "/jpeg/1?again"
    (tmp_path / "list.txt").write_text("\n".join(map(server.url, paths)))

    def command(out: Path) -> list[str]:
        arguments = [*COMMAND, "urls", tmp_path / "list.txt", "--out", out, "--unit", 20]
        return [*map(str, arguments), "--per-host", "4", "--allow-network", "127.0.0.0/8", *options]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_and_finish(command(whole), whole, times=0, seed=0, longest=0)
    kill_and_finish(command(killed), killed, times, seed=times, longest=2.0)
    assert files(killed) == files(whole)
    apart = bool(options)  # equal bytes are stored once within a shard, and --shuffle deals these two to different ones
    assert len(ShardSet.open(killed)) == len({path for path in paths if path.startswith("/jpeg/")}) - (not apart)


class FullStore(FolderStore):
    """A folder on a disk that has room for one shard."""

    def put_file(self, path: str, local: Path) -> None:
        if path == "00001.tar":
            raise OSError(28, "No space left on device")
        super().put_file(path, local)


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_done(tmp_path: Path) -> None:
    source = FolderSource(fill(tmp_path / "in", 10), 1 << 20)

    class LateSink(ShardSink):
        """The last unit is still being begun when the one before it fails."""

        def __init__(self, plan: UnitPlan, source: Source, number: int) -> None:
            time.sleep(0.5 * (number == 2))
            super().__init__(plan, source, number)

    def run(store: FolderStore) -> None:
        plan, _ = prepare(source, store, {}, 4)
        with DecoderPool(ImageSettings(), 1) as pool:
            ingest(source, plan, pending(plan), pool.process, LateSink, memory=1 << 20, as_json=True)
        assert finish(plan).stored == 10

    with pytest.raises(UserError, match="no space left") as error:
        run(FullStore(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "00000.parquet").exists()
    assert not list((tmp_path / "out").glob(".tmp-*"))
    run(FolderStore(tmp_path / "out"))
    run(FolderStore(tmp_path / "whole"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_file_that_may_not_grow_is_said_and_cleared_away(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 40)
    arguments = [*COMMAND, "folder", str(folder), "--out", str(tmp_path / "out")]
    limit = (32 << 10, 32 << 10)  # bytes; the tar would have more
    run = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'out'}: no space left")
    assert "Traceback" not in run.stderr
    assert sorted(files(tmp_path / "out")) == ["ingest.json", "inputs.parquet", "progress/0-of-1.json"]


def test_what_waits_goes_to_disk_when_memory_is_short(tmp_path: Path) -> None:
    """The first input is last; with room for three images the others wait in a file, and none is lost."""

    class LateFirst(FolderSource):
        async def fetch(self, row: Row, lease: "object") -> bytes:
            if row["source"] == "0000.jpg":
                await asyncio.sleep(0.5)
            return await super().fetch(row, lease)  # type: ignore[arg-type]

    folder = fill(tmp_path / "in", 30)
    for name, kind in (("late", LateFirst), ("plain", FolderSource)):
        source = kind(folder, 1 << 20)
        plan, _ = prepare(source, open_store(tmp_path / name), {}, 30)
        with DecoderPool(ImageSettings(), 2) as pool:
            ingest(source, plan, pending(plan), pool.process, memory=3 * 64 << 10, as_json=True)
        assert finish(plan).stored == 30
    assert files(tmp_path / "late") == files(tmp_path / "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "{tmp}/none", "--out", "{tmp}/out"], "{tmp}/none: no such folder"),
        (["folder", "{tmp}/file", "--out", "{tmp}/out"], "{tmp}/file: not a folder"),
        (["folder", "{tmp}/empty", "--out", "{tmp}/out"], "the input is empty: there is nothing to ingest"),
        (["folder", "{tmp}", "--out", "{tmp}/out"], "{tmp}/out: inside {tmp}, which is read"),
        (["folder", "{tmp}/empty", "--out", "{tmp}/file"], "{tmp}/file: cannot write there"),
        (["folder", "{tmp}/empty", "--out", "{tmp}/out", "--quality", "101"], "quality = 101"),
        (["folder", "{tmp}/empty", "--out", "{tmp}/out", "--unit", "0"], "unit = 0: at least 1"),
        (["urls", "{tmp}/none.txt", "--out", "{tmp}/out"], "{tmp}/none.txt: no such file"),
        (["urls", "{tmp}/blank.txt", "--out", "{tmp}/out"], "the input is empty"),
        (["urls", "{tmp}/list.csv", "--out", "{tmp}/out"], "no column 'url'; it has 'link'"),
        (["urls", "{tmp}/blank.txt", "--out", "{tmp}/out", "--allow-network", "home"], "'home'"),
        (["urls", "{tmp}/blank.txt", "--out", "gopher://x/y"], "no store is known for gopher://"),
        (["urls", "{tmp}/blank.txt", "--out", "ftp://127.0.0.1:9/y"], "ftp://127.0.0.1:9/y: no server answers: "),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "list.csv").write_text("link\n")
    run = seer_ingest(*(part.format(tmp=tmp_path) for part in arguments))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert message.format(tmp=tmp_path) in run.stderr
    assert run.stderr.count("\n") == 1


def test_two_at_once_in_one_place_are_one_too_many(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 1)
    with sole(open_store(tmp_path / "out")):
        run = seer_ingest("folder", folder, "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "another seer-ingest is at work there" in run.stderr


def test_real_images_go_through(tmp_path: Path, real_data: Path) -> None:
    with tarfile.open(real_data / "wild" / "web-photos.tar") as archive:
        archive.extractall(tmp_path / "in", filter="data")
    run = seer_ingest("folder", tmp_path / "in", "--out", tmp_path / "out", "--unit", 100, "--json")
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    assert summary["inputs"] == 384
    assert summary["stored"] + sum(summary["rejected"].values()) == 384
    assert summary["stored"] > 350
    shards = ShardSet.open(tmp_path / "out")
    with tarfile.open(fileobj=io.BytesIO(shards.store.get(shards.paths[0]))) as tar:
        assert tar.getnames() == [row["key"] + ".jpg" for row in shards.sidecar(0).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nasty/nasty.tar", "wild/web-photos.tar"])
def test_the_command_accounts_for_every_member_of_a_real_archive(tmp_path: Path, real_data: Path, name: str) -> None:
    out, archive = tmp_path / "out", real_data / name
    with tarfile.open(archive) as tar:
        members = [f"{archive.name}/{member.name}" for member in tar if not member.isdir()]
    command = [*COMMAND, "archive", str(archive), "--out", str(out), "--unit", "500", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    summary = json.loads(run.stdout)
    images = stored(out)
    reasons = [row for path in (out / "rejected").iterdir() for row in pq.read_table(path).to_pylist()]
    assert sorted(row["source"] for row in (*images, *reasons)) == sorted(members)
    assert (summary["inputs"], summary["stored"]) == (len(members), len(images))
    assert summary["rejected"] == Counter(Reason(row["reason"]) for row in reasons)
    shards = ShardSet.open(out)
    assert len(shards) == len(images) > 300
    for shard in range(len(shards.paths)):
        for row in shards.sidecar(shard).to_pylist():
            with Image.open(io.BytesIO(shards.read(shard, row))) as image:
                image.load()
                assert (image.format, image.size) == ("JPEG", (row["width"], row["height"]))


class Faulty(FolderSource):
    """A source with an error that nobody thought of."""

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        if row["source"] == "0003.jpg":
            raise KeyError("nobody thought of this")
        return await super().fetch(row, lease)


def test_an_unforeseen_error_costs_its_input_and_leaves_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = Faulty(fill(tmp_path / "in", 10), 1 << 20), tmp_path / "out"
    plan, _ = prepare(source, open_store(out), {}, 4)
    with DecoderPool(ImageSettings(), 1) as pool:
        ingest(source, plan, pending(plan), pool.process, memory=1 << 20, as_json=True)
    summary = finish(plan)
    assert (summary.stored, summary.rejected) == (9, {"internal": 1})
    assert rejected(out) == {"0003.jpg": "internal"}
    trace = (out / "errors" / "00000.txt").read_text()
    assert trace.startswith("0003.jpg\nTraceback")
    assert "KeyError: 'nobody thought of this'" in trace
    assert "internal error at 0003.jpg: KeyError" in capsys.readouterr().err
    assert [path.name for path in (out / "errors").iterdir()] == ["00000.txt"]
