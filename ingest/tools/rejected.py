"""The rejected inputs of a shard set."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.reasons import Reason
from seer_pipe.store import Store

FOLDER = "rejected/"


def rejected_tables(store: Store) -> Iterator[pa.Table]:
    """The tables of ``REJECTED_SCHEMA``, one per unit of work."""
    for entry in store.list(FOLDER):
        yield pq.read_table(pa.BufferReader(store.get(entry.path)))


#: A line about each reason; what another version of the program wrote may have others.
EXPLANATIONS = {reason.value: reason.explanation for reason in Reason}
