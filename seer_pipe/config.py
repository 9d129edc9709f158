"""A whole run as one typed tree, read from YAML.

An unknown key, a wrong type or a value out of range is a ``UserError`` that names the key. What follows from the
settings (learning rate of the true batch, steps, …) is computed in ``derive`` and nowhere else. Durations are in
images, so that no setting changes its meaning with the batch or the number of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from seer_pipe.errors import UserError
from seer_pipe.objectives import AnySettings
from seer_pipe.section import Count, Positive, Probability, Rate, Section, override, read_file, validate
from seer_pipe.store import FolderStore


def _seconds(value: Any) -> Any:
    """A text like 90s, 10m or 2h in seconds."""
    if isinstance(value, str) and value[:-1].replace(".", "", 1).isdigit() and value[-1] in "smh":
        return float(value[:-1]) * {"s": 1, "m": 60, "h": 3600}[value[-1]]
    return value


def _absolute(path: str) -> str:
    """A run outlives the directory that it was started from; a store's address is none."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_csv(labels: str) -> str:
    """Labels are also named by a word."""
    return _absolute(labels) if labels.endswith(".csv") else labels


Place = Annotated[str, AfterValidator(_absolute)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


BoardName = Literal["tensorboard", "wandb", "mlflow"]


class Source(Section):
    path: Place = Field(description="shard set: a folder or s3://bucket/prefix")
    weight: Annotated[float, Field(gt=0)] = Field(description="share of the batch, in proportion to the others'")


class Cache(Section):
    path: Place = Field(description="folder on a disk of the node, for what comes from an object store")
    gb: Annotated[float, Field(gt=0)] = Field(description="that all processes of the node together keep there")


class Data(Section):
    path: Place | None = Field(None, description="shard set: a folder or s3://bucket/prefix; or give sources")
    sources: Annotated[list[Source], Field(min_length=1)] | None = Field(None, description="shard sets to be mixed")
    lanes: Positive | None = Field(None, description="parts of the set that a batch comes from; default: the batch")
    window: Positive = Field(32, description="chunks that a lane draws from in turn; more: batches look less alike")
    chunk: Positive | None = Field(None, description="samples read at once; default: up to 128")
    threads: Positive = Field(2, description="decoding threads a rank")
    ahead: Positive = Field(2, description="batches made in advance")
    memory_gb: Annotated[float, Field(gt=0)] = Field(1.0, description="that a rank reads in advance")
    cache: Cache | None = None
    max_bad_fraction: Probability = Field(0.01, description="stop when more images than this had to be replaced")

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.path is None) == (self.sources is None):
            raise ValueError("give either path or sources, and set the other to null")
        return self

    @property
    def paths(self) -> list[str]:
        """Of all shard sets."""
        return [self.path] if self.path is not None else [source.path for source in self.sources or []]


class Augment(Section):
    """Strengths and probabilities of what is done to a crop; the defaults are SwAV's and SEER's."""

    flip: Probability = 0.5
    jitter: tuple[Rate, Rate, Rate, Annotated[float, Field(ge=0, le=0.5)]] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: Probability = 0.8
    jitter_order: Literal["random", "fixed"] = "random"
    grey_p: Probability = 0.2
    blur_p: Probability = 0.5
    blur_sigma: tuple[Rate, Rate] = (0.1, 2.0)
    solarise_p: Probability = 0.0
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("blur_sigma", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [low, high], not [{low:g}, {high:g}]")
        return self


class Crop(Section):
    count: Positive
    size: Annotated[int, Field(ge=8, le=2048)] = Field(description="pixels")
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
    layout: Literal["independent", "quarter_turns"] = Field(
        "independent", description="quarter_turns: each crop four times, turned by 0, 90, 180 and 270 degrees"
    )
    augment: Augment | None = Field(None, description="what differs from views.augment for these crops")

    @model_validator(mode="after")
    def _ordered(self) -> Crop:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [low, high]")
        return self

    @property
    def seen(self) -> int:
        """Crops that the network sees per image."""
        return self.count * (4 if self.layout == "quarter_turns" else 1)


class Views(Section):
    crops: Annotated[list[Crop], Field(min_length=1)]
    augment: Augment = Augment()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree: Any) -> Any:
        """A crop's own strengths are those of all crops but for what it sets itself."""
        common = tree.get("augment", {}) if isinstance(tree, dict) else None
        if not isinstance(common, dict) or not isinstance(tree.get("crops"), list):
            return tree  # what is wrong is told by the fields' own checks

        def complete(crop: Any) -> Any:
            own = crop.get("augment") if isinstance(crop, dict) else None
            return {**crop, "augment": {**common, **own}} if isinstance(own, dict) else crop

        return tree | {"crops": [complete(crop) for crop in tree["crops"]]}

    @model_validator(mode="after")
    def _blurrable(self) -> Views:
        for crop in self.crops:
            augment = crop.augment or self.augment
            if augment.blur_p > 0 and 3 * max(augment.blur_sigma) > crop.size - 1:
                raise ValueError(f"blur_sigma {max(augment.blur_sigma)} reaches past a crop of {crop.size} pixels")
        return self

    @property
    def count(self) -> int:
        """Crops that the network sees per image."""
        return sum(crop.seen for crop in self.crops)


class Model(Section):
    name: str
    stem: Literal["imagenet", "small"] = "imagenet"


class Optimizer(Section):
    name: Literal["larc", "lars", "sgd", "adamw"] = "larc"
    lr: Annotated[float, Field(gt=0)] = Field(0.3, description="peak, for a batch of 256; scaled linearly")
    final_lr: Probability = Field(0.001, description="share of the peak at the end")
    warmup_lr: Probability = Field(0.0, description="share of the peak at the start")
    warmup_images: Count = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    cosine_from: Literal["warmup", "start"] = Field(
        "warmup", description="where the cosine begins: at the end of the warm-up, or under it at the start, as SEER's"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Rate = 1e-6
    trust: Annotated[float, Field(gt=0)] = 0.001
    exclude: list[Literal["bias", "norm"]] = Field(
        [], description="what has neither decay nor adapted rate; SwAV and SEER exclude nothing"
    )


class ImageGroups(Section):
    """BatchNorm over so many images, whatever the number of ranks: several ranks' own, or slices of one's."""

    images: Positive


class Train(Section):
    batch: Positive = Field(description="images a step, over all ranks")
    images: Positive | None = Field(None, description="images in all; or give passes")
    passes: Annotated[float, Field(gt=0)] | None = Field(None, description="times through the set; default: one")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = Field(None, description="CPU threads a rank for the network; default: torch's")
    parallel: Literal["auto", "none", "ddp", "fsdp2", "fairscale"] = "auto"
    shard_within: Literal["node"] | Positive | None = Field(
        None, description="fsdp2: shard over the ranks of a node, or so many, and replicate across; default: over all"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Positive = Field(1, description="pieces that a rank computes its images in; codes see the whole batch")
    sync_bn: bool | Positive | ImageGroups = Field(
        True, description="BatchNorm over all ranks, over groups of so many, or {images: N}: over so many images"
    )
    compile: bool = Field(False, description="compile each block, once a resolution")
    channels_last: bool = Field(False, description="memory layout of images and weights; not with fsdp2")
    activation_checkpointing: bool | list[Annotated[int, Field(ge=1, le=4)]] = Field(
        False, description="recompute blocks in backward: all, or those of these stages"
    )
    log_every: Positive = Field(10, description="steps")
    log_to: list[BoardName] = Field(["tensorboard"], description="besides metrics.jsonl; wandb and mlflow are extras")
    checkpoint_every: Positive = Field(1000, description="steps")
    keep: Positive = Field(3, description="newest checkpoints to keep, besides the best by kNN where there is a probe")
    keep_every_images: Positive | None = Field(None, description="one checkpoint in so many images is kept for ever")
    checkpoints: Place | None = Field(
        None, description="where they are kept, for this run alone: s3://bucket/prefix or a folder; default: the run's"
    )
    stop_before: Seconds = Field(120.0, description="stop this long before the allocation ends: 10m, 90s, 2h")

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.images is not None and self.passes is not None:
            raise ValueError("give either images or passes, and set the other to null")
        return self


class Health(Section):
    """What is done about steps whose loss or gradient is not finite, and about ranks that do not answer."""

    max_skips: Count = Field(default=3, description="such steps in a row before a rollback to the last checkpoint")
    max_rollbacks: Count = Field(default=2, description="rollbacks without a new checkpoint before the run stops")
    rollback_lr: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="multiplies the rate at each")
    timeout: Seconds = Field(default=600.0, description="a process that gets no further for so long ends")


class Probe(Section):
    """kNN accuracy on a small labelled shard set, while training."""

    path: Place = Field(description="shard set: a folder or s3://bucket/prefix")
    labels: Annotated[str, AfterValidator(_absolute_csv)] = Field(
        "folder", description="CSV file (source,label), or 'folder': an image's folder is its class"
    )
    every_images: Positive = Field(description="measured, and a checkpoint saved, once in so many images")


class Config(Section):
    name: str
    seed: Count = 0
    data: Data
    views: Views
    model: Model
    objective: AnySettings
    optimizer: Optimizer
    train: Train
    health: Health = Health()
    probe: Probe | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        self.objective.check(self.views, self.train.batch)
        return self


@dataclass(frozen=True)
class Derived:
    """What follows from a config and the size of its shard set."""

    images_in_set: int
    steps: int
    steps_per_pass: int
    passes: float
    images: int  # that the run will have seen at its end
    images_per_rank: int  # of one step
    peak_lr: float
    warmup_steps: int
    settled_steps: int  # until which the warm-up lasts, or the objective holds something fixed
    chance_loss: float | None  # of a network that tells nothing apart, where the objective has such a number
    crops_per_image: int
    objective: dict[str, float]  # what else follows from its settings


def derive(config: Config, images_in_set: int, world: int = 1, finished: tuple[int, int] = (0, 0)) -> Derived:
    """The one place where settings become numbers. ``finished``: steps and images, for the batch may have changed."""
    batch, objective = config.train.batch, config.objective
    per_pass = images_in_set // batch
    if config.train.images is not None:
        wanted = config.train.images
    else:
        wanted = round((config.train.passes or 1) * per_pass) * batch
    left = max(0, wanted - finished[1]) // batch
    steps, images = finished[0] + left, finished[1] + left * batch
    if steps < 1:
        raise UserError(f"train: less than one batch of {batch} in all; give more images or passes")
    return Derived(
        images_in_set=images_in_set,
        steps=steps,
        steps_per_pass=per_pass,
        passes=images / (per_pass * batch) if per_pass else 0.0,
        images=images,
        images_per_rank=batch // world,
        peak_lr=config.optimizer.lr * batch / 256,
        warmup_steps=math.ceil(config.optimizer.warmup_images / batch),
        settled_steps=math.ceil(max(config.optimizer.warmup_images, objective.settled_images) / batch),
        chance_loss=objective.chance_loss,
        crops_per_image=config.views.count,
        objective=objective.derived(batch),
    )


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``key.path=value`` overrides; UserError says what is wrong where."""
    tree = read_file(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a config: expected sections, found {type(tree).__name__}")
    if tree.pop("derived", None) is not None:  # a run's own config.yaml, with its record
        for name in ("init", "changes"):
            tree.pop(name, None)
    for change in overrides:
        override(tree, change)
    return parse(tree, str(path))


def parse(tree: Mapping[str, Any], where: str) -> Config:
    return validate(Config, tree, where)


class _Kept(Section):
    objective: AnySettings


def parse_objective(tree: Mapping[str, Any], where: str) -> AnySettings:
    """The settings of an objective alone, as an export keeps them."""
    return validate(_Kept, {"objective": tree}, where).objective


@dataclass(frozen=True)
class Record:
    """What RUN/config.yaml holds beside settings and derived values.

    init       of a run that began from given weights: their name, SHA-256, licence and method, as far as known
    changes    made on purpose, oldest first: step and images then, and {key: [old, new]} of the settings
    """

    init: Mapping[str, str | None] | None = None
    changes: Sequence[Mapping[str, Any]] = ()


def read_record(path: Path) -> Record:
    """That of a config.yaml which ``save`` wrote."""
    tree = yaml.safe_load(path.read_text())
    return Record(tree.get("init"), tree.get("changes", ()))


def save(config: Config, derived: Derived, path: Path, record: Record = Record()) -> str:
    """The resolved config with every derived value, as YAML."""
    tree = config.model_dump(mode="json") | {"derived": asdict(derived)}
    if record.init is not None:
        tree["init"] = dict(record.init)
    if record.changes:
        tree["changes"] = [dict(change) for change in record.changes]
    text: str = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    FolderStore(path.parent).put(path.name, text.encode())  # a kill leaves the one or the other, and never a part
    return text


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of a tree of settings by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
