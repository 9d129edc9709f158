"""X-Robots-Tag, token by token, and blocklists."""

from pathlib import Path

import pytest

from ingest.etiquette import OPT_OUTS, Blocklist, directives
from seer_pipe.errors import UserError


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["noai"], {"noai"}),
        (["NoAI, NoImageAI"], {"noai", "noimageai"}),
        (["noai, max-snippet:-1"], {"noai"}),
        (["max-image-preview: none, noindex"], {"noindex"}),
        (["max-image-preview: none"], set()),
        (["none"], {"noindex"}),
        (["all"], set()),
        (["googlebot: noindex"], set()),
        (["googlebot: noindex, nofollow, otherbot: noai"], set()),
        (["googlebot: all, seer-ingest: noai"], {"noai"}),
        (["seer-ingest: noindex"], {"noindex"}),
        (["*: noimageindex"], {"noimageindex"}),
        (["googlebot: noindex", "noai"], {"noai"}),  # an agent's name reaches to the end of its header
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], set()),
        (["", ",", ":", "::,"], set()),
    ],
)
def test_directives(headers: list[str], expected: set[str]) -> None:
    assert set(directives(headers)) & set(OPT_OUTS) == expected


def test_blocklist_by_host_and_pattern() -> None:
    blocklist = Blocklist(["# ours", "", "Example.org", "https://site.test/private/*", "*tracker*"])
    assert blocklist.blocks("http://example.org/a.jpg")
    assert blocklist.blocks("https://img.EXAMPLE.org:8080/a.jpg")
    assert blocklist.blocks("https://site.test/private/a.jpg")
    assert blocklist.blocks("http://x.test/tracker.gif")
    assert not blocklist.blocks("http://notexample.org/a.jpg")
    assert not blocklist.blocks("https://site.test/public/a.jpg")
    assert not Blocklist().blocks("http://example.org/")


def test_a_missing_blocklist_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="blocklist"):
        Blocklist.read(tmp_path / "none.txt")
