"""Servers that are killed and come back, at any moment of a run: no URL is lost by it."""

import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ingest.helpers import COMMAND, rejected, stored, until

SERVER = """
import socket, sys, threading, time
sys.path.insert(0, {root!r})
from tests.ingest.web import jpeg
def one(connection):
    try:
        while True:
            request = b""
            while b"\\r\\n\\r\\n" not in request:
                if not (part := connection.recv(65536)):
                    return
                request += part
            body = jpeg(int(request.split()[1][1:]))
            time.sleep(0.02)
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
            connection.sendall(head + body[:500])
            time.sleep(0.01)
            connection.sendall(body[500:])
    except OSError:
        pass
with socket.create_server(("127.0.8.10", {port}), backlog=300) as listening:
    while True:
        threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()
"""


class Server:
    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.8.10", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen([sys.executable, "-c", SERVER.format(root=root, port=self.port)])
        until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.8.10", self.port)) == 0


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_costs_no_url(tmp_path: Path) -> None:
    times = 12
    server, draw, count = Server(), random.Random(times), 150 * times
    urls = [f"http://127.0.8.10:{server.port}/{number}" for number in range(count)]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    command = [*COMMAND, "urls", str(tmp_path / "list.txt"), "--out", str(tmp_path / "out"), "--unit", "100"]
    run = subprocess.Popen([*command, "--allow-network", "127.0.0.0/8", "--workers", "1"], stderr=subprocess.PIPE)
    try:
        for number in range(times):  # it is away when the run begins, too, until that has asked for all
            time.sleep(draw.uniform(0.2, 1.0) if number else 4.0)
            server.start()
            time.sleep(draw.uniform(0.3, 1.5))
            server.kill()
        server.start()
        _, said = run.communicate(timeout=300)
    finally:
        run.kill()
        server.kill()
    assert run.returncode == 0, said
    assert rejected(tmp_path / "out") == {}
    assert [row["source"] for row in stored(tmp_path / "out")] == urls
