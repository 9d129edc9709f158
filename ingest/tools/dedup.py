"""Duplicates over a whole shard set, found out of core and listed to be excluded; nothing is rewritten.

Of samples of the same bytes all but the first are excluded. So is every sample whose perceptual hash differs from
an earlier sample's in at most ``distance`` bits, be that one excluded or not: of a chain of copies the first stays,
whatever else is found, so the same set always gives the same list. Samples without a hash (flat images) and hashes
further apart are left alone. So are clips that look alike: those of one source mostly do, and their sounds differ.

Near hashes are found without comparing all with all. Cut 64 bits into d + 3 blocks: hashes that differ in at most d
bits agree in at least 3 whole blocks, so they meet in one of the joins over 3 blocks (the pigeonhole of Manku et
al., "Detecting near-duplicates for web crawling", WWW 2007). DuckDB joins within its memory limit and on disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from ingest.tools.excluded import by_hand, merged, read, write
from seer_pipe.errors import UserError
from seer_pipe.shards import EXCLUDED, ShardSet

MATCHING = 3  # blocks
MOST = 8  # bits; further apart than that are other pictures


@dataclass(frozen=True)
class Dedup:
    url: str  # of the list
    samples: int  # of the set
    same: int  # excluded for their bytes
    near: int  # excluded for their perceptual hash


def dedup(root: str | os.PathLike[str], distance: int = 4, memory: int = 3 << 30) -> Dedup:
    """Find duplicates and write the list of them. ``memory``: bytes that the joins may take; the disk serves beyond.

    ``distance`` bits of 64 may differ between near duplicates. Equal pictures of another size or quality are mostly
    within 4 bits, others hardly ever (``ingest.image.phash``). What was excluded by hand stays so, and what repeats it
    is a duplicate still. UserError where there is no set, or its list is of another one.
    """
    if not 0 <= distance <= MOST:
        raise UserError(f"distance = {distance}: from 0 (equal hashes alone) to {MOST} bits")
    shards = ShardSet.open(root)
    earlier = read(shards)
    with tempfile.TemporaryDirectory(prefix="dedup-") as folder, duckdb.connect(Path(folder, "samples.db")) as db:
        db.execute(f"SET memory_limit = '{memory} B'; SET preserve_insertion_order = false")
        _load(db, shards)
        _find(db, distance)
        found = db.execute('SELECT sample, "of", distance FROM excluded ORDER BY sample').fetchnumpy()
    write(shards, merged(pa.table(found), by_hand(earlier)))
    same = int(np.ma.count_masked(found["distance"]))
    return Dedup(f"{shards.store.url}/{EXCLUDED}", len(shards), same, len(found["sample"]) - same)


def _load(db: duckdb.DuckDBPyConnection, shards: ShardSet) -> None:
    db.execute("CREATE TABLE samples (sample BIGINT, digest UUID, phash UBIGINT)")
    first = 0
    for shard in range(len(shards.paths)):
        rows = shards.sidecar(shard, ["sha256", "phash"])
        if shards.media != "image":
            rows = rows.set_column(1, "phash", pa.nulls(rows.num_rows, pa.uint64()))
        db.register("rows", rows.append_column("sample", pa.array(np.arange(first, first + rows.num_rows))))
        db.execute("INSERT INTO samples SELECT sample, left(sha256, 32)::UUID, phash FROM rows")
        first += rows.num_rows


def _find(db: duckdb.DuckDBPyConnection, distance: int) -> None:
    db.execute("""
        CREATE TABLE excluded AS
            SELECT sample, "of", NULL::TINYINT AS distance
            FROM samples JOIN (SELECT digest, min(sample) AS "of" FROM samples GROUP BY digest) USING (digest)
            WHERE sample <> "of";
        CREATE TABLE hashes AS
            SELECT phash, min(sample) AS sample FROM samples WHERE phash IS NOT NULL GROUP BY phash;
        CREATE TABLE near AS
            SELECT samples.sample, hashes.sample AS "of", 0::TINYINT AS distance
            FROM samples JOIN hashes USING (phash) WHERE samples.sample <> hashes.sample
    """)
    for joined, others in block_masks(distance):
        # a pair that agrees in more blocks than these meets in several joins: taken in the first
        elsewhere = "".join(f" AND xor(a.phash, b.phash) & {mask} <> 0" for mask in others)
        db.execute(f"""
            INSERT INTO near SELECT b.sample, a.sample, bit_count(xor(a.phash, b.phash))
            FROM hashes a JOIN hashes b ON a.phash & {joined} = b.phash & {joined} AND a.sample < b.sample
            WHERE bit_count(xor(a.phash, b.phash)) <= {distance}{elsewhere}
        """)
    db.execute("""
        INSERT INTO excluded SELECT sample, min("of"), arg_min(distance, "of")
        FROM near ANTI JOIN excluded USING (sample) GROUP BY sample
    """)


def block_masks(distance: int) -> Iterator[tuple[int, list[int]]]:
    """For every join: the mask of the bits that it joins on, and those of the blocks before its last that it skips."""
    if distance == 0:
        return
    bounds = [64 * block // (distance + MATCHING) for block in range(distance + MATCHING + 1)]
    blocks = [(1 << high) - (1 << low) for low, high in pairwise(bounds)]
    for chosen in combinations(range(len(blocks)), MATCHING):
        others = [blocks[block] for block in range(chosen[-1]) if block not in chosen]
        yield sum(blocks[block] for block in chosen), others
