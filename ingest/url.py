"""URLs from lists and servers: asked for as they stand."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote, urljoin, urlsplit

from yarl import URL

from ingest.hosts import AttemptError
from ingest.reasons import Reason

#: What browsers quote in a path or query (https://url.spec.whatwg.org/#path-percent-encode-set), and the backslash.
ILLEGAL = re.compile(r"""[\0-\x20"<>\\^`{}\x7f-\U0010ffff]""")


def parse(text: str, base: URL | None = None) -> URL:
    """A URL that may be asked for, without its fragment; AttemptError where it may not.

    What is quoted stays quoted and what is not stays so: a signature, or an image proxy, distinguishes the two. Only
    characters that no URL may hold are quoted, and ``/./`` and ``/../`` resolved.
    """
    try:
        parts = urlsplit(urljoin(str(base), text.strip()) if base is not None else text.strip())
        scheme, host, port = parts.scheme, parts.hostname, parts.port
        path, query = quoted(without_dots(parts.path)) or "/", quoted(parts.query)
        if scheme not in ("http", "https"):
            raise AttemptError(Reason.BAD_URL, f"scheme {scheme[:20] or 'missing'}; http and https are fetched")
        if "@" in parts.netloc:
            raise AttemptError(Reason.BAD_URL, "holds a user name or password")
        if not host:
            raise AttemptError(Reason.BAD_URL, "no host")
        site = site_of(scheme, host, port)
        return URL(f"{site}{path}?{query}" if query else site + path, encoded=True)
    except (ValueError, IndexError) as error:
        raise AttemptError(Reason.BAD_URL, str(error) or type(error).__name__) from None


@lru_cache(4096)
def site_of(scheme: str, host: str, port: int | None) -> str:
    """The beginning of a URL, its host in the form that DNS has; ValueError where it has none."""
    return str(URL.build(scheme=scheme, host=host, port=port)).rstrip("/")


def quoted(text: str) -> str:
    return ILLEGAL.sub(lambda found: quote(found[0], safe="", errors="surrogateescape"), text)  # a header's bytes


def without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4."""
    if "/." not in path:
        return path
    kept: list[str] = []
    for part in path.split("/"):
        if part not in (".", ".."):
            kept.append(part)
        elif part == ".." and len(kept) > 1:
            kept.pop()
    if path.endswith(("/.", "/..")):
        kept.append("")
    return "/".join(kept)
