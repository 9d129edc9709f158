"""``seer-ingest``: the command line. A verb parses, calls and prints."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ingest.at_work import StoppedError
from ingest.cli_progress import left_to_others, progress, report
from ingest.cli_tools import tools
from ingest.download import DownloadSettings
from ingest.image import ImageSettings
from ingest.index import IndexSource
from ingest.job_array import Work, run_array
from ingest.media import MediaSettings, demand_av
from ingest.on_ray import run_on_ray
from ingest.plan import prepare
from ingest.run import finish, pending, sole
from ingest.sources import Source
from ingest.sources.archive import ArchiveSource
from ingest.sources.clips import ClipSource
from ingest.sources.folder import FolderSource
from ingest.sources.parquet import ParquetSource
from ingest.sources.urls import UrlSource
from ingest.sources.warc import WarcSource
from ingest.sources.webdataset import WebDatasetSource
from ingest.tracks import TrackSettings, demand_cv2
from ingest.workers import Settings
from seer_pipe.errors import UserError, run_to_end
from seer_pipe.share import ALL, Share
from seer_pipe.store import Store, open_store
from seer_pipe.summary import conclude

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Images, videos and sounds from anywhere into a shard set.",
)
app.add_typer(progress)
app.add_typer(tools)
#: Bytes of inputs under way: at least, for each connection, for each worker
MEMORY, MEMORY_PER_CONNECTION, MEMORY_PER_WORKER = 32 << 20, 128 << 10, 8 << 20
#: Inputs that make one shard, of about 1 GB or less
UNIT = {"image": 10_000, "video": 200, "audio": 1_000, "pair": 2_000}


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """How a run is done, which changes nothing of what comes out."""

    workers: Annotated[int, "processes that decode; 0: one a core"] = 0
    json: Annotated[bool, "progress and summary as JSON"] = False
    slurm: Annotated[bool, "spread the work over a Slurm job array, or processes here where there is no Slurm"] = False
    ray: Annotated[str, "ADDRESS of a Ray cluster to spread the work over; auto: the one of this machine or of "
                   "RAY_ADDRESS; local: one that is started here"] = ""  # fmt: skip
    tasks: Annotated[int, "jobs of the array, or tasks on Ray"] = 8
    slurm_parameters: Annotated[str, "name=value,… for the jobs: partition, cpus_per_task, timeout_min, …"] = ""
    share: Annotated[str, "I/N: only this share of the work, 0/N to N-1/N; others do the others, anywhere"] = ""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.tasks < 1:
            raise UserError("workers is at least 0, tasks at least 1")
        if bool(self.slurm) + bool(self.ray) + (Share.parse(self.share) != ALL) > 1:
            raise UserError("--share, --slurm and --ray: choose one; the last two divide the work themselves")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(JobOptions):
    """What every run that makes shards needs to know."""

    out: Annotated[str, "where the shard set goes: a folder or s3://bucket/prefix"]
    unit: Annotated[int | None, "inputs that make one shard, fewer once they have 1 GiB; 10,000, or 200 videos, "
                    "1,000 sounds, 2,000 clips"] = None  # fmt: skip
    shuffle: Annotated[bool, "deal the inputs to the shards at random, the same way each time"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit is not None and self.unit < 1:
            raise UserError(f"unit = {self.unit}: at least 1")


Media = Annotated[
    Literal["image", "video", "audio"], typer.Option(help="what is stored: images, or clips of videos or of sound")
]
HELP = {
    "reencode": "whether fit JPEGs are encoded again: auto (no), always, or never (and all else is rejected)",
    "quality": "of JPEGs encoded here",
    "short_side": "pixels; what is larger is scaled down to it: images are not, videos to 256",
    "min_side": "pixels; what has a shorter side is rejected",
    "max_aspect": "longer side : shorter side",
    "min_bytes": "of an input",
    "max_bytes": "of an input; 64 MiB, or 256 MiB of video and audio",
    "max_pixels": "by the header; larger images are not decoded",
    "repair": "store what is there of a truncated JPEG that is nearly complete",
    "clip_seconds": "of a clip; the last one of a source may be shorter",
    "min_seconds": "a shorter source is rejected, and a shorter rest of one left off",
    "max_seconds": "of a source",
    "frame_rate": "frames per second of the clips",
    "audio_rate": "Hz of the clips",
    "frames": "from the first picture of a track to its last",
    "patch": "side of a patch, as a share of the short side of the frames",
    "decode_timeout": "seconds that a worker may take for one source",
}


def options(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn parameters that are settings (dataclasses) into one option a field, by the fields' names and defaults.

    A name that two of them have is one option for both, which has no default where theirs differ. A field that has the
    name of a parameter beside them, or cannot be given, is no option.
    """
    parameters: list[inspect.Parameter] = []
    kinds: dict[str, Any] = {}
    places: dict[str, int] = {}  # of the options among the parameters
    beside = inspect.signature(verb).parameters
    for name, kind in get_type_hints(verb, include_extras=True).items():
        if name == "return":
            continue
        if not dataclasses.is_dataclass(kind):
            parameters.append(beside[name].replace(annotation=kind))
            continue
        kinds[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            if field.name in beside or not field.init:
                continue
            hint, text = hints[field.name], HELP.get(field.name)
            if get_origin(hint) is Annotated:
                hint, text = get_args(hint)
            if field.name in places:
                shared = parameters[places[field.name]]
                if shared.default != field.default:
                    hint = Annotated[hint | None, *get_args(shared.annotation)[1:]]
                    parameters[places[field.name]] = shared.replace(default=None, annotation=hint)
                continue
            places[field.name] = len(parameters)
            option = typer.Option("--" + field.name.replace("_", "-"), help=text)
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                    annotation=Annotated[list[str] if hint == tuple[str, ...] else hint, option],
                )
            )

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        for name, kind in kinds.items():
            values = {f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in places}
            made = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if v is not None}
            given[name] = kind(**made)
        verb(**{name: value for name, value in given.items() if name not in places})

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return command


@app.command()
@options
def folder(
    path: Annotated[Path, typer.Argument(help="a folder of images, videos or sounds, with all folders in it")],
    run: RunOptions,
    image: ImageSettings,
    clips: MediaSettings,
    media: Media = "image",
    keep_columns: Annotated[str, typer.Option(help="kept of what lies beside a.jpg: keys of a.json, or txt")] = "",
) -> None:
    """Images, videos or sounds in a folder."""
    wanted = chosen(media, image, clips)
    source = FolderSource(path, wanted.max_bytes, names(keep_columns), media)
    root = open_store(run.out).local_path("")
    if root is not None and root.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{run.out}: inside {path}, which is read; choose a place beside it")
    execute(source, run, wanted)


@app.command()
@options
def archive(
    path: Annotated[
        str, typer.Argument(help="archive, pattern or folder of archives, here or s3://: tar, tar.gz, zip")
    ],
    run: RunOptions,
    image: ImageSettings,
    clips: MediaSettings,
    media: Media = "image",
) -> None:
    """Images, videos or sounds in archives, which are not extracted."""
    wanted = chosen(media, image, clips)
    execute(ArchiveSource(path, wanted.max_bytes), run, wanted)


@app.command()
@options
def warc(
    path: Annotated[str, typer.Argument(help="file, pattern or folder of WARC or ARC files, here or s3://")],
    run: RunOptions,
    image: ImageSettings,
) -> None:
    """Images in web archives."""
    execute(WarcSource(path, image.max_bytes), run, image)


@app.command()
@options
def webdataset(
    path: Annotated[str, typer.Argument(help="tar, pattern or folder of tars, or a shard set, here or s3://")],
    run: RunOptions,
    image: ImageSettings,
    clips: MediaSettings,
    media: Media = "image",
    keep_columns: Annotated[str, typer.Option(help="kept in the sidecar: keys of the json members, or txt")] = "",
) -> None:
    """Images, videos or sounds of an existing set, into new shards."""
    wanted = chosen(media, image, clips)
    execute(WebDatasetSource(path, names(keep_columns), wanted.max_bytes, media), run, wanted)


@app.command()
@options
def parquet(
    path: Annotated[
        str, typer.Argument(help="file, pattern or folder, here or s3://: parquet, arrow, feather, jsonl (.gz, .zst)")
    ],
    run: RunOptions,
    image: ImageSettings,
    image_column: Annotated[str, typer.Option(help="column of the images: bytes, base64, or {bytes, path}")] = "image",
    keep_columns: Annotated[str, typer.Option(help="columns kept in the sidecar, separated by commas")] = "",
) -> None:
    """Images in a column of Parquet, Arrow or JSON Lines files."""
    source = ParquetSource(path, image_column, names(keep_columns), image.max_bytes)
    execute(source, run, image)


@app.command()
@options
def urls(
    lists: Annotated[
        str, typer.Argument(help="list, pattern or folder of lists, here or s3://: txt, csv, tsv, jsonl, parquet")
    ],
    run: RunOptions,
    image: ImageSettings,
    clips: MediaSettings,
    download: DownloadSettings,
    media: Media = "image",
    url_column: Annotated[str, typer.Option(help="column of the URLs")] = "url",
    keep_columns: Annotated[str, typer.Option(help="columns kept in the sidecar, separated by commas")] = "",
) -> None:
    """Images, videos or sounds behind the URLs of a list."""
    wanted = chosen(media, image, clips)
    source = UrlSource(lists, url_column, names(keep_columns), download, wanted.max_bytes, media)
    execute(source, run, wanted, connections=download.connections)


@app.command()
@options
def tracks(
    path: Annotated[str, typer.Argument(help="a shard set of video clips: a folder or s3://bucket/prefix")],
    run: RunOptions,
    settings: TrackSettings,
) -> None:
    """Patches that move in a set of clips, each with the same patch some frames later: a set of pairs of pictures."""
    demand_cv2()
    source = ClipSource(path)
    root, own = (open_store(place).local_path("") for place in (run.out, path))
    if root is not None and root == own:
        raise UserError(f"{run.out}: holds the clips; choose another place")
    execute(source, run, settings)


@app.command()
@options
def index(
    path: Annotated[str, typer.Argument(help="tar, pattern or folder of WebDataset tars, here or s3://")],
    job: JobOptions,
    image: ImageSettings,
    out: Annotated[str, typer.Option(help="where the sidecars and the manifest go, if not into the folder PATH")] = "",
    keep_columns: Annotated[str, typer.Option(help="kept in the sidecar: keys of the json members, or txt")] = "",
) -> None:
    """Use an existing set where it stands: JPEGs that are fit as they are, no byte of them copied."""
    if not out and path.endswith(".tar"):
        raise UserError(f"{path}: no folder; say with --out where the sidecars go")
    source = IndexSource(path, names(keep_columns), image.max_bytes)
    store, strict = open_store(out or path), dataclasses.replace(image, reencode="never")
    carry_out(source, store, None, job, strict)


def names(text: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def chosen(
    media: Literal["image", "video", "audio"], image: ImageSettings, clips: MediaSettings
) -> ImageSettings | MediaSettings:
    """The settings of what is wanted. UserError where one is given that is for something else, or PyAV is missing."""
    wanted: ImageSettings | MediaSettings = image
    others: ImageSettings | MediaSettings = clips
    if media != "image":
        wanted, others = dataclasses.replace(clips, media=media), image
    known = {field.name for field in dataclasses.fields(wanted)}
    for field in dataclasses.fields(others):
        if field.name not in known and getattr(others, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')}: has no meaning with --media {media}")
    if media != "image":
        demand_av()
    return wanted


def execute(source: Source, run: RunOptions, wanted: Settings, connections: int = 0) -> None:
    """Make new shards of the inputs of ``source``."""
    media = "image" if isinstance(wanted, ImageSettings) else wanted.media
    carry_out(source, open_store(run.out), run.unit or UNIT[media], run, wanted, connections)


def carry_out(
    source: Source,
    store: Store,
    unit: int | None,
    job: JobOptions,
    wanted: Settings,
    connections: int = 0,
) -> None:
    """Do what is left to do of the job's share; once all is done write the manifest and print the summary. Without
    ``unit`` tars are used in place."""
    share = Share.parse(job.share)
    with sole(store, share):
        settings = {"unit": unit, **dataclasses.asdict(wanted)}
        if isinstance(job, RunOptions) and job.shuffle:
            settings["shuffle"] = True  # not written where it is off, so that older runs can be resumed
        plan, resumed = prepare(source, store, settings, unit, share)
        if resumed and share.number == 0 and (note := source.note(plan.inputs)):
            print(f"note: {note}", file=sys.stderr)
        left = pending(plan)
        own = share.part(range(plan.units)) if job.share else left
        if not set(own).isdisjoint(left):
            workers = job.workers or len(os.sched_getaffinity(0))
            memory = max(MEMORY, connections * MEMORY_PER_CONNECTION, workers * MEMORY_PER_WORKER)
            work = Work(source, plan, share, own, wanted, job.workers or None, memory, job.json)
            if job.slurm:
                run_array(work, job.tasks, job.slurm_parameters)
            elif job.ray:
                run_on_ray(work, job.tasks, job.ray)
            else:
                work()
            left = pending(plan) if job.share else []
        if left:
            left_to_others(plan, share, len(left), job.json)
        else:
            summary = finish(plan)
            report(summary, job.json)
            if not job.json:
                recipe = "tracking_resnet18" if summary.media == "pair" else "RECIPE"
                conclude(f"{summary.url}: complete", f"seer-pipe train {recipe} data.path={summary.url}")


def stop(number: int, _: object) -> None:
    raise StoppedError(number)


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run the command line, by default that of this process; ``program``: its name in the help."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        run_to_end(functools.partial(app, arguments, prog_name=program))
    except StoppedError as stopped:
        print("stopped; what is committed stays, and the same command resumes", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
