"""X-Robots-Tag, token by token."""

import pytest

from ingest.etiquette import OPT_OUTS, directives


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
