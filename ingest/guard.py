"""Which network addresses a download may reach: global ones, and the ranges that were allowed by name.

Names are never judged, addresses are: ``127.1``, ``0x7f000001`` and a name that resolves to 10.0.0.1 are the same
thing once resolved. The socket is made here, for the very address that was judged, so that a name which resolves
to something else a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from seer_pipe.errors import UserError

Network = IPv4Network | IPv6Network

# Python's ``is_global`` (3.11) lets these through; they are special-purpose by IANA's registries.
SPECIAL_V4 = [ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4")]
SPECIAL_V6 = [ip_network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
UNICAST_V6 = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")


class BlockedAddressError(OSError):
    """The address is not one that may be connected to."""


class AddressGuard:
    """Judges addresses. ``allowed`` are networks in CIDR notation that are reachable besides the global ones."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        try:
            self.allowed: list[Network] = [ip_network(network) for network in allowed]
        except ValueError as error:
            raise UserError(f"{error}: write a network as 127.0.0.0/8") from None

    def permits(self, address: str) -> bool:
        ip = ip_address(address)
        if isinstance(ip, IPv6Address):
            # the IPv4 address that would be reached in the end
            if ip.ipv4_mapped is not None:
                ip = ip.ipv4_mapped
            elif ip in NAT64:
                ip = IPv4Address(int(ip) & 0xFFFFFFFF)
        if any(ip.version == network.version and ip in network for network in self.allowed):
            return True
        if isinstance(ip, IPv4Address):
            return ip.is_global and not any(ip in network for network in SPECIAL_V4)
        return ip.is_global and ip in UNICAST_V6 and not any(ip in network for network in SPECIAL_V6)

    def check(self, address: str) -> None:
        if not self.permits(address):
            raise BlockedAddressError(f"{address} is not a global address")

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """aiohttp's ``socket_factory``: called with every address right before it is connected to."""
        family, kind, protocol, _, address = info
        self.check(address[0])
        return socket.socket(family, kind, protocol)


class GuardedResolver(AbstractResolver):
    """The system's resolver in threads of its own; drops addresses that may not be reached, remembers failures."""

    THREADS = 64
    REMEMBER = 60.0  # seconds that a failed name is not asked for again
    MOST = 10_000  # failed names remembered

    def __init__(self, guard: AddressGuard, getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self.guard, self._getaddrinfo = guard, getaddrinfo
        self._threads = ThreadPoolExecutor(self.THREADS, "dns")
        self._failed: dict[str, tuple[float, tuple[object, ...]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        until, known = self._failed.get(host, (0.0, ()))
        if time.monotonic() < until:
            raise socket.gaierror(*known)  # another one each time: an exception keeps the stacks that it was raised in
        try:
            infos = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except OSError as error:
            if error.errno != socket.EAI_AGAIN:  # a resolver that is busy may know it a moment later
                if len(self._failed) >= self.MOST:
                    self._failed.clear()
                self._failed[host] = (time.monotonic() + self.REMEMBER, error.args)
            raise
        except UnicodeError as error:  # a label that IDNA cannot hold
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
        good = [info for info in infos if self.guard.permits(info[4][0])]
        if not good:
            raise BlockedAddressError(f"{host} is {infos[0][4][0] if infos else 'nowhere'}, not a global address")
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in good
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
