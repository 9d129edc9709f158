"""The pool of decoding processes, with processors that really crash, hang and fill the memory."""

import asyncio
import io
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ingest.image import BadImage, ImageSettings, process
from ingest.reasons import Reason
from ingest.workers import WAITING, DecoderPool
from seer_pipe.errors import UserError

SETTINGS = ImageSettings(min_side=1)
HERE = Path(__file__).parent


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.syspath_prepend(HERE)
    import hostile

    return hostile.hostile


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def gone(pid: int) -> bool:
    """Whether a process has ended (what nobody has waited for yet has ended as well)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_pool_makes_what_process_makes() -> None:
    images = [png(seed) for seed in range(20)]
    with DecoderPool(SETTINGS, workers=2) as pool:
        futures = [pool.submit(image) for image in [*images, b"no image"]]
        assert [future.result() for future in futures[:-1]] == [process(image, SETTINGS) for image in images]
        with pytest.raises(BadImage) as caught:
            futures[-1].result()
    assert caught.value.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"segfault", Reason.DECODER_CRASH, "SIGSEGV"),
        (b"abort", Reason.DECODER_CRASH, "SIGABRT"),
        (b"exit", Reason.DECODER_CRASH, "exit code 3"),
        (b"exception", Reason.DECODER_CRASH, "exit code 1"),
        (b"hang", Reason.DECODER_TIMEOUT, "5 s"),
    ],
)
def test_what_kills_a_worker_costs_its_own_image_alone(
    hostile: Callable, data: bytes, reason: Reason, detail: str
) -> None:
    good = png(0)
    with DecoderPool(SETTINGS, workers=1, timeout=5, processor=hostile) as pool:
        futures = [pool.submit(item) for item in (good, data, good)]
        expected = process(good, SETTINGS)
        assert futures[0].result() == futures[2].result() == expected
        with pytest.raises(BadImage) as caught:
            futures[1].result()
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_memory_of_a_worker_is_limited() -> None:
    settings = ImageSettings(min_side=1)
    large = io.BytesIO()
    Image.new("RGB", (10_000, 6_000)).save(large, "PNG")
    with DecoderPool(settings, workers=1, memory_limit=256 << 20) as pool:
        futures = [pool.submit(large.getvalue()), pool.submit(png(1))]
        with pytest.raises(BadImage) as caught:
            futures[0].result()
        assert futures[1].result().width == 40
    assert caught.value.reason is Reason.DECODER_MEMORY


def test_awaited_from_an_event_loop_that_goes_on(hostile: Callable, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    async def run() -> list:
        with DecoderPool(SETTINGS, workers=1, processor=hostile) as pool:
            # many more than the pool takes at once: submitting them must not block the loop, or nobody sets the flag
            tasks = [asyncio.create_task(pool.process(b"wait for " + bytes(flag))) for _ in range(20)]
            await asyncio.sleep(0.1)
            flag.touch()
            return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == 20


def test_what_is_in_flight_is_bounded(hostile: Callable, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    submitted = []

    def submit_all() -> None:
        for _ in range(10):
            submitted.append(pool.submit(b"wait for " + bytes(flag)))

    with DecoderPool(SETTINGS, workers=1, processor=hostile) as pool:
        thread = threading.Thread(target=submit_all)
        thread.start()
        assert eventually(lambda: len(submitted) == 1 + WAITING)
        thread.join(0.2)
        assert len(submitted) == 1 + WAITING
        flag.touch()
        thread.join()
        assert len([future.result() for future in submitted]) == 10


def test_closing_ends_the_workers_and_cancelling_drops_what_waits(hostile: Callable, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    pool = DecoderPool(SETTINGS, workers=1, processor=hostile)
    futures = [pool.submit(b"wait for " + bytes(flag)) for _ in range(3)]
    assert eventually(futures[0].running)
    threading.Timer(0.2, flag.touch).start()
    pool.close(cancel=True)
    worker = int(futures[0].result().jpeg)
    assert futures[1].cancelled()
    assert futures[2].cancelled()
    assert gone(worker)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(b"")


@pytest.mark.parametrize("busy", [False, True])
def test_no_worker_outlives_a_killed_parent(tmp_path: Path, busy: bool) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import sys, time
            sys.path.insert(0, {str(HERE)!r})
            from hostile import hostile
            from ingest.workers import DecoderPool, ImageSettings
            pool = DecoderPool(ImageSettings(), workers=1, processor=hostile)
            print(pool.submit(b"wait for {flag}").result().jpeg.decode(), flush=True)
            if {busy}:
                pool.submit(b"hang")
            time.sleep(0.2)
            print("waiting", flush=True)
            time.sleep(3600)
        """),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.stdout.readline()
        assert not gone(worker)
        parent.kill()
    assert eventually(lambda: gone(worker))


def test_a_pool_that_cannot_start_says_so_instead_of_blaming_images(hostile: Callable) -> None:
    import hostile as module

    function = module.unimportable
    function.__module__ = "os"  # pickled by name, as os.unimportable
    os.unimportable = function  # type: ignore[attr-defined]
    try:
        pool = DecoderPool(SETTINGS, workers=1, processor=function)  # type: ignore[arg-type]
    finally:
        del os.unimportable  # type: ignore[attr-defined]
    with pool, pytest.raises(ChildProcessError, match="did not start"):
        pool.submit(png(0)).result()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout": 0}, {"memory_limit": 1}])
def test_settings_out_of_range_are_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        DecoderPool(SETTINGS, **wrong)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert eventually(lambda: threading.active_count() <= before)
