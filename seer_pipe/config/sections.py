"""The settings of a run: one section per room.

An unknown key, a wrong type or a value out of range is a ``UserError`` that names the key. Durations are in images, so
that no setting changes its meaning with the batch or the number of GPUs. What a resume may do to a setting is marked
on it (``FREE``, ``LENGTH``, ``fixed``); one without a mark is changed on purpose alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from seer_pipe.objectives import AnySettings
from seer_pipe.section import FREE, LENGTH, Count, Positive, Probability, Rate, Section, fixed


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
    path: Annotated[Place | None, FREE] = Field(
        None, description="shard set: a folder or s3://bucket/prefix; or give sources"
    )
    sources: Annotated[Annotated[list[Source], Field(min_length=1)] | None, FREE] = Field(
        None, description="shard sets to be mixed"
    )
    lanes: Positive | None = Field(None, description="parts of the set that a batch comes from; default: the batch")
    window: Positive = Field(32, description="chunks that a lane draws from in turn; more: batches look less alike")
    chunk: Positive | None = Field(None, description="samples read at once; default: up to 128")
    threads: Annotated[Positive, FREE] = Field(2, description="decoding threads per rank")
    ahead: Annotated[Positive, FREE] = Field(2, description="batches made in advance")
    memory_gb: Annotated[float, Field(gt=0), FREE] = Field(1.0, description="that a rank reads in advance")
    cache: Annotated[Cache | None, FREE] = None
    max_bad_fraction: Annotated[Probability, FREE] = Field(
        0.01, description="stop when more images than this had to be replaced"
    )

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
    """How strongly a crop is augmented; the defaults are SwAV's and SEER's.

    ``jitter`` is (brightness, contrast, saturation, hue) as torchvision's ColorJitter takes it: factors from
    [max(0, 1 - x), 1 + x], and hue shifts from [-x, x] of a turn; the four are applied in an order drawn for each
    crop, as torchvision does, or in this one. ``blur_sigma`` in pixels of the crop. ``ratio`` is the range of width /
    height of the box.
    """

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
            return tree  # the fields' own checks report what is wrong

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
    name: Annotated[
        Literal["larc", "lars", "sgd", "adamw"], fixed("the checkpoints hold the state of this optimiser")
    ] = "larc"
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
    final_weight_decay: Rate | None = Field(
        None, description="at the end, by half a cosine over the run's images; default: constant"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="longest gradient, of the whole network; default: not clipped"
    )
    trust: Annotated[float, Field(gt=0)] = 0.001
    exclude: Annotated[
        list[Literal["bias", "norm"]], fixed("the checkpoints hold the state of these parameter groups")
    ] = Field([], description="what has neither decay nor adapted rate; SwAV and SEER exclude nothing")


class ImageGroups(Section):
    """BatchNorm over so many images, whatever the number of ranks: several ranks' own, or slices of one's."""

    images: Positive


class Train(Section):
    batch: Positive = Field(description="images per step, over all ranks")
    images: Annotated[Positive | None, LENGTH] = Field(None, description="images in all; or give epochs")
    epochs: Annotated[Annotated[float, Field(gt=0)] | None, LENGTH] = Field(
        None, description="times through the set; default: one"
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], FREE] = "auto"
    threads: Annotated[Positive | None, FREE] = Field(
        None, description="CPU threads per rank for the network; default: torch's"
    )
    parallel: Annotated[Literal["auto", "none", "ddp", "fsdp2", "fairscale"], FREE] = "auto"
    shard_within: Annotated[Literal["node"] | Positive | None, FREE] = Field(
        None, description="fsdp2: shard over the ranks of a node, or so many, and replicate across; default: over all"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Positive = Field(1, description="gradient accumulation: micro-batches; the loss sees the full batch")
    sync_bn: bool | Positive | ImageGroups = Field(
        True, description="BatchNorm over all ranks, over groups of so many, or {images: N}: over so many images"
    )
    compile: Annotated[bool, FREE] = Field(False, description="compile each block, once per resolution")
    channels_last: bool = Field(False, description="memory layout of images and, where they are not sharded, weights")
    activation_checkpointing: bool | list[Annotated[int, Field(ge=1, le=4)]] = Field(
        False, description="recompute blocks in backward: all, or those of these stages"
    )
    log_every: Annotated[Positive, FREE] = Field(10, description="steps")
    log_to: Annotated[list[BoardName], FREE] = Field(
        ["tensorboard"], description="besides metrics.jsonl; wandb and mlflow are extras"
    )
    checkpoint_every: Annotated[Positive, FREE] = Field(1000, description="steps")
    keep: Annotated[Positive, FREE] = Field(
        3, description="newest checkpoints to keep, besides the best by kNN where there is a probe"
    )
    keep_every_images: Annotated[Positive | None, FREE] = Field(
        None, description="one checkpoint per so many images is kept permanently"
    )
    checkpoints: Annotated[Place | None, FREE] = Field(
        None, description="s3://bucket/prefix or a folder, of this run alone; default: in the run's folder"
    )
    stop_before: Annotated[Seconds, FREE] = Field(
        120.0, description="stop this long before the allocation ends: 10m, 90s, 2h"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give either images or epochs, and set the other to null")
        return self


class Health(Section):
    """What is done about steps whose loss or gradient is not finite, and about ranks that hang."""

    max_skips: Count = Field(default=3, description="such steps in a row before a rollback to the last checkpoint")
    max_rollbacks: Count = Field(default=2, description="rollbacks without a new checkpoint before the run stops")
    rollback_lr: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="multiplies the rate at each")
    timeout: Seconds = Field(default=600.0, description="a process that makes no progress for so long ends")


class Probe(Section):
    """kNN accuracy on a small labelled shard set, while training."""

    path: Place = Field(description="shard set: a folder or s3://bucket/prefix")
    labels: Annotated[str, AfterValidator(_absolute_csv)] = Field(
        "folder", description="CSV file (source,label), or 'folder': an image's folder is its class"
    )
    every_images: Positive = Field(description="measured, and a checkpoint saved, once in so many images")


class Config(Section):
    name: Annotated[str, FREE]
    seed: Annotated[Count, fixed("the order of the images and all crops follow from it")] = 0
    data: Annotated[Data, fixed("the order of the images follows from it")]
    views: Annotated[Views, fixed("the objective and its queue are made for these crops")]
    model: Annotated[Model, fixed("the checkpoints hold the weights of this network")]
    objective: Annotated[AnySettings, fixed("the checkpoints hold the head and the state of this objective")]
    optimizer: Optimizer
    train: Train
    health: Annotated[Health, FREE] = Health()
    probe: Annotated[Probe | None, FREE] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        self.objective.check(self.views, self.train.batch)
        return self
