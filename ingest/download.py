"""Fetching one URL after another, politely, within bounds, and never from where it must not."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import random
import resource
import socket
import ssl
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import aiohttp
from yarl import URL

from ingest.blocklist import Blocklist
from ingest.budget import Lease
from ingest.etiquette import AGENT, OPT_OUTS, directives
from ingest.guard import AddressGuard, BlockedAddressError, GuardedResolver
from ingest.hosts import AttemptError, Host, Hosts
from ingest.lenient import LONGEST_HEAD, LenientConnector, decoder
from ingest.reasons import LaterError, Reason, UnfetchedError
from ingest.robots import LONGEST, Rules
from ingest.url import parse
from seer_pipe.errors import UserError

# asyncio keeps a buffer of this size for every TLS connection, 256 KiB by default; a TLS record has 16
asyncio.sslproto.SSLProtocol.max_size = 32 << 10
REDIRECTS = (301, 302, 303, 307, 308)
T = TypeVar("T")


@dataclass(frozen=True)
class DownloadSettings:
    """How to ask. The times are for each hop of each try. The notes are the help of the command line."""

    connections: Annotated[int, "connections at once"] = 256
    per_host: Annotated[int, "connections at once to one host"] = 8
    host_rate: Annotated[float, "requests per second to one host; 0: as many as its connections allow"] = 0.0
    connect_timeout: Annotated[float, "seconds to connect"] = 10.0
    read_timeout: Annotated[float, "seconds without a byte"] = 20.0
    total_timeout: Annotated[float, "seconds for a whole answer"] = 60.0
    tries: Annotated[int, "tries, where another one may help"] = 3
    patience: Annotated[float, "seconds that a host which is away is waited for"] = 60.0
    max_redirects: Annotated[int, "redirects followed"] = 5
    contact: Annotated[str, "a URL or mail address under which sites can reach you; sent in the user agent"] = ""
    opt_out: Annotated[tuple[str, ...], "directives of X-Robots-Tag that keep an image out"] = OPT_OUTS
    allow_network: Annotated[tuple[str, ...], "address range (CIDR) to allow though not global"] = ()
    robots: Annotated[bool, "ask each site for its robots.txt first, and keep to it"] = False
    blocklist: Annotated[Path | None, "file with hosts and URL patterns that are not asked, one per line"] = None

    def __post_init__(self) -> None:
        for name in ("connections", "per_host", "connect_timeout", "read_timeout", "total_timeout", "tries"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} = {getattr(self, name)}: more than 0")
        if self.max_redirects < 0 or self.host_rate < 0 or self.patience < 0:
            raise UserError("max_redirects, host_rate and patience: at least 0")

    @property
    def user_agent(self) -> str:
        return f"{AGENT}/{version('seer-pipe')}" + (f" (+{self.contact})" if self.contact else "")


@dataclass
class Tried:
    """What became of the tries for a URL that is to be tried again."""

    first: float  # when the first one failed
    failed: int = 0  # tries
    counted: int = 0  # of these, not those of a host that answered nobody


class Downloader:
    """Use as ``async with``. ``getaddrinfo`` is the system's, but for tests."""

    BACK_OFF = (0.5, 30.0)  # seconds after the first failed try, and at most
    CHUNK = 64 << 10
    BUFFER = 16 << 10  # bytes of a connection that are read ahead

    def __init__(
        self,
        settings: DownloadSettings,
        max_bytes: int,
        getaddrinfo: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:
        self.settings, self._max_bytes = settings, max_bytes
        self._guard = AddressGuard(settings.allow_network)
        self._blocklist = Blocklist.read(settings.blocklist) if settings.blocklist else Blocklist()
        self._tried: dict[str, Tried] = {}
        self._getaddrinfo = getaddrinfo

    async def __aenter__(self) -> Self:
        settings = self.settings
        raise_file_limit(settings.connections + 256)
        self._slots = asyncio.Semaphore(settings.connections)
        self._hosts = Hosts(settings.per_host, settings.host_rate)
        self._robots: OrderedDict[URL, asyncio.Task[Rules]] = OrderedDict()
        self._resolver = GuardedResolver(self._guard, self._getaddrinfo)
        connector = LenientConnector(
            resolver=self._resolver,
            socket_factory=self._guard.open_socket,
            ttl_dns_cache=300,
            dns_cache_max_size=10_000,
            limit=0,  # the slots above count, so that waiting is not part of any time-out
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": settings.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout,
                sock_connect=settings.connect_timeout,
                sock_read=settings.read_timeout,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=self.BUFFER,
            max_line_size=LONGEST_HEAD,
            max_field_size=LONGEST_HEAD,
            max_headers=LONGEST_HEAD // 16,
            auto_decompress=False,  # decompressed here, within bounds
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str, lease: Lease) -> bytes:
        """The body of ``url``; LaterError where another try is worth it, UnfetchedError with the reason of the last."""
        try:
            body = await self._follow(url, lease)
        except AttemptError as failure:
            raise self._judged(url, failure) from None
        self._tried.pop(url, None)
        return body

    def _judged(self, url: str, failure: AttemptError) -> LaterError | UnfetchedError:
        """Whether to come back to a URL.

        A host that answers nobody costs none of a URL's tries, but no URL waits for it longer than ``patience``; what
        was not asked at all waits as long as the host is waited for.
        """
        settings, now = self.settings, asyncio.get_running_loop().time()
        tried = self._tried.pop(url, None) or Tried(now)
        if not failure.again or failure.after > settings.patience:
            return UnfetchedError(failure.reason, failure.detail)
        if failure.asked:
            tried.failed += 1
            tried.counted += not failure.of_host or settings.tries == 1
            if tried.counted >= settings.tries or now - tried.first >= settings.patience:
                return UnfetchedError(failure.reason, failure.detail)
        if tried.failed:
            self._tried[url] = tried
        first, most = self.BACK_OFF
        back_off = min(most, first * 2 ** max(0, tried.failed - 1))
        left = tried.first + settings.patience - now  # the last try is at its end, and not after it
        return LaterError(max(failure.after, min(failure.after + random.uniform(0.5, 1) * back_off, left)))

    async def _follow(self, text: str, lease: Lease) -> bytes:
        url = parse(text)
        for _ in range(self.settings.max_redirects + 1):
            if self._blocklist.blocks(url):
                raise AttemptError(Reason.BLOCKED_HOST, url.host or "")
            if self.settings.robots and not (await self._rules(url)).allows(url.raw_path_qs):
                raise AttemptError(Reason.ROBOTS, f"{url.origin()}/robots.txt")
            answer = await self._ask(url, lambda response: self._read(response, lease))
            if isinstance(answer, bytes):
                return answer
            url = parse(answer, base=url)
        raise AttemptError(Reason.TOO_MANY_REDIRECTS, f"more than {self.settings.max_redirects}")

    async def _ask(self, url: URL, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """One request, and what ``read`` makes of the answer."""
        host = self._hosts.get(f"{url.host}:{url.port}")
        host.users += 1
        try:
            host.demand_open(self.settings.patience, enter=False)  # so as not to wait for a slot in vain
            async with host.slots:
                await host.turn()
                host.demand_open(self.settings.patience, enter=True)
                try:
                    async with self._slots, self._session.get(url, allow_redirects=False) as response:
                        try:
                            found = await read(response)
                        finally:
                            if host.users == 1:  # nobody waits for this connection
                                response.close()
                except AttemptError as failure:
                    raise self._noted(host, failure) from None
                except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
                    raise self._noted(host, explain(error)) from None
                self._hosts.answered(host)
                return found
        finally:
            host.users -= 1

    def _noted(self, host: Host, failure: AttemptError) -> AttemptError:
        """A failure that counts for the host. The first one after an answer is the URL's own."""
        if not failure.of_host:
            self._hosts.answered(host)
            return failure
        failure.of_host = host.failures > 0
        self._hosts.failed(host, failure)
        if host.is_given_up(self.settings.patience):
            failure.again = False
        return failure

    async def _rules(self, url: URL) -> Rules:
        """The robots.txt of a site, asked for once."""
        site = url.origin()
        task = self._robots.get(site)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._robots[site] = asyncio.create_task(self._read_rules(site))
            if len(self._robots) > Hosts.MOST:
                self._robots.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except AttemptError as failure:  # another one each time: an exception keeps the stacks that it was raised in
            raise copy(failure) from None

    async def _read_rules(self, site: URL) -> Rules:
        """RFC 9309, section 2.3.1: without a robots.txt all is allowed, where it cannot be had nothing is."""

        async def read(response: aiohttp.ClientResponse) -> bytes | str:
            status, headers = response.status, response.headers
            if status in REDIRECTS and "Location" in headers:
                return headers["Location"]
            if status == 200:
                decode, parts = decoder(headers.get("Content-Encoding", "")), bytearray()
                async for chunk in response.content.iter_chunked(self.CHUNK):
                    parts += decode(chunk, LONGEST)
                    if len(parts) >= LONGEST:
                        break
                return bytes(parts[:LONGEST])
            failure = refusal(status, headers.get("Retry-After", ""))
            if failure.again:
                raise failure
            return b"" if status < 500 else b"User-agent: *\nDisallow: /"

        url = site.with_path("/robots.txt")
        for _ in range(self.settings.max_redirects + 1):
            answer = await self._ask(url, read)
            if isinstance(answer, bytes):
                return Rules(answer.decode("utf-8", "replace"), AGENT)
            url = parse(answer, base=url)
        return Rules("", AGENT)

    async def _read(self, response: aiohttp.ClientResponse, lease: Lease) -> bytes | str:
        status, headers = response.status, response.headers
        if status in REDIRECTS and "Location" in headers:
            return headers["Location"]
        if status != 200:
            raise refusal(status, headers.get("Retry-After", ""))
        said = set(directives(headers.getall("X-Robots-Tag", [])))
        if headers.get("TDM-Reservation", "").strip() == "1":
            said.add("tdm-reservation")
        if refused := sorted(said.intersection(self.settings.opt_out)):
            raise AttemptError(Reason.OPT_OUT, ", ".join(refused))
        limit = self._max_bytes
        if (response.content_length or 0) > limit:
            raise AttemptError(Reason.TOO_LARGE, f"{response.content_length} bytes declared; {limit} allowed")
        parts, size = [], 0
        decode = decoder(headers.get("Content-Encoding", ""))
        async for chunk in response.content.iter_chunked(self.CHUNK):
            part = decode(chunk, limit + 1 - size)
            size += len(part)
            if size > limit:
                raise AttemptError(Reason.TOO_LARGE, f"more than {limit} bytes")
            await lease.hold(size)
            parts.append(part)
        return b"".join(parts)


def refusal(status: int, retry_after: str) -> AttemptError:
    """What a status other than 200 means."""
    detail = f"status {status}"
    if status in (401, 403, 451):
        return AttemptError(Reason.HTTP_401_403, detail)
    if status in (404, 410):
        return AttemptError(Reason.HTTP_404_410, detail)
    if status == 429:
        return AttemptError(Reason.HTTP_429, detail, of_host=True, after=seconds(retry_after))
    if 400 <= status < 500:
        return AttemptError(Reason.HTTP_4XX, detail, again=status in (408, 425))
    if 500 <= status < 600:
        away, again = status in (502, 503, 504), status not in (501, 505)
        return AttemptError(Reason.HTTP_5XX, detail, again=again, of_host=away, after=seconds(retry_after))
    return AttemptError(Reason.HTTP_OTHER, detail)


def seconds(retry_after: str) -> float:
    """``Retry-After`` as seconds from now: it is a number or a date; 0 where it is neither."""
    try:
        return max(0.0, float(retry_after)) if retry_after.strip().isascii() else 0.0
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, IndexError, TypeError):  # what a date may hold that is none
        return 0.0


def explain(error: Exception) -> AttemptError:
    """The reason behind an exception of the client, and whether trying again may help."""
    cause = getattr(error, "os_error", None) or error
    detail = str(cause) or type(cause).__name__
    if isinstance(cause, BlockedAddressError):
        return AttemptError(Reason.BLOCKED_ADDRESS, detail)
    if isinstance(error, TimeoutError):
        return AttemptError(Reason.TIMEOUT, detail, of_host=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return AttemptError(Reason.DNS, detail, of_host=getattr(cause, "errno", None) == socket.EAI_AGAIN)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError) or isinstance(cause, ssl.SSLError):
        return AttemptError(Reason.TLS, detail, of_host=isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError))
    if isinstance(error, zlib.error | aiohttp.ClientResponseError):
        return AttemptError(Reason.BAD_RESPONSE, detail)
    if isinstance(error, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return AttemptError(Reason.CONNECT, detail, of_host=True)
    return AttemptError(Reason.BAD_URL, detail)


def raise_file_limit(needed: int) -> None:
    """Let this process open ``needed`` files, as far as the system allows it to say so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard >= 0 else needed, hard))
