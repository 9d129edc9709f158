"""URLs out of lists, downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from ingest.budget import Lease
from ingest.download import Downloader, DownloadSettings
from ingest.files import digest, expand
from ingest.reasons import Reason
from ingest.sources import PROBLEM, Plain, Row, demand_no_problem, kept_fields, listed, lists
from seer_pipe.errors import UserError

#: Passwords and signatures in a URL; the names are those of S3, GCS, Azure and CloudFront, and common ones.
SECRET = re.compile(
    r"(?i)(//)[^/?#@\s]*(?=@)"
    r"|([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|policy|token|access_token"
    r"|api_?key|key|password)=)[^&#\s]+"
)


class UrlSource(Plain):
    """The URLs of the list, pattern or folder of lists ``where``, in order.

    ``url_column`` and the columns ``keep`` are looked up where the format has columns. A kept column by a name that
    the sidecar has for the stored image (width, say) is kept as ``input_…``.
    """

    unique = True

    def __init__(
        self, where: str, url_column: str, keep: Sequence[str], download: DownloadSettings, max_bytes: int,
        media: str = "image",
    ) -> None:  # fmt: skip
        self._where, self._url, self._keep = where, url_column, list(keep)
        self._files = expand(where, lists.SUFFIXES)
        self.kept = kept_fields(lists.column_types(self._files, self._keep), media)
        try:
            content = digest(self._files)
        except OSError as error:
            raise UserError(f"{error.filename or where}: not readable: {error.strerror or error}") from None
        self.identity = {"kind": "urls", "list": content, "url_column": url_column, "keep_columns": self._keep}
        self._downloader = Downloader(download, max_bytes)

    def tables(self) -> Iterator[pa.Table]:
        source, types = pa.field("source", pa.string()), [field.type for field in self.kept]
        schema = pa.schema([source, *PROBLEM, *listed(self.kept)])
        found: set[str] = set()
        for file in self._files:
            for table in lists.tables(file, [self._url, *self._keep], [source.type, *types], found):
                url, *kept, wrong = table.columns
                url = pc.utf8_trim_whitespace(pc.fill_null(url, ""))
                missing = pc.if_else(pc.equal(url, ""), Reason.NO_URL.value, pa.scalar(None, pa.string()))
                problem = pc.if_else(pc.is_valid(wrong), Reason.BAD_ROW.value, missing)
                yield pa.table([url, problem, wrong, *kept], schema)
        if never := [name for name in self._keep if name not in found]:
            raise UserError(f"{self._where}: no row has a column {', '.join(map(repr, never))}")

    def shown(self, row: Row) -> str:
        return SECRET.sub(r"\1\2REDACTED", row["source"])

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        demand_no_problem(row)
        return await self._downloader.fetch(row["source"], lease)

    async def __aenter__(self) -> Self:
        await self._downloader.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._downloader.__aexit__(kind, error, trace)
