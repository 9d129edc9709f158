"""The verbs of ``seer-ingest`` that ask something of a finished shard set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ingest.tools.rejected import EXPLANATIONS
from seer_pipe.shards import HOLDS
from seer_pipe.summary import conclude

tools = typer.Typer()
NAMES = {0: "least", 50: "median", 100: "most"}  # of percentiles
Root = Annotated[str, typer.Argument(metavar="ROOT", help="a shard set: a folder or s3://bucket/prefix")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]


def print_rejected(rejected: dict[str, int]) -> None:
    for reason, count in rejected.items():
        print(f"{count:10}  {reason:20} {EXPLANATIONS.get(reason, '')}".rstrip())


def counted(shards: int) -> str:
    return "1 shard" if shards == 1 else f"{shards} shards"


@tools.command()
def stats(root: Root, as_json: AsJson = False) -> None:
    """What a shard set holds, in numbers."""
    from ingest.tools.stats import stats as count

    found = count(root)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    what = HOLDS[found.media]
    print(f"{found.url}: {found.samples} {what} in {counted(found.shards)}, {found.bytes / 1e6:.1f} MB")
    if found.media == "image":
        print(f"{'images':16}{found.image_bytes / 1e6:.1f} MB, {found.megapixels:.1f} megapixels")
    elif found.media == "pair":
        print(f"{what:16} {found.image_bytes / 1e6:.1f} MB, of {found.sources} clips")
    else:
        print(f"{what:16}{found.image_bytes / 1e6:.1f} MB, {found.seconds / 60:.1f} min, of {found.sources} sources; "
              f"{found.with_sound} with sound")  # fmt: skip
    for name, sides in (("short side", found.short_side), ("long side", found.long_side)):
        parts = (f"{NAMES.get(percent, f'{percent} %')} {pixels}" for percent, pixels in sides.items())
        if found.media != "audio":
            print(f"{name:16}" + ", ".join(parts) + " pixels")
    if found.formats:
        formats = ", ".join(f"{name} {count}" for name, count in found.formats.items())
        print(f"{'came as':16}{formats}" + (f"; {found.reencoded} encoded again" if found.media == "image" else ""))
    if found.media == "image":
        print(f"{'without a hash':16}{found.unhashed}")
    print(f"{'excluded':16}{found.excluded}")
    print(f"{'rejected':16}{sum(found.rejected.values())}")
    print_rejected(found.rejected)


@tools.command()
def verify(
    root: Root,
    images: Annotated[bool, typer.Option("--images", "--clips", help="decode every image or clip, too")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a shard set and hold it against its manifest and sidecars; exit code 1 where they differ."""
    from ingest.tools.verify import verify as check

    samples = size = problems = shards = 0
    for found in check(root, images):
        shards, samples, size = shards + 1, samples + found.samples, size + found.bytes
        problems += len(found.problems)
        for problem in found.problems:
            print(
                json.dumps(asdict(problem))
                if as_json
                else " ".join(filter(None, (f"{problem.shard}:", problem.key, problem.what)))
            )
    summary = {"shards": shards, "samples": samples, "bytes": size, "problems": problems}
    text = f"{samples} samples in {counted(shards)}, {size / 1e6:.1f} MB: {problems or 'no'} problems"
    print(json.dumps(summary) if as_json else text)
    if not as_json:
        conclude(f"{root}: verified")
    if problems:
        raise typer.Exit(1)


@tools.command()
def dedup(
    root: Root,
    distance: Annotated[int, typer.Option(help="bits of 64 in which perceptual hashes of copies may differ")] = 4,
    memory: Annotated[float, typer.Option(help="GiB that the search may take; the disk serves beyond")] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Find duplicates over a whole shard set, and list them for training to leave out; no shard is rewritten."""
    from ingest.tools.dedup import dedup as search

    found = search(root, distance, int(memory * (1 << 30)))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{found.samples} samples: {found.same} have the bytes of an earlier one, {found.near} nearly look like one"
        )
        print(found.url)
        conclude(f"{root}: searched for duplicates", "training leaves them out: seer-pipe train")


@tools.command()
def exclude(
    root: Root,
    keys: Annotated[str, typer.Option(help="list of keys: txt, one per line; csv, tsv, jsonl, parquet: column key")],
    as_json: AsJson = False,
) -> None:
    """Leave samples out of training, by their keys; no shard is rewritten."""
    from ingest.tools.excluded import exclude as leave_out
    from seer_pipe.shards import EXCLUDED

    named, total = leave_out(root, keys)
    if as_json:
        print(json.dumps({"named": named, "excluded": total}))
    else:
        print(f"{named} samples named, {total} excluded by now: {root.rstrip('/')}/{EXCLUDED}")
        conclude(f"{root}: excluded", "training leaves them out: seer-pipe train")


@tools.command()
def show(
    root: Root,
    out: Annotated[Path, typer.Argument(help="the PNG to write")],
    samples: Annotated[int, typer.Option(help="images or clips on it")] = 48,
    seed: Annotated[int, typer.Option(help="which ones")] = 0,
) -> None:
    """A contact sheet: random images, or frames and waveforms, of a shard set, and what was rejected, by reason."""
    from ingest.tools.show import show as draw

    draw(root, out, samples, seed)
    print(out)
    conclude("contact sheet written")
