"""Ingest side by side with img2dataset, in one run, on one loopback web.

    python -P benchmarks/ingest.py --data ../shared/data [--peer PYTHON]... [--parts http https files many]

(-P: this file has the name of the package that it measures.)

The web is a process of its own: 100 loopback addresses, http and https, real photographs, and the outcomes of a real
crawl (dead links, refusals, slow answers, server errors, pages instead of images). ``--peer`` is a Python in whose
environment ``img2dataset==1.47.0`` is installed (it needs 3.10 to 3.12); give it more than once to compare versions.
``files`` holds folder and archive against the least that could be done with the same photographs, and ``many`` watches
memory over 100,000 URLs.

CPU time is that of the client with all its processes, and the figure to trust: by the clock, client and server share
the cores. Memory is the peak over time of the sum over the client's processes (PSS), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import hashlib
import io
import multiprocessing
import os
import random
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from ingest.image import BadImage, ImageSettings, process

PARTS = ["http", "https", "files", "many"]
MANY = 100_000  # URLs
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")  # of Debian and Ubuntu
HOSTS = [f"127.0.1.{number}" for number in range(1, 101)]
RESIZED = {
    "ours": ["--short-side", "256", "--quality", "95", "--reencode", "always"],
    "peer": ["--image_size", "256", "--resize_mode", "keep_ratio", "--resize_only_if_bigger", "True"],
}
KEPT = {"ours": [], "peer": ["--image_size", "256"]}  # ours by default, and theirs
SEER_INGEST = str(Path(sys.executable).with_name("seer-ingest"))
TIMEOUT = 3  # seconds; a slow answer takes longer


@dataclass(frozen=True)
class Page:
    status: int
    body: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with wild/, imagenette160/ and urls/")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="a Python that has img2dataset")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--urls", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    photos, small = images(arguments.data)
    pages = crawl(arguments.data, photos, small, arguments.urls)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        with web(pages, work) as ports:
            print(f"{len(pages)} URLs, {sum(is_image(page) for page in pages)} of them images\n")
            print(Run.HEADER)
            for scheme in [part for part in ("http", "https") if part in arguments.parts]:
                urls = listed(work, scheme, ports, len(pages))
                for what, settings in (("resized to 256", RESIZED), ("by default", KEPT)):
                    compare(work, urls, f"{scheme}, {what}", settings, arguments.peer, arguments.rounds)
            if "many" in arguments.parts:
                flat(work, ports)
        if "files" in arguments.parts:
            local(work, photos)


def images(data: Path) -> tuple[list[bytes], list[bytes]]:
    """Photographs as the web serves them, and small pictures."""
    found = []
    for name in ("wild/web-photos.tar", "imagenette160/train-0.tar"):
        with tarfile.open(data / name) as tar:
            found.append([tar.extractfile(member).read() for member in tar if member.isfile()])  # type: ignore[union-attr]
    return found[0], found[1]


def crawl(data: Path, photos: list[bytes], small: list[bytes], count: int) -> list[Page]:
    """Pages with the outcomes of a real crawl; three images of four are photographs, and no two are alike."""
    draw = random.Random(0)
    with gzip.open(data / "urls" / "cc-validation-crawl.tsv.gz", "rt") as file:
        outcomes = draw.sample(list(csv.DictReader(file, delimiter="\t")), count)
    pages, used = [], 0
    for row in outcomes:
        status = int(row["status"]) if row["status"].isdecimal() else 502
        if status != 200:
            body = b"<html>no</html>"
        elif not row["mimetype"].startswith("image/"):
            body = b"<html>" + bytes(20_000)
        else:
            pool = photos if used % 4 else small
            body = variant(pool[used % len(pool)], used // len(pool))
            used += 1
        pages.append(Page(status, body))
    return pages


def variant(image: bytes, number: int) -> bytes:
    """A JPEG without its last ``number`` rows; what is no JPEG as it is."""
    if number == 0 or not image.startswith(b"\xff\xd8"):
        return image
    try:
        pixels = simplejpeg.decode_jpeg(image)
    except ValueError:
        return image
    if len(pixels) <= 8 * number:
        return image
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[: -8 * number]), quality=85))


def renewed(body: bytes, number: int) -> bytes:
    """The same JPEG with other high frequencies in its quantisation table, so that it is no duplicate."""
    table = body.find(b"\xff\xdb")
    if number == 0 or table < 0:
        return body
    last = table + 5 + 64  # of 64 coefficients after the marker, the length and the table's number
    return body[: last - 2] + bytes([1 + number % 255, 1 + number // 255]) + body[last:]


def is_image(page: Page) -> bool:
    return page.status == 200 and not page.body.startswith(b"<html>")


@contextmanager
def web(pages: list[Page], work: Path) -> Iterator[dict[str, int]]:
    """Serve ``pages`` under http and https; the ports."""
    names = ",".join(f"IP:{host}" for host in HOSTS)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(work / "key.pem"), "-out", str(work / "cert.pem"), "-addext", f"subjectAltName={names}"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    # with the authorities of the system, as on the real web: to load these is what costs a client that does it often
    (work / "trusted.pem").write_bytes(AUTHORITIES.read_bytes() + (work / "cert.pem").read_bytes())
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=serve, args=(pages, work, send), daemon=True)
    process.start()
    yield receive.recv()
    process.terminate()
    process.join()


def serve(pages: list[Page], work: Path, ready: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(work / "cert.pem", work / "key.pem")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ports = {}
        for scheme in ("http", "https"):
            tls = context if scheme == "https" else None
            server = await loop.create_server(lambda: Answer(pages), "0.0.0.0", 0, ssl=tls, backlog=4096)
            ports[scheme] = server.sockets[0].getsockname()[1]
        ready.send(ports)
        await asyncio.Event().wait()

    asyncio.run(run())


class Answer(asyncio.Protocol):
    """The least that is HTTP: /NUMBER gives that page; after the last, the first in another guise, and so on."""

    def __init__(self, pages: list[Page]) -> None:
        self._pages, self._asked = pages, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        while b"\r\n\r\n" in self._asked:
            request, _, self._asked = self._asked.partition(b"\r\n\r\n")
            again, number = divmod(int(request.split(b" ", 2)[1][1:]), len(self._pages))
            page = self._pages[number]
            page = Page(page.status, renewed(page.body, again))
            wait = 2 * TIMEOUT if page.status == 408 else 0
            asyncio.get_running_loop().call_later(wait, self._send, page, b"onnection: close" in request)

    def _send(self, page: Page, last: bool) -> None:
        end = b"close" if last else b"keep-alive"
        head = b"HTTP/1.1 %d X\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n"
        self._transport.write(head % (page.status, len(page.body), end) + page.body)
        if last:
            self._transport.close()


def listed(work: Path, scheme: str, ports: dict[str, int], count: int) -> Path:
    path = work / f"{scheme}-{count}.txt"
    urls = (f"{scheme}://{HOSTS[number % len(HOSTS)]}:{ports[scheme]}/{number}\n" for number in range(count))
    path.write_text("".join(urls))
    return path


@dataclass(frozen=True)
class Run:
    """What one client took."""

    HEADER = f"{'':42}{'images':>8}{'images/s':>10}{'CPU ms/image':>14}{'peak MB':>9}{'MB out':>8}"
    stored: int
    seconds: float
    cpu: float  # seconds
    memory: list[float]  # bytes, over time
    size: int  # bytes

    def line(self, name: str) -> str:
        rate, each = self.stored / self.seconds, 1e3 * self.cpu / max(1, self.stored)
        return f"{name:42}{self.stored:8}{rate:10.1f}{each:14.2f}{max(self.memory) / 1e6:9.0f}{self.size / 1e6:8.0f}"


def compare(work: Path, urls: Path, title: str, settings: dict[str, list[str]], peers: list[Path], rounds: int) -> None:
    """Both clients in turns; the median of each."""
    clients: dict[str, Callable[[Path], list[str]]] = {
        "seer-ingest": lambda out: [
            *(SEER_INGEST, "urls", str(urls), "--out", str(out)),
            *("--unit", "1000", "--workers", "2", "--min-side", "1", "--max-aspect", "1000", "--tries", "1"),
            *("--allow-network", "127.0.0.0/8", "--total-timeout", str(TIMEOUT), *settings["ours"]),
        ]
    }
    for peer in peers:
        version = subprocess.run([peer, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        clients[f"img2dataset, Python {version.stdout.decode().strip()}"] = lambda out, peer=peer: [  # type: ignore[misc]
            *(str(peer), "-m", "img2dataset.main", "--url_list", str(urls), "--input_format", "txt"),
            *("--output_folder", str(out), "--output_format", "webdataset", "--encode_quality", "95"),
            *("--processes_count", "2", "--thread_count", "32", "--number_sample_per_shard", "1000"),
            *("--timeout", str(TIMEOUT), "--retries", "0", *settings["peer"]),
        ]
    runs: dict[str, list[Run]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, command in clients.items():
            out = work / "out"
            runs[name].append(measured(command(out), out, work))
            shutil.rmtree(out)
    print(title)
    for name, found in runs.items():
        print(sorted(found, key=lambda run: run.cpu)[len(found) // 2].line(f"  {name}"), flush=True)


def measured(command: list[str], out: Path, work: Path) -> Run:
    environment = os.environ | {
        "SSL_CERT_FILE": str(work / "trusted.pem"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "OMP_NUM_THREADS": "1",
    }
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        peak = Peak(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read().decode()[-2000:]}")
    stored = size = 0
    for path in out.rglob("*.tar"):
        size += path.stat().st_size
        with tarfile.open(path) as tar:
            stored += sum(name.endswith(".jpg") for name in tar.getnames())
    return Run(stored, seconds, usage.ru_utime + usage.ru_stime, peak.stop(), size)


class Peak(threading.Thread):
    """Watches the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.seen: list[float] = []  # bytes
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.seen.append(sum(map(self._pss, self._tree(self._pid))))

    def stop(self) -> list[float]:
        self._over.set()
        self.join()
        return self.seen

    def _tree(self, pid: int) -> Iterator[int]:
        yield pid
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = task.read_text().split()
            except OSError:
                continue
            for child in children:
                yield from self._tree(int(child))

    def _pss(self, pid: int) -> float:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def flat(work: Path, ports: dict[str, int]) -> None:
    """Memory over very many URLs."""
    urls, out = listed(work, "http", ports, MANY), work / "out"
    command = [SEER_INGEST, "urls", str(urls), "--out", str(out)]
    settings = ["--workers", "2", "--tries", "1", "--allow-network", "127.0.0.0/8", "--total-timeout", str(TIMEOUT)]
    run = measured([*command, *settings], out, work)
    shutil.rmtree(out)
    print(run.line(f"{MANY} URLs"))
    parts = [part.max() for part in np.array_split(run.memory, 10)]
    print("peak MB in each tenth of the time: " + " ".join(f"{part / 1e6:.0f}" for part in parts) + "\n")


def local(work: Path, photos: list[bytes]) -> None:
    """A folder and an archive against the least that could be done with the same files."""
    folder = work / "folder"
    folder.mkdir()
    for number in range(24):
        for place, photo in enumerate(photos):
            (folder / f"{number}-{place:04d}.jpg").write_bytes(variant(photo, number))
    with tarfile.open(work / "archive.tar", "w") as tar:
        tar.add(folder, "images")
    count = len(list(folder.iterdir()))
    print(f"{f'{count} photographs, kept as they are':46}{'images/s':>10}{'CPU ms/image':>14}")

    def line(name: str, seconds: float, cpu: float) -> None:
        print(f"  {name:44}{count / seconds:10.0f}{1e3 * cpu / count:14.2f}", flush=True)

    for check in (False, True):
        started, cpu = time.perf_counter(), time.process_time()
        with tarfile.open(work / "bare.tar", "w") as tar:
            for path in sorted(folder.iterdir()):
                data = path.read_bytes()
                hashlib.sha256(data)
                if check:
                    try:
                        process(data, ImageSettings())
                    except BadImage:
                        continue
                info = tarfile.TarInfo(path.name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        name = "read, check each image, hash, write a tar" if check else "read, hash, write a tar"
        line(name, time.perf_counter() - started, time.process_time() - cpu)
    for verb, path in (("folder", folder), ("archive", work / "archive.tar")):
        out = work / "out"
        run = measured([SEER_INGEST, verb, str(path), "--out", str(out), "--workers", "2"], out, work)
        shutil.rmtree(out)
        line(f"seer-ingest {verb}, 2 workers", run.seconds, run.cpu)


if __name__ == "__main__":
    main()
