"""A small web on loopback: pictures of a few kinds, among everything that goes wrong on the real one."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from seer_pipe.quickstart.draw import KINDS, picture

ORIENTATION = 0x0112  # EXIF tag
TURNED_LEFT = 6  # EXIF: the picture is stored on its side


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


@dataclass
class Web:
    """``pages``: path to answer. ``kinds``: path to kind, of what is a good picture, for the evaluation alone."""

    pages: dict[str, Answer] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def draw_web(seed: int, pictures_per_kind: int = 75) -> Web:
    """The same web for the same seed."""
    web = Web()
    rng = np.random.default_rng(seed)
    good = [(kind, number) for number in range(pictures_per_kind) for kind in KINDS]
    for kind, number in good:
        _add_picture(web, rng, kind, number, picture(kind, seed * 10_000 + number))
    paths = list(web.pages)
    for number in range(len(good) // 25):  # each of the bad things one for 25 good pictures
        original, again = str(rng.choice(paths)), f"/again/{number}.jpg"
        web.pages[again], web.kinds[again] = web.pages[original], web.kinds[original]
        whole = _encode(picture("clouds", seed * 10_000 + 5000 + number), "JPEG")
        web.pages[f"/cut/{number}.jpg"] = Answer(200, "image/jpeg", whole[: len(whole) // 2])
        web.pages[f"/gone/{number}.jpg"] = Answer(404, "text/html", b"<h1>Not found</h1>")
        web.pages[f"/login/{number}.jpg"] = Answer(200, "text/html", b"<html><body>Please log in</body></html>")
        pixel = _encode(picture("dots", seed * 10_000 + 6000 + number).resize((8, 8)), "PNG")
        web.pages[f"/pixel/{number}.png"] = Answer(200, "image/png", pixel)
    return web


def _add_picture(web: Web, rng: np.random.Generator, kind: str, number: int, image: Image.Image) -> None:
    """Most as JPEG; some in other formats, under a wrong name, or on their side with an EXIF note."""
    dice = rng.uniform()
    name, suffix, content, exif = "JPEG", "jpg", "image/jpeg", None
    if dice < 0.04:
        name, suffix, content = "PNG", "png", "image/png"
    elif dice < 0.08:
        name, suffix, content = "WEBP", "webp", "image/webp"
    elif dice < 0.10:
        name, suffix, content = "GIF", "gif", "image/gif"
    elif dice < 0.14:
        name = "PNG"  # named and announced as JPEG
    elif dice < 0.20:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[ORIENTATION] = TURNED_LEFT
    path = f"/{number % 7}/{kind[0]}{number}-{int(rng.integers(1 << 30)):x}.{suffix}"
    web.pages[path] = Answer(200, content, _encode(image, name, exif))
    web.kinds[path] = kind


def _encode(image: Image.Image, name: str, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, object] = {"quality": 85} if name in ("JPEG", "WEBP") else {}
    image.save(buffer, name, **options, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


@contextmanager
def serve(web: Web) -> Iterator[str]:
    """Serve on a free loopback port; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = web.pages.get(self.path, Answer(404, "text/plain", b""))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_lists(web: Web, address: str, urls: Path, labels: Path) -> None:
    """The URL list in an order that reveals nothing, with some names that do not resolve; and the kinds, apart."""
    rng = np.random.default_rng(len(web.pages))
    listed = [address + path for path in web.pages] + [f"http://host-{n}.invalid/x.jpg" for n in range(5)]
    rng.shuffle(listed)
    urls.write_text("".join(f"{url}\n" for url in listed))
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "label"])
        writer.writerows((address + path, kind) for path, kind in web.kinds.items())
