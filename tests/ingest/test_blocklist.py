"""Blocklists of every usual form: what they block, and that a line which could match nothing is refused."""

from pathlib import Path

import pytest

from ingest.blocklist import Blocklist
from ingest.url import parse
from seer_pipe.errors import UserError

#: An entry, URLs that it blocks, and URLs that it leaves.
ENTRIES = [
    ("Example.org", ["http://example.org/a", "https://img.EXAMPLE.org:8080/a"], ["http://notexample.org/a"]),
    ("example.org  # they asked", ["http://example.org/a"], ["http://asked/"]),
    (".example.org.", ["http://example.org./a", "http://a.example.org/"], ["http://example.org.uk/"]),
    ("*.example.org", ["http://a.example.org/", "http://example.org/"], ["http://bexample.org/"]),
    ("ads*.example.*", ["http://ads7.example.com/", "http://x.ads.example.org/"], ["http://example.org/ads1"]),
    ("0.0.0.0 a.test b.test", ["http://a.test/", "http://x.b.test/"], ["http://c.test/"]),
    ("127.0.0.1\tlocalhost a.test", ["http://a.test/"], ["http://localhost/"]),
    ("||example.org^", ["https://a.example.org/x"], ["http://example.com/"]),
    ("||example.org^$third-party,image", ["https://example.org/x"], ["http://example.com/"]),
    ("||example.org/ads/^", ["https://a.example.org/ads/1.jpg"], ["https://example.org/a.jpg"]),
    ("|https://example.org/ads|", ["https://example.org/ads"], ["http://example.org/ads"]),
    ("bücher.example", ["http://bücher.example/", "http://www.xn--bcher-kva.example/"], ["http://bucher.example/"]),
    ("example.org:8080", ["http://example.org:8080/"], ["http://example.org/", "https://example.org:8081/"]),
    ("https://example.org:443/x", ["https://example.org/x/y"], ["http://example.org/x"]),
    ("http://example.org", ["http://example.org/a"], ["https://example.org/a"]),
    ("*://example.org/", ["http://example.org/a", "https://a.example.org/a"], []),
    ("example.org/private", ["http://a.example.org:81/private/a.jpg"], ["http://example.org/public?/private"]),
    ("https://site.test/users/*/albums", ["https://site.test/users/me/albums/1"], ["https://site.test/users/me/1"]),
    ("example.org/caf%C3%A9/a%2Cb", ["http://example.org/café/a,b", "http://example.org/caf%C3%A9/a,b"], []),
    ("*tracker*", ["http://x.test/tracker.gif", "http://tracker.test/"], ["http://x.test/"]),
    ("*/private/*", ["http://x.test/a/private/b"], ["http://x.test/private"]),
    ("192.0.2.7", ["http://192.0.2.7/a"], ["http://192.0.2.70/a"]),
    ("[2001:db8::1]:8080", ["http://[2001:db8::1]:8080/a"], ["http://[2001:db8::1]/a"]),
    ("my_host", ["http://my_host/a"], []),
]


@pytest.mark.parametrize(("entry", "blocked", "left"), ENTRIES, ids=[entry for entry, *_ in ENTRIES])
def test_an_entry(entry: str, blocked: list[str], left: list[str]) -> None:
    blocklist = Blocklist(["# comment", "! comment", "[Adblock Plus 2.0]", "", entry])
    for url in blocked:
        assert blocklist.blocks(parse(url)), url
    for url in left:
        assert not blocklist.blocks(parse(url)), url
        assert not Blocklist().blocks(parse(url))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@@||example.org^", "an exception"),
        ("example.org##.ad", "hides parts of pages"),
        ("/banner[0-9]+/", "a path without a host, or a regular expression"),
        ("/private/", "a path without a host"),
        ("ftp://example.org/", "http and https alone"),
        ("10.0.0.0/8", "a range of addresses"),
        ("a.test b.test", "one host or URL a line"),
        ("https://me@example.org/", "no host"),
        ("exa$mple.org", "no host"),
        ("*.jpg", "no host ends in .jpg: write */"),
        ("bü*.example", "xn--"),
        ("example.org/a#b", "leave that out"),
        ("*", "says nothing, or all"),
        ("http://", "no host"),
    ],
)
def test_a_line_that_can_match_nothing_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "block.txt"
    path.write_text(f"example.com\n{line}\n")
    with pytest.raises(UserError) as error:
        Blocklist.read(path)
    assert str(error.value).startswith(f"{path}: line 2: {line!r}: ")
    assert message in str(error.value)


def test_a_file_of_another_encoding_and_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "block.txt").write_bytes("example.org\r\n".encode("utf-16"))
    assert Blocklist.read(tmp_path / "block.txt").blocks(parse("http://example.org/"))
    with pytest.raises(UserError, match="blocklist"):
        Blocklist.read(tmp_path / "none.txt")
