"""The downloader against a loopback server that does what servers do."""

import asyncio
import gzip
import resource
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ingest.budget import Budget
from ingest.download import Downloader, DownloadSettings, seconds
from ingest.hosts import Host
from ingest.reasons import LaterError, Reason, UnfetchedError
from seer_pipe.errors import UserError
from tests.ingest.web import LOOPBACK, Web, bomb, jpeg

MAX_BYTES = 1 << 20


def fetch(
    *urls: str, getaddrinfo: Callable[..., Any] = socket.getaddrinfo, max_bytes: int = MAX_BYTES, **settings: Any
) -> list[bytes | Reason]:
    """The body of each URL, or why there is none; all at once."""
    settings = {"allow_network": LOOPBACK, "tries": 1, "total_timeout": 2.0} | settings

    async def one(downloader: Downloader, budget: Budget, url: str) -> bytes | Reason:
        while True:
            lease = await budget.admit()
            try:
                return await downloader.fetch(url, lease)
            except LaterError as error:
                await asyncio.sleep(error.seconds)
            except UnfetchedError as error:
                return error.reason
            finally:
                lease.release()

    async def run() -> list[bytes | Reason]:
        budget = Budget(64 << 20)
        async with Downloader(DownloadSettings(**settings), max_bytes, getaddrinfo) as downloader:
            found = await asyncio.gather(*(one(downloader, budget, url) for url in urls))
        assert budget.held == 0
        return found

    return asyncio.run(run())


def test_a_body_comes_as_it_is(server: Web) -> None:
    assert fetch(server.url("/jpeg/7"), server.url("/packed"), server.url("/jpeg/7#part")) == [
        jpeg(7),
        jpeg(2),
        jpeg(7),
    ]


def test_it_says_who_it_is(server: Web) -> None:
    (agent,) = fetch(server.url("/agent"), contact="https://example.org/why")
    assert agent == DownloadSettings(contact="https://example.org/why").user_agent.encode()
    assert b"seer-ingest/" in agent
    assert b"(+https://example.org/why)" in agent


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", Reason.HTTP_404_410),
        ("/status/410", Reason.HTTP_404_410),
        ("/status/403", Reason.HTTP_401_403),
        ("/status/451", Reason.HTTP_401_403),
        ("/status/418", Reason.HTTP_4XX),
        ("/status/500", Reason.HTTP_5XX),
        ("/status/204", Reason.HTTP_OTHER),
        ("/status/304", Reason.HTTP_OTHER),
        ("/later/1000", Reason.HTTP_429),
        ("/tag/1?value=noai", Reason.OPT_OUT),
        ("/tag/2?value=none", Reason.OPT_OUT),
        ("/tdm", Reason.OPT_OUT),
        ("/claims", Reason.TOO_LARGE),
        ("/endless", Reason.TOO_LARGE),
        ("/bomb", Reason.TOO_LARGE),
        ("/unknown", Reason.BAD_RESPONSE),
        ("/broken", Reason.CONNECT),
        ("/circle", Reason.TOO_MANY_REDIRECTS),
        ("/to?url=file:///etc/passwd", Reason.BAD_URL),
        ("/to?url=http://10.0.0.1/", Reason.BLOCKED_ADDRESS),
        ("/to?url=http://169.254.169.254/latest/meta-data/", Reason.BLOCKED_ADDRESS),
        ("/to?url=http://[::1]/", Reason.BLOCKED_ADDRESS),
        ("/silent", Reason.TIMEOUT),
        ("/drip", Reason.TIMEOUT),
    ],
)
def test_every_failure_has_its_reason(server: Web, path: str, reason: Reason) -> None:
    bomb()  # made before anything waits for it
    assert fetch(server.url(path)) == [reason]


def test_redirects_are_followed_within_bounds(server: Web) -> None:
    once = "/to?url=/jpeg/3"
    assert fetch(server.url(once), max_redirects=1) == [jpeg(3)]
    assert fetch(server.url(once), max_redirects=0) == [Reason.TOO_MANY_REDIRECTS]


NASTY = [
    "",
    "not a url",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "ftp://example.org/a.jpg",
    "javascript:alert(1)",
    "gopher://example.org/",
    "http://",
    "http:///a.jpg",
    "http://user:secret@127.0.0.1/a.jpg",
    "http://[]@/a.jpg",
    "http://[]/",
    "http://@/",
    "http://:80/",
    "http://\ud800/",
    "http://a/\ud800",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "http://exa mple.org/",
    "http://" + "a" * 70 + ".example/",
    "//127.0.0.1/a.jpg",
]


@pytest.mark.parametrize("url", NASTY)
def test_what_is_no_http_url_is_not_asked(url: str) -> None:
    assert fetch(url)[0] in (Reason.BAD_URL, Reason.DNS)


PRIVATE = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "①②⑦.⓪.⓪.①",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::]",
    "10.0.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "224.0.0.1",
    "127.0.0.1.",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_nothing_private_is_reached(server: Web, host: str) -> None:
    before = server.asked.total()
    (reason,) = fetch(f"http://{host}:{server.port}/jpeg/1", allow_network=())
    assert reason in (Reason.BLOCKED_ADDRESS, Reason.BAD_URL, Reason.DNS)
    assert server.asked.total() == before


def test_a_name_that_moves_to_a_private_address_is_refused(server: Web) -> None:
    """The address that was judged is the one that is connected to: what the name says later does not matter."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    asked = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    before = server.asked.total()
    url = f"http://rebind.example:{server.port}/jpeg/1"
    first = fetch(url, getaddrinfo=getaddrinfo, allow_network=(), connect_timeout=0.2, total_timeout=0.3)
    second = fetch(url, getaddrinfo=getaddrinfo, allow_network=())
    assert first[0] in (Reason.TIMEOUT, Reason.CONNECT)  # that address is not ours to ask
    assert second == [Reason.BLOCKED_ADDRESS]
    assert asked == ["rebind.example", "rebind.example"]
    assert server.asked.total() == before


def test_only_what_may_help_is_tried_again(server: Web) -> None:
    assert fetch(server.url("/flaky/1"), tries=2) == [jpeg(0)]
    assert server.asked["/flaky/1"] == 2
    server.asked["/status/404"] = server.asked["/status/500"] = 0
    assert fetch(server.url("/status/404"), server.url("/status/500"), tries=2) == [
        Reason.HTTP_404_410,
        Reason.HTTP_5XX,
    ]
    assert server.asked["/status/404"] == 1
    assert server.asked["/status/500"] == 2


def test_a_server_that_wants_long_to_pass_is_not_asked_again(server: Web) -> None:
    server.asked["/later/3600"] = 0
    assert fetch(server.url("/later/3600"), tries=3) == [Reason.HTTP_429]
    assert server.asked["/later/3600"] == 1


def test_no_more_connections_to_a_host_than_allowed(server: Web) -> None:
    host = "127.0.7.7"
    urls = [server.url(f"/slowly/{number}", host) for number in range(12)]
    assert fetch(*urls, per_host=3, total_timeout=10.0) == [jpeg(number) for number in range(12)]
    assert server.busiest[f"{host}:{server.port}"] <= 3


def test_a_host_without_any_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked now and then for as long as one is patient, and all its URLs are given up after that."""
    monkeypatch.setattr(Host, "PAUSE", (0.05, 0.2))
    accepted = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    async def serve() -> tuple[asyncio.Server, str]:
        listening = await asyncio.start_server(hang_up, "127.0.8.8", 0)
        return listening, f"http://127.0.8.8:{listening.sockets[0].getsockname()[1]}/"

    with running(serve) as url:
        found = fetch(*(f"{url}{number}" for number in range(60)), tries=3, per_host=1, patience=1.5)
    assert found == [Reason.CONNECT] * 60
    assert Host.OPENS <= accepted <= 2 * 30  # the client itself asks again once when hung up on


@pytest.mark.parametrize("tries", [1, 3])
def test_a_url_that_fails_alone_uses_up_its_tries(server: Web, tries: int) -> None:
    """The host answers others, so the failure is the URL's own, and nothing waits for it."""
    server.asked["/broken"] = 0
    urls = [server.url("/broken"), *(server.url(f"/slowly/{number}") for number in range(40))]
    found = fetch(*urls, tries=tries, patience=2.0)
    assert found == [Reason.CONNECT, *(jpeg(number) for number in range(40))]
    assert server.asked["/broken"] >= tries


@contextmanager
def running(serve: Callable[[], Awaitable[tuple[asyncio.Server, str]]]) -> Iterator[str]:
    """What ``serve`` starts, in a loop and thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening, url = asyncio.run_coroutine_threadsafe(serve(), loop).result()
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_opt_outs_and_blocklist_are_settings(server: Web, tmp_path: Any) -> None:
    assert fetch(server.url("/tag/3?value=noai"), opt_out=("noindex",)) == [jpeg(1)]
    blocked = tmp_path / "block.txt"
    blocked.write_text("127.0.9.9\n")
    urls = server.url("/jpeg/1", "127.0.9.9"), server.url("/to?url=http://127.0.9.9/x"), server.url("/jpeg/1")
    assert fetch(*urls, blocklist=blocked) == [Reason.BLOCKED_HOST, Reason.BLOCKED_HOST, jpeg(1)]


def test_bombs_stay_small_in_memory(server: Web) -> None:
    fetch(server.url("/jpeg/1"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fetch(server.url("/bomb"), server.url("/endless"), max_bytes=4 << 20) == [Reason.TOO_LARGE] * 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_retry_after_is_a_number_or_a_date() -> None:
    assert seconds("7") == 7
    assert seconds("-7") == 0
    assert seconds("soon") == seconds("") == 0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < seconds(date) <= 100
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("zone", ["+99999999999999", "-9999999999999999999999", "+2400"])
def test_a_date_that_no_calendar_has_says_nothing(zone: str) -> None:
    assert seconds(f"Wed, 21 Oct 2015 07:28:00 {zone}") == 0


def raw(answers: dict[str, bytes]) -> Callable[[], Awaitable[tuple[asyncio.Server, str]]]:
    """A server that sends these bytes for these paths, and 403 for all others."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split(b" ")[1].decode("latin-1")
        writer.write(answers.get(path, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"))
        await writer.drain()
        writer.close()

    async def serve() -> tuple[asyncio.Server, str]:
        listening = await asyncio.start_server(answer, "127.0.8.9", 0, limit=1 << 20)
        return listening, f"http://127.0.8.9:{listening.sockets[0].getsockname()[1]}"

    return serve


def answer(body: bytes, *fields: str, status: str = "HTTP/1.1 200 OK", length: bool = True) -> bytes:
    fields = (f"Content-Length: {len(body)}", *fields) if length else fields
    return "\r\n".join([status, *fields, "", ""]).encode("latin-1") + body


QUOTED = {
    "/w_100%2Ch_100/a.jpg": "/w_100%2Ch_100/a.jpg",
    "/fetch/https%3A%2F%2Fbucket.example%2Fp.jpg": "/fetch/https%3A%2F%2Fbucket.example%2Fp.jpg",
    "/a%28b%29%27.jpg": "/a%28b%29%27.jpg",
    "/x.jpg?Signature=ab%2Fcd%2Bef%3D&b=c+d": "/x.jpg?Signature=ab%2Fcd%2Bef%3D&b=c+d",
    "/y.jpg?u=http%3A%2F%2Fh%2Fp.jpg": "/y.jpg?u=http%3A%2F%2Fh%2Fp.jpg",
    "/é x/日.jpg?q=é": "/%C3%A9%20x/%E6%97%A5.jpg?q=%C3%A9",
    "/100%.jpg": "/100%.jpg",
    "/a|b[1]~;,=.jpg": "/a|b[1]~;,=.jpg",
    "/a/./b/../c//d.jpg": "/a/c//d.jpg",
    "?only=query": "/?only=query",
}


def test_a_url_is_asked_for_as_it_stands() -> None:
    answers = {path: answer(path.encode() * 20) for path in QUOTED.values()}
    with running(raw(answers)) as site:
        assert fetch(*(site + path for path in QUOTED)) == [path.encode() * 20 for path in QUOTED.values()]
        moved = {"/moved": answer(b"", "Location: fetch/..;/%2C é.jpg", status="HTTP/1.1 302 Found")}
    with running(raw(moved | {"/fetch/..;/%2C%20%E9.jpg": answer(jpeg(1))})) as site:
        assert fetch(site + "/moved") == [jpeg(1)]


def deflated(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    return packer.compress(data) + packer.flush()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


J = jpeg(5)
LENIENT = {
    "a long field": answer(J, "Content-Security-Policy: " + "https://cdn.example " * 5000),
    "many fields": answer(J, *(f"X-{number}: y" for number in range(1000))),
    "aws-chunked": answer(J, "Content-Encoding: aws-chunked"),
    "none": answer(J, "Content-Encoding: none"),
    "utf-8": answer(J, "Content-Encoding: UTF-8"),
    "said to be gzip": answer(J, "Content-Encoding: gzip"),
    "said to be br": answer(J, "Content-Encoding: br"),
    "zlib": answer(deflated(J, 15), "Content-Encoding: deflate"),
    "raw deflate": answer(deflated(J, -15), "Content-Encoding: deflate"),
    "gzip called deflate": answer(gzip.compress(J), "Content-Encoding: deflate"),
    "twice": answer(gzip.compress(deflated(J, 15)), "Content-Encoding: deflate, gzip"),
    "length twice": answer(J, f"content-length: {len(J)}"),
    "length twice in one": answer(J, f"Content-Length: {len(J)}, {len(J)}", length=False),
    "length and chunks": answer(chunked(J), f"Content-Length: {len(J)}", "Transfer-Encoding: chunked", length=False),
    "space before a colon": answer(J, "X-Foo : bar"),
    "a line without a colon": answer(J, "nonsense"),
    "a folded line": answer(J, "X-Foo: bar\r\n baz"),
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + answer(J),
    "until the end": answer(J, length=False),
    "line feeds alone": answer(b"").replace(b"\r", b"").replace(b": 0", b": %d" % len(J)) + J,
}


def test_answers_are_read_as_browsers_read_them() -> None:
    answers = {f"/{number}": data for number, data in enumerate(LENIENT.values())}
    with running(raw(answers)) as site:
        found = fetch(*(site + path for path in answers))
    assert [name for name, body in zip(LENIENT, found, strict=True) if body != J] == []


@pytest.mark.parametrize(
    "data",
    [
        answer(J, f"Content-Length: {len(J) - 1}"),
        answer(deflated(J, 15)[:-20] + b"xxxxx", "Content-Encoding: gzip"),
        answer(b"\x1f\x8b" + b"x" * 50, "Content-Encoding: gzip"),
        b"SSH-2.0-OpenSSH_9.2\r\n" * 10,
        b"HTTP/1.1 abc\r\n\r\n",
    ],
)
def test_answers_that_contradict_themselves_are_refused(data: bytes) -> None:
    with running(raw({"/": data})) as site:
        (found,) = fetch(site)
    assert found in (Reason.BAD_RESPONSE, Reason.CONNECT) or (isinstance(found, bytes) and found != J)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="connections"):
        DownloadSettings(connections=0)
