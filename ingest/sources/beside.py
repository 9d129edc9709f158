"""What is written beside an image: files, or members of a tar, of its name with another extension."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ingest.sources.lists import plain

LONGEST_TEXT = 1 << 20  # bytes of a text that is read


def beside(text: Callable[[str], str], keep: Sequence[str]) -> list[str | None]:
    """What an image has under each of the names ``keep``: a key of the JSON beside it, or else a whole text beside it.

    ``text`` gives the text with an extension (``json``, ``txt``), empty where there is none.
    """
    try:
        said = json.loads(text("json") or "null")
    except (ValueError, RecursionError):
        said = None
    known = {name.lower(): value for name, value in said.items()} if isinstance(said, dict) else {}
    return [plain(known.get(name.lower())) or text(name.lower()) or None for name in keep]
