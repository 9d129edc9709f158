"""What a site's owner, or the person who downloads, has asked to be left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import translate
from pathlib import Path
from urllib.parse import urlsplit

from seer_pipe.errors import UserError

#: ``X-Robots-Tag`` directives that keep an image out, and the header of TDMRep (``tdm-reservation: 1``).
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex", "tdm-reservation")
AGENT = "seer-ingest"  # the name under which sites may address this downloader alone
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")


def directives(headers: Iterable[str]) -> Iterator[str]:
    """The directives for this downloader in the values of ``X-Robots-Tag`` headers.

    A value is a comma-separated list; ``name:`` before a directive addresses the rest of the value to one agent,
    unless it is one of the directives that take a value themselves.
    """
    for value in headers:
        agent = "*"
        for token in value.lower().split(","):
            name, colon, rest = (part.strip() for part in token.partition(":"))
            if colon and name not in VALUED:
                agent, name = name, rest.partition(":")[0].strip()
            if agent in ("*", AGENT):
                yield from ("noindex", "nofollow") if name == "none" else (name,)


class Blocklist:
    """Hosts and URL patterns that are not to be asked.

    A line is a host, which stands for its subdomains as well, or a pattern with ``*`` over the whole URL
    (``https://example.org/private/*``). Empty lines and lines that begin with ``#`` say nothing.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        entries = [line.strip() for line in lines]
        entries = [entry for entry in entries if entry and not entry.startswith("#")]
        self._hosts = {e.lower().strip(".") for e in entries if "*" not in e and "/" not in e}
        patterns = [translate(e) for e in entries if "*" in e or "/" in e]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    @classmethod
    def read(cls, path: Path) -> Blocklist:
        try:
            return cls(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path}: blocklist not readable: {error}") from None

    def blocks(self, url: str) -> bool:
        labels = (urlsplit(url).hostname or "").strip(".").split(".")
        if any(".".join(labels[start:]) in self._hosts for start in range(len(labels))):
            return True
        return self._pattern is not None and self._pattern.match(url) is not None
