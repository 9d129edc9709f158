"""Foreign bytes of every kind against the parsers of the downloader and of lists: an answer or the error that is meant
for it, never another one."""

import asyncio
import io
import zlib
from contextlib import suppress
from pathlib import Path

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.blocklist import Blocklist
from ingest.download import refusal, seconds
from ingest.etiquette import directives
from ingest.hosts import AttemptError
from ingest.lenient import LenientHandler, decoder, repaired
from ingest.robots import Rules
from ingest.sources.lists import tables
from ingest.url import ILLEGAL, parse
from seer_pipe.errors import UserError
from tests.ingest.fuzz import EXAMPLES
from tests.ingest.test_download import LENIENT, J

pytestmark = pytest.mark.slow
fuzz = settings(max_examples=EXAMPLES)

#: What a parser may stumble over.
PARTS = [
    "http", "https", "ftp", ":", "//", "/", "/../", "/.", "?", "#", "@", "[", "]", "[::1]", "[v1.x]", "127.1", "0x7f.1",
    "example.org", "bücher.example", "xn--", "xn--a", "%", "%2F", "%zz", "%00", ":80", ":99999", ":-1", ":٣", " ", "\t",
    "\n", "\r\n", "\\", "\0", "\ud800", "\udcff", "．", "。", "①", "a" * 70, "*", "||", "^", "$", "@@", "##", "!",
    "0.0.0.0 ", "10.0.0.0/8", "User-agent: *\n", "Disallow: ", "Allow: ", ",", '"', '""', '\\"', "'", "\ufeff",
    "{", "}", '{"url": ', "null", "url", "1e999",
]  # fmt: skip
pieces = st.one_of(st.sampled_from(PARTS), st.text(st.characters(codec=None), max_size=5))
texts = st.lists(pieces, max_size=12).map("".join)
dates = st.from_regex(r"\w{3}, \d{1,5} \w{3} \d{1,9} \d+:\d+:\d+ [+-]\d{1,20}")
blobs = st.one_of(
    st.binary(max_size=300),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    texts.map(lambda text: text.encode("utf-16", "surrogatepass")),
)


@fuzz
@given(texts, texts)
def test_urls(text: str, location: str) -> None:
    try:
        url = parse(text)
    except AttemptError:
        url = parse("http://example.org/a/b?c")
    with suppress(AttemptError):
        url = parse(location, base=url)
    assert not ILLEGAL.search(url.raw_path_qs)
    assert url.scheme in ("http", "https")
    assert url.host
    assert parse(str(url)) == url
    Blocklist(["example.org", "example.org/a", "*a*b*", "a*.test/x"]).blocks(url)
    Rules("User-agent: *\nDisallow: /*a*b$", "seer-ingest").allows(url.raw_path_qs)


@fuzz
@given(st.lists(texts, max_size=5), texts)
def test_blocklists_and_robots(lines: list[str], path: str) -> None:
    with suppress(UserError):
        Blocklist(lines).blocks(parse("http://a.example.org:8080/x?y"))
    text, path = ("\n".join(part).encode("utf-8", "replace").decode() for part in (lines, ["/", path]))
    Rules(text, "seer-ingest").allows(path)


@fuzz
@given(
    st.lists(texts, max_size=3),
    st.one_of(texts, dates),
)
def test_fields(values: list[str], date: str) -> None:
    list(directives(values))
    assert seconds(date) >= 0
    for status in (301, 404, 429, 503, 700):
        assert refusal(status, date).after >= 0


@fuzz
@given(st.sampled_from(["gzip", "deflate", "br", "gzip, deflate", "none", ",,"]), st.lists(st.binary(max_size=50)))
def test_codings(encoding: str, chunks: list[bytes]) -> None:
    packed = [zlib.compress(b"".join(chunks)), *chunks]
    for pieces in (chunks, packed):
        decode = decoder(encoding)
        with suppress(zlib.error, AttemptError):
            assert all(len(decode(piece, 100)) <= 4096 for piece in pieces)


def received(pieces: list[bytes]) -> bytes | None:
    """The body that a client reads out of ``pieces``, None where it takes them for no answer."""

    async def run() -> bytes | None:
        handler = LenientHandler(asyncio.get_running_loop())
        handler.set_response_params(read_until_eof=True, auto_decompress=False, max_field_size=1 << 18)
        for piece in pieces:
            handler.data_received(piece)
        handler.connection_lost(None)
        if handler.exception() is not None and not handler._buffer:
            return None
        while handler._buffer:
            message, payload = await handler.read()
            if not 100 <= message.code < 200:
                return await payload.read()
        return None

    try:
        return asyncio.run(run())
    except (aiohttp.ClientError, HttpProcessingError):
        return None


@fuzz
@given(st.sampled_from([name for name in LENIENT if "field" not in name]), st.data())
def test_answers_in_pieces_and_damaged(name: str, data: st.DataObject) -> None:
    whole = LENIENT[name]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    body = received([piece for piece in pieces if piece])
    assert body is not None
    encoded = [value for value in ("gzip", "deflate", "br") if value.encode() in whole.partition(b"\r\n\r\n")[0]]
    assert encoded or body == J
    damage = data.draw(st.tuples(st.integers(0, 200), blobs))
    received([whole[: damage[0]] + damage[1] + whole[damage[0] + 5 :]])
    repaired(damage[1])


@fuzz
@given(blobs, st.sampled_from([".txt", ".csv", ".tsv", ".jsonl", ".csv.gz", ".txt.zst"]), st.booleans())
def test_lists(tmp_path_factory: pytest.TempPathFactory, blob: bytes, suffix: str, header: bool) -> None:
    path = tmp_path_factory.getbasetemp() / f"list{suffix}"
    path.write_bytes((b"url,text\n" if header and "sv" in suffix else b"") + blob)
    columns = ["url"] if "txt" in suffix else ["url", "text"]
    with suppress(UserError):
        for table in tables(str(path), columns, [pa.string()] * len(columns), set()):
            table.validate(full=True)


def parquet() -> bytes:
    file = io.BytesIO()
    urls = [f"http://a/{number}" for number in range(50)]
    pq.write_table(pa.table({"url": urls, "text": [[url] for url in urls]}), file)
    return file.getvalue()


PARQUET = parquet()


@fuzz
@given(st.lists(st.tuples(st.integers(0, len(PARQUET) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_parquet(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "list.parquet"
    damaged = bytearray(PARQUET)
    for place, value in flips:
        damaged[place] = value
    path.write_bytes(damaged)
    with suppress(UserError):
        for table in tables(str(path), ["url"], [pa.string()], set()):
            table.validate(full=True)
