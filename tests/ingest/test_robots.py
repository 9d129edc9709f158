"""robots.txt by RFC 9309, its own examples among the cases, and that the downloader keeps to it where it is told to."""

import pytest

from ingest.reasons import Reason
from ingest.robots import Rules
from tests.ingest.test_download import answer, fetch, raw, running
from tests.ingest.web import jpeg

AGENT = "seer-ingest"


@pytest.mark.parametrize(
    ("text", "allowed", "refused"),
    [
        ("", ["/"], []),
        ("User-agent: *\nDisallow:", ["/a"], []),
        ("User-agent: *\nDisallow: /", [], ["/", "/a"]),
        ("User-agent: other\nDisallow: /", ["/a"], []),
        ("user-agent: Seer-Ingest/1.0\ndisallow: /a\n\nUser-agent: *\nDisallow: /", ["/b"], ["/a", "/ab"]),
        ("User-agent: a\nUser-agent: seer-ingest\nDisallow: /x\nUser-agent: b\nDisallow: /y", ["/y"], ["/x"]),
        ("User-agent: seer-ingest\nDisallow: /x\nUser-agent: b\nAllow: /\nUser-agent: seer-ingest\nDisallow: /y",
         ["/z"], ["/x", "/y"]),
        ("User-agent: *\nDisallow: /a/\nAllow: /a/b/", ["/a/b/c", "/a"], ["/a/c"]),
        ("User-agent: *\nAllow: /a\nDisallow: /a", ["/a"], []),
        ("User-agent: *\nDisallow: /*.jpg$", ["/a.jpg?x", "/a.jpgx"], ["/a.jpg", "/b/c.jpg"]),
        ("User-agent: *\nDisallow: /a*b*c", ["/acb"], ["/abc", "/axxbyycz"]),
        ("User-agent: *\nDisallow: /a$", ["/ab"], ["/a"]),
        ("User-agent: *\nDisallow: /foo/bar/%E3%83%84\nDisallow: /%61%2c", [], ["/foo/bar/ツ", "/a%2C"]),
        ("User-agent: * # all\nDisallow: /x # not this\nCrawl-delay: 10\nSitemap: http://a/", ["/"], ["/x"]),
        ("\ufeffUser-agent: *\r\nDisallow: /x\r\n", ["/"], ["/x"]),
        ("Disallow: /\nUser-agent: *\nAllow: /", ["/"], []),
    ],
)  # fmt: skip
def test_rules(text: str, allowed: list[str], refused: list[str]) -> None:
    rules = Rules(text, AGENT)
    assert [path for path in allowed if not rules.allows(path)] == []
    assert [path for path in refused if rules.allows(path)] == []


def test_a_rule_of_many_stars_takes_no_time() -> None:
    assert Rules("User-agent: *\nDisallow: /" + "*a" * 100 + "$", AGENT).allows("/" + "a" * 5000 + "b")


def test_a_site_is_asked_once_and_kept_to() -> None:
    rules = answer(b"User-agent: *\nDisallow: /no")
    for robots, expected in (
        (rules, [jpeg(1), Reason.ROBOTS]),
        (answer(b"", "Location: /rules", status="HTTP/1.1 301 Moved"), [jpeg(1), Reason.ROBOTS]),
        (answer(b"", status="HTTP/1.1 404 Not Found"), [jpeg(1), jpeg(2)]),
        (answer(b"", status="HTTP/1.1 500 No"), [Reason.HTTP_5XX] * 2),
        (answer(b"", status="HTTP/1.1 501 No"), [Reason.ROBOTS] * 2),
    ):
        answers = {"/robots.txt": robots, "/rules": rules, "/yes": answer(jpeg(1)), "/no": answer(jpeg(2))}
        with running(raw(answers)) as site:
            assert fetch(site + "/yes", site + "/no") == [jpeg(1), jpeg(2)]
            assert fetch(site + "/yes", site + "/no", robots=True) == expected
