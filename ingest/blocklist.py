"""Hosts and URLs that are not to be asked, from lists of the usual forms. A line that can match nothing is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

from yarl import URL

from ingest.sources.lists import text_of
from seer_pipe.errors import UserError

#: Names that hosts files begin with, which mean the machine itself.
ITSELF = re.compile(r"(localhost|local|broadcasthost|ip6-\w+|localhost\.localdomain|0\.0\.0\.0)", re.IGNORECASE)
SKIPPED = re.compile(r"[#!].*|\[Adblock.*\]", re.IGNORECASE)  # comments, and the first line of an Adblock list
HIDING = re.compile(r"#[@?$%]*#")
SITE = re.compile(r"(?:(https?|\*)://)?(\[[^\]]*\]|[^/:?#]*)(?::(\d+))?(?:/(.*))?", re.IGNORECASE | re.DOTALL)
FILES = ("jpg", "jpeg", "png", "gif", "webp", "svg", "avif", "html")
ANY_PORT = r":\d+"


class Blocklist:
    """A line is one of

    - a host, which stands for its subdomains as well: ``example.org``, ``*.example.org``, ``ads*.example.org``,
      ``bücher.example``, ``example.org:8080``; by Adblock's form ``||example.org^``, by that of hosts files
      ``0.0.0.0 example.org``;
    - a host, as above, and the beginning of a path: ``example.org/private``, ``https://example.org/users/*/albums``;
    - a pattern that begins with ``*`` over whole URLs: ``*tracker*``, ``*/private/*``.

    ``*`` stands for any characters. Lines that begin with ``#`` or ``!`` say nothing.
    """

    def __init__(self, lines: Iterable[str] = (), where: str = "blocklist") -> None:
        self._hosts: set[str] = set()
        sites: dict[str, list[str]] = {}  # patterns by their host, which is empty where it holds a wildcard
        urls: list[str] = []
        for number, line in enumerate(lines, 1):
            text = re.split(r"\s#", line.strip())[0].strip()
            if not text or SKIPPED.fullmatch(text):
                continue
            try:
                for entry in entries(text):
                    if entry.startswith("*") and not entry.startswith(("*.", "*://")):
                        urls.append(glob(unquote(entry)) + r"\Z")
                        continue
                    host, pattern = site(entry)
                    if pattern:
                        sites.setdefault("" if "*" in host else host, []).append(pattern)
                    else:
                        self._hosts.add(host)
            except ValueError as error:
                raise UserError(f"{where}: line {number}: {text[:80]!r}: {error}") from None
        self._sites = {host: re.compile("|".join(found), re.DOTALL) for host, found in sites.items()}
        self._urls = re.compile("|".join(urls), re.DOTALL) if urls else None

    @classmethod
    def read(cls, path: Path) -> Blocklist:
        try:
            with path.open("rb") as file:
                return cls(text_of(cast(BinaryIO, file)), str(path))
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path}: blocklist not readable: {error}") from None

    def blocks(self, url: URL) -> bool:
        if not (self._hosts or self._sites or self._urls):
            return False
        host, path = (url.raw_host or "").lower().strip("."), unquote(url.raw_path_qs)
        labels = host.split(".")
        names = [".".join(labels[start:]) for start in range(len(labels))]
        if not self._hosts.isdisjoint(names):
            return True
        if self._sites:
            target = f"{url.scheme}://{host}:{url.port}{path}"
            found = filter(None, map(self._sites.get, (*names, "")))
            if any(pattern.match(target) for pattern in found):
                return True
        return self._urls is not None and self._urls.match(f"{url.origin()}{path}") is not None


def entries(text: str) -> list[str]:
    """The entries of a line; ValueError with what to write where it is of no use here."""
    first, *names = text.split()
    if names:
        if not is_address(first):
            raise ValueError("write one host or URL a line")
        return [name for name in names if not ITSELF.fullmatch(name)]
    if first.startswith("@@"):
        raise ValueError("an exception, which is not read: leave it out, and the line that it makes an exception of")
    if HIDING.search(first):
        raise ValueError("hides parts of pages, which are not shown here: leave it out")
    if first.startswith("||"):
        first = first[2:].partition("$")[0].rstrip("|").rstrip("^").replace("^", "*")
    elif first.startswith("|"):
        first = first[1:].rstrip("|")
    if first.startswith("/"):
        raise ValueError("a path without a host, or a regular expression: write a pattern over URLs, as */private/*")
    if not first.strip("*./:"):
        raise ValueError("says nothing, or all: write a host")
    return [first]


def site(entry: str) -> tuple[str, str]:
    """Host of an entry, and a regular expression for what is more than a host; ValueError where there is no such."""
    found = SITE.fullmatch(entry)
    if "://" in entry.partition("*")[0] and (found is None or found[1] is None):
        raise ValueError("http and https alone are fetched: write a host, or a URL of these")
    if "/" in entry and is_network(entry):
        raise ValueError("a range of addresses: write hosts; private addresses are never asked")
    if found is None or "@" in found[2]:
        raise ValueError("no host: write example.org, example.org/path or *pattern*")
    scheme, name, port, path = found.groups()
    if path and "#" in path:
        raise ValueError("no server is asked for what follows a #: leave that out")
    host = name.lower().strip(".").removeprefix("*.")
    if "*" in host:
        if not re.fullmatch(r"[a-z0-9_.*-]+", host):
            raise ValueError("no host: write an international name with a wildcard in its form xn--…")
    else:
        host = ascii_host(host)
    if host.rpartition(".")[2] in FILES:
        raise ValueError(f"no host ends in .{host.rpartition('.')[2]}: write */{name.lstrip('*.')}* for files")
    if "*" not in host and not port and not path and (scheme or "*") == "*":
        return host, ""
    schemes = "https?" if (scheme or "*") == "*" else scheme.lower()
    names = glob(host).replace(".*", "[^/:]*")
    start = rf"{schemes}://(?:[^/:]*\.)?{names}{f':{port}' if port else ANY_PORT}/"
    return host, start + glob(unquote(path or ""))


def ascii_host(host: str) -> str:
    """A host as URLs have it."""
    try:
        known = URL.build(scheme="http", host=host.strip("[]")).raw_host or ""
    except (ValueError, IndexError):
        known = ""
    if not re.fullmatch(r"[a-z0-9_.-]+", known) and not is_address(known):
        raise ValueError("no host: write example.org, example.org/path or *pattern*")
    return known


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def glob(text: str) -> str:
    return ".*".join(map(re.escape, text.split("*")))
