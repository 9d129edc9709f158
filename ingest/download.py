"""Fetching one URL after another, politely, within bounds, and never from where it must not."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import random
import resource
import socket
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from ingest.budget import Lease
from ingest.etiquette import AGENT, OPT_OUTS, Blocklist, directives
from ingest.guard import AddressGuard, BlockedAddressError, GuardedResolver
from ingest.reasons import Reason
from ingest.sources import UnfetchedError
from seer_pipe.errors import UserError

# asyncio keeps a buffer of this size for every TLS connection, 256 KiB if it is left to it; a TLS record has 16
asyncio.sslproto.SSLProtocol.max_size = 32 << 10
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class DownloadSettings:
    """How to ask. The times are for each hop of each try. The notes are the help of the command line."""

    connections: Annotated[int, "connections at once"] = 256
    per_host: Annotated[int, "connections at once to one host"] = 8
    host_rate: Annotated[float, "requests a second to one host; 0: as many as its connections allow"] = 0.0
    connect_timeout: Annotated[float, "seconds to connect"] = 10.0
    read_timeout: Annotated[float, "seconds without a byte"] = 20.0
    total_timeout: Annotated[float, "seconds for a whole answer"] = 60.0
    tries: Annotated[int, "tries, where another one may help"] = 3
    max_redirects: Annotated[int, "redirects followed"] = 5
    contact: Annotated[str, "a URL or mail address under which sites can reach you; sent in the user agent"] = ""
    opt_out: Annotated[tuple[str, ...], "directives of X-Robots-Tag that keep an image out"] = OPT_OUTS
    allow_network: Annotated[tuple[str, ...], "address range (CIDR) to allow though not global"] = ()
    blocklist: Annotated[Path | None, "file with hosts and URL patterns that are not asked, one a line"] = None

    def __post_init__(self) -> None:
        for name in ("connections", "per_host", "connect_timeout", "read_timeout", "total_timeout", "tries"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} = {getattr(self, name)}: more than 0")
        if self.max_redirects < 0 or self.host_rate < 0:
            raise UserError("max_redirects and host_rate: at least 0")

    @property
    def user_agent(self) -> str:
        return f"{AGENT}/{version('seer-pipe')}" + (f" (+{self.contact})" if self.contact else "")


class AttemptError(Exception):
    """One try that failed; whether another one is worth it, and how long the server asked to wait."""

    def __init__(self, reason: Reason, detail: str = "", *, again: bool = False, after: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.again, self.after = reason, detail, again, after


class Host:
    """What is known of one host while anything is asked of it."""

    def __init__(self, connections: int, rate: float) -> None:
        self.slots = asyncio.Semaphore(connections)
        self.users = 0
        self.failures = 0  # in a row, without any answer
        self._interval = 1 / rate if rate else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait as long as the host's rate, or its own wish, demands."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._next)
        self._next = start + self._interval
        if start > now:
            await asyncio.sleep(start - now)

    def rest(self, seconds: float) -> None:
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)


class Downloader:
    """Use as ``async with``. ``getaddrinfo`` is the system's, but for tests."""

    LONGEST_WAIT = 30.0  # seconds; a server that asks for more is not asked again
    GIVE_UP = 16  # tries in a row without any answer, after which the waiting URLs of a host are not tried
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
        self._getaddrinfo = getaddrinfo

    async def __aenter__(self) -> Self:
        settings = self.settings
        raise_file_limit(settings.connections + 256)
        self._slots = asyncio.Semaphore(settings.connections)
        self._hosts: WeakValueDictionary[str, Host] = WeakValueDictionary()
        self._resolver = GuardedResolver(self._guard, self._getaddrinfo)
        connector = aiohttp.TCPConnector(
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
            auto_decompress=False,  # decompressed here, within bounds
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str, lease: Lease) -> bytes:
        """The body of ``url``; UnfetchedError with the reason of the last try."""
        tries = self.settings.tries
        for attempt in range(1, tries + 1):
            try:
                return await self._follow(url, lease)
            except AttemptError as failure:
                if not failure.again or attempt == tries or failure.after > self.LONGEST_WAIT:
                    raise UnfetchedError(failure.reason, failure.detail) from None
                await asyncio.sleep(failure.after + random.uniform(0.1, 0.5) * 2**attempt)
        raise AssertionError("at least one try")

    async def _follow(self, text: str, lease: Lease) -> bytes:
        url = parse(text)
        for _ in range(self.settings.max_redirects + 1):
            answer = await self._ask(url, lease)
            if isinstance(answer, bytes):
                return answer
            url = parse(answer, base=url)
        raise AttemptError(Reason.TOO_MANY_REDIRECTS, f"more than {self.settings.max_redirects}")

    async def _ask(self, url: URL, lease: Lease) -> bytes | str:
        """One request: the body, or where it redirects to."""
        if self._blocklist.blocks(str(url)):
            raise AttemptError(Reason.BLOCKED_HOST, url.host or "")
        name = f"{url.host}:{url.port}"
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(self.settings.per_host, self.settings.host_rate)
        host.users += 1
        try:
            async with host.slots:
                await host.turn()
                if host.failures >= self.GIVE_UP:
                    raise AttemptError(Reason.CONNECT, f"{host.failures} tries in a row failed at {url.host}")
                async with self._slots, self._session.get(url, allow_redirects=False) as response:
                    host.failures = 0
                    try:
                        return await self._read(response, lease)
                    except AttemptError as failure:
                        host.rest(min(failure.after, self.LONGEST_WAIT))
                        raise
                    finally:
                        if host.users == 1:  # nobody waits for this connection
                            response.close()
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            host.failures += isinstance(error, aiohttp.ClientConnectionError | TimeoutError)
            raise explain(error) from None
        finally:
            host.users -= 1

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


def parse(text: str, base: URL | None = None) -> URL:
    """A URL that may be asked for, without its fragment; AttemptError where it may not."""
    try:
        url = URL(text.strip())
        if base is not None:
            url = base.join(url)
        host, _ = url.host, url.port
    except ValueError as error:
        raise AttemptError(Reason.BAD_URL, str(error)) from None
    if url.scheme not in ("http", "https"):
        raise AttemptError(Reason.BAD_URL, f"scheme {url.scheme[:20] or 'missing'}; http and https are fetched")
    if not host:
        raise AttemptError(Reason.BAD_URL, "no host")
    if url.user is not None or url.password is not None:
        raise AttemptError(Reason.BAD_URL, "holds a user name or password")
    return url.with_fragment(None)


def refusal(status: int, retry_after: str) -> AttemptError:
    """What a status other than 200 means."""
    detail = f"status {status}"
    if status in (401, 403, 451):
        return AttemptError(Reason.HTTP_401_403, detail)
    if status in (404, 410):
        return AttemptError(Reason.HTTP_404_410, detail)
    if status == 429:
        return AttemptError(Reason.HTTP_429, detail, again=True, after=seconds(retry_after))
    if 400 <= status < 500:
        return AttemptError(Reason.HTTP_4XX, detail, again=status in (408, 425))
    if 500 <= status < 600:
        return AttemptError(Reason.HTTP_5XX, detail, again=status not in (501, 505), after=seconds(retry_after))
    return AttemptError(Reason.HTTP_OTHER, detail)


def seconds(retry_after: str) -> float:
    """``Retry-After`` as seconds from now: it is a number or a date; 0 where it is neither."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def explain(error: Exception) -> AttemptError:
    """The reason behind an exception of the client, and whether trying again may help."""
    cause = getattr(error, "os_error", None) or error
    detail = str(cause) or type(cause).__name__
    if isinstance(cause, BlockedAddressError):
        return AttemptError(Reason.BLOCKED_ADDRESS, detail)
    if isinstance(error, TimeoutError):
        return AttemptError(Reason.TIMEOUT, detail, again=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return AttemptError(Reason.DNS, detail, again=getattr(cause, "errno", None) == socket.EAI_AGAIN)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError) or isinstance(cause, ssl.SSLError):
        return AttemptError(Reason.TLS, detail)
    if isinstance(error, zlib.error | aiohttp.ClientResponseError):
        return AttemptError(Reason.BAD_RESPONSE, detail)
    if isinstance(error, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return AttemptError(Reason.CONNECT, detail, again=not isinstance(cause, ConnectionRefusedError))
    return AttemptError(Reason.BAD_URL, detail)


def decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """Undoes a content encoding piece by piece: ``decode(chunk, most)`` gives at most some more than ``most`` bytes."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return lambda chunk, most: chunk
    if encoding in ("gzip", "x-gzip", "deflate"):
        unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by the header
        return lambda chunk, most: unzip.decompress(chunk, most)
    raise AttemptError(Reason.BAD_RESPONSE, f"content encoding {encoding[:20]} was not asked for")


def raise_file_limit(needed: int) -> None:
    """Let this process open ``needed`` files, as far as the system allows it to say so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard >= 0 else needed, hard))
