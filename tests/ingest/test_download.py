"""The downloader against a loopback server that does what servers do."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from ingest.budget import Budget
from ingest.download import Downloader, DownloadSettings, seconds
from ingest.reasons import Reason
from ingest.sources import UnfetchedError
from seer_pipe.errors import UserError
from tests.ingest.web import LOOPBACK, Web, jpeg

MAX_BYTES = 1 << 20


def fetch(
    *urls: str, getaddrinfo: Callable[..., Any] = socket.getaddrinfo, max_bytes: int = MAX_BYTES, **settings: Any
) -> list[bytes | Reason]:
    """The body of each URL, or why there is none; all at once."""
    settings = {"allow_network": LOOPBACK, "tries": 1, "total_timeout": 2.0} | settings

    async def one(downloader: Downloader, budget: Budget, url: str) -> bytes | Reason:
        lease = await budget.admit()
        try:
            return await downloader.fetch(url, lease)
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
    server.asked["/status/404"] = server.asked["/status/503"] = 0
    assert fetch(server.url("/status/404"), server.url("/status/503"), tries=2) == [
        Reason.HTTP_404_410,
        Reason.HTTP_5XX,
    ]
    assert server.asked["/status/404"] == 1
    assert server.asked["/status/503"] == 2


def test_a_server_that_wants_long_to_pass_is_not_asked_again(server: Web) -> None:
    server.asked["/later/3600"] = 0
    assert fetch(server.url("/later/3600"), tries=3) == [Reason.HTTP_429]
    assert server.asked["/later/3600"] == 1


def test_no_more_connections_to_a_host_than_allowed(server: Web) -> None:
    host = "127.0.7.7"
    urls = [server.url(f"/slowly/{number}", host) for number in range(12)]
    assert fetch(*urls, per_host=3, total_timeout=10.0) == [jpeg(number) for number in range(12)]
    assert server.busiest[f"{host}:{server.port}"] <= 3


def test_a_host_without_any_answer_is_given_up() -> None:
    accepted = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    async def run() -> list[Reason]:
        async with await asyncio.start_server(hang_up, "127.0.8.8", 0) as listening:
            url = f"http://127.0.8.8:{listening.sockets[0].getsockname()[1]}/"
            settings = DownloadSettings(allow_network=LOOPBACK, tries=1, per_host=1)
            async with Downloader(settings, MAX_BYTES) as downloader:
                lease = await Budget(1 << 20).admit()
                found = await asyncio.gather(
                    *(downloader.fetch(f"{url}{number}", lease) for number in range(60)), return_exceptions=True
                )
        return [error.reason for error in found if isinstance(error, UnfetchedError)]

    assert asyncio.run(run()) == [Reason.CONNECT] * 60
    assert accepted <= 2 * Downloader.GIVE_UP  # the client itself asks again once when hung up on


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


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="connections"):
        DownloadSettings(connections=0)
