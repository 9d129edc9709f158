"""Addresses that may and may not be reached, in every notation."""

import asyncio
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.guard import AddressGuard, BlockedAddressError, GuardedResolver
from seer_pipe.errors import UserError

NOT_GLOBAL = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
GLOBAL = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", NOT_GLOBAL)
def test_special_addresses_are_refused(address: str) -> None:
    assert not AddressGuard().permits(address)


@pytest.mark.parametrize("address", GLOBAL)
def test_global_addresses_pass(address: str) -> None:
    assert AddressGuard().permits(address)


def test_a_range_can_be_allowed_and_only_it() -> None:
    guard = AddressGuard(["127.0.0.0/8", "fd00::/8"])
    assert guard.permits("127.9.9.9")
    assert guard.permits("::ffff:127.0.0.1")
    assert guard.permits("fd12::1")
    assert not guard.permits("10.0.0.1")
    assert not guard.permits("::1")


def test_a_range_that_is_none_is_a_user_error() -> None:
    with pytest.raises(UserError, match="write a network as"):
        AddressGuard(["loopback"])


@given(st.ip_addresses())
def test_nothing_passes_that_the_standard_library_calls_private(address: object) -> None:
    ip = ip_address(str(address))
    if AddressGuard().permits(str(ip)):
        assert ip.is_global
        assert not ip.is_multicast


def resolve(guard: AddressGuard, addresses: list[str]) -> list[str]:
    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    async def ask() -> list[str]:
        resolver = GuardedResolver(guard, getaddrinfo)
        try:
            return [found["host"] for found in await resolver.resolve("example.org", 80)]
        finally:
            await resolver.close()

    return asyncio.run(ask())


def test_the_resolver_drops_what_may_not_be_reached() -> None:
    assert resolve(AddressGuard(), ["10.0.0.1", "8.8.8.8", "::1"]) == ["8.8.8.8"]


def test_a_name_with_private_addresses_alone_is_refused() -> None:
    with pytest.raises(BlockedAddressError, match=r"example\.org is 10\.0\.0\.1"):
        resolve(AddressGuard(), ["10.0.0.1", "::1"])


@pytest.mark.parametrize(("code", "times"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_a_name_that_is_not_there_is_not_asked_for_again(code: int, times: int) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(code, "no such name")

    async def ask() -> None:
        resolver = GuardedResolver(AddressGuard(), getaddrinfo)
        for _ in range(3):
            with pytest.raises(socket.gaierror, match="no such name"):
                await resolver.resolve("gone.example", 80)
        await resolver.close()

    asyncio.run(ask())
    assert asked == ["gone.example"] * times


def test_the_socket_is_refused_for_the_address_itself() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    with pytest.raises(BlockedAddressError):
        AddressGuard().open_socket(info)
    AddressGuard(["127.0.0.0/8"]).open_socket(info).close()
