"""Inputs in a keyed random order, by way of files, so that memory stays bounded whatever their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY = 0x5EE12B00  # of the permutation, which is a function of the number of inputs alone
ROWS = 500_000  # inputs that are held at a time
MOST_PARTS = 256  # files: of more than ROWS * MOST_PARTS inputs, a 256th is held at a time


def shuffled(inputs: Path, folder: Path, rows: int = ROWS) -> Iterator[pa.Table]:
    """All rows of the parquet file ``inputs``, permuted, in tables of about ``rows``; temporary files go to ``folder``.

    Row number i has the i-th number of a Philox stream (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    SC 2011), and the rows are sorted by these: first into parts by the leading bits, then each part on its own.
    """
    read = pq.ParquetFile(inputs)
    parts = min(MOST_PARTS, max(1, -(-read.metadata.num_rows // rows)))
    random = np.random.Philox(key=KEY)
    schema = read.schema_arrow.append(pa.field("_order", pa.uint64()))
    paths = [folder / f"part-{part}" for part in range(parts)]
    with ExitStack() as files:
        writers = [files.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
        streams = [files.enter_context(pa.ipc.new_stream(file, schema)) for file in writers]
        for group in range(read.num_row_groups):
            table = read.read_row_group(group, use_threads=False)
            order = np.asarray(random.random_raw(table.num_rows), np.uint64)
            table = table.append_column(schema.field("_order"), pa.array(order))
            part = ((order >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)
            for number in np.unique(part).tolist():
                streams[number].write_table(table.filter(pa.array(part == number)))
    for path in paths:
        with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        path.unlink()
        order = table["_order"].to_numpy()
        yield table.take(pa.array(np.argsort(order, kind="stable"))).drop_columns(["_order"])
