"""What is known of a host while it is asked: how much at once, how fast, and whether it answers at all.

A circuit breaker. Requests without a complete answer, or with one that says "not now" (429, 502, 503, 504), are
failures of the host. After ``OPENS`` of them in a row it is away: nothing is asked of it for a pause, as long as it has
been away so far (a second at least, half a minute at most), then a single request is let through, to see. An answer
ends it.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from ingest.reasons import Reason


class AttemptError(Exception):
    """One try that failed.

    again: another one may help. after: seconds that the server asked to wait. of_host: the failure may be the host's,
    not the URL's. asked: whether there was a request at all.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str = "",
        *,
        again: bool = False,
        after: float = 0.0,
        of_host: bool = False,
        asked: bool = True,
    ) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.again, self.after, self.of_host, self.asked = again or of_host, after, of_host, asked


class Host:
    """One host and port."""

    OPENS = 4  # failures in a row
    PAUSE = (1.0, 30.0)  # seconds, least and most
    LONGEST_REST = 30.0  # seconds that all URLs of a host wait because the answer to one of them asked for it

    def __init__(self, name: str, connections: int, rate: float) -> None:
        self.name = name
        self.slots = asyncio.Semaphore(connections)
        self.users = 0
        self.failures = 0  # in a row
        self._why: AttemptError | None = None
        self._since = 0.0  # when the first of them was
        self._closed = self._rest = 0.0  # until when: as it is away, as it asked for it
        self._interval = 1 / rate if rate else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait as long as the host's rate demands."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._next)
        self._next = start + self._interval
        if start > now:
            await asyncio.sleep(start - now)

    def demand_open(self, patience: float, *, enter: bool) -> None:
        """AttemptError where nothing is to be asked now. To ``enter`` an open gate of a host that is away closes it."""
        now = asyncio.get_running_loop().time()
        wait = max(self._closed, self._rest) - now
        if wait <= 0:
            if enter and self.failures >= self.OPENS:
                self._closed = now + self.PAUSE[0]  # for the others, until there is an answer, or none
        elif self._why is not None:
            detail = f"{self.name} gave no answer for {now - self._since:.0f} s: {self._why.detail}"
            again = not self.is_given_up(patience)
            raise AttemptError(self._why.reason, detail, again=again, after=wait, asked=False)

    def is_given_up(self, patience: float) -> bool:
        silent = asyncio.get_running_loop().time() - self._since
        return self.failures >= self.OPENS and silent >= patience

    def answered(self) -> None:
        self.failures = 0
        self._closed = 0.0

    def failed(self, why: AttemptError) -> None:
        now = asyncio.get_running_loop().time()
        if not self.failures:
            self._since = now
        self.failures += 1
        self._why = why
        self._rest = max(self._rest, now + min(why.after, self.LONGEST_REST))
        if self.failures >= self.OPENS:
            self._closed = now + self._pause(now)

    def _pause(self, now: float) -> float:
        least, most = self.PAUSE
        return min(max(now - self._since, least), most)


class Hosts:
    """Those of which anything is asked, and, up to ``MOST``, those that failed last."""

    MOST = 10_000

    def __init__(self, connections: int, rate: float) -> None:
        self._connections, self._rate = connections, rate
        self._all: WeakValueDictionary[str, Host] = WeakValueDictionary()
        self._failing: dict[str, Host] = {}

    def get(self, name: str) -> Host:
        host = self._all.get(name)
        if host is None:
            host = self._all[name] = Host(name, self._connections, self._rate)
        return host

    def answered(self, host: Host) -> None:
        if host.failures:
            host.answered()
            self._failing.pop(host.name, None)

    def failed(self, host: Host, why: AttemptError) -> None:
        host.failed(why)
        self._failing[host.name] = host
        if len(self._failing) > self.MOST:
            del self._failing[next(iter(self._failing))]
