"""What a site's owner says with an image about its use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
