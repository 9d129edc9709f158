"""The settings of a run: one section per room.

An unknown key, a wrong type or a value out of range is a ``UserError`` that names the key. Durations are in images, so
that no setting changes its meaning with the batch or the number of GPUs. What a resume may do to a setting is marked
on it (``FREE``, ``LENGTH``, ``fixed``); one without a mark is changed on purpose alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from seer_pipe.config.views import Views
from seer_pipe.objectives import AnySettings
from seer_pipe.section import FREE, LENGTH, Count, Place, Positive, Probability, Rate, Section, absolute, fixed


def _seconds(value: Any) -> Any:
    """A text like 90s, 10m or 2h in seconds."""
    if isinstance(value, str) and value[:-1].replace(".", "", 1).isdigit() and value[-1] in "smh":
        return float(value[:-1]) * {"s": 1, "m": 60, "h": 3600}[value[-1]]
    return value


def _absolute_csv(labels: str) -> str:
    """Labels are also named by a word."""
    return absolute(labels) if labels.endswith(".csv") else labels


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


BoardName = Literal["tensorboard", "wandb", "mlflow"]


class Source(Section):
    """One of several shard sets."""

    path: Place = Field(description="shard set: a folder, s3://bucket/prefix, or another store's URL")
    weight: Annotated[float, Field(gt=0)] = Field(
        description="share of the batch, in proportion to the others'; a small set with a large one is repeated often"
    )
    repeats: Place | None = Field(None, description="as data.repeats, of this set")


class Cache(Section):
    """A disk of the node for what comes from an object store; worth it where a set is read more than once."""

    path: Place = Field(description="folder on a disk of the node; jobs that read the same set may share it")
    gb: Annotated[float, Field(gt=0)] = Field(
        description="that all processes of the node together keep there; what is larger than it is fetched again"
    )


class Data(Section):
    """Where the images are, and in which order and how far ahead they are read."""

    path: Annotated[Place | None, FREE] = Field(
        None,
        description="shard set: a folder, s3://bucket/prefix, or another store's URL; or give sources. A set may move: "
        "give its new place",
    )
    sources: Annotated[Annotated[list[Source], Field(min_length=1)] | None, FREE] = Field(
        None, description="shard sets to be mixed, instead of path; every batch holds the same number of images of each"
    )
    repeats: Annotated[Place | None, FREE] = Field(
        None, description="file of how often a sample comes in an epoch where that is not once, as seer-pipe curate "
        "--repeats writes it; it may move, but not change"
    )  # fmt: skip
    lanes: Positive | None = Field(
        None, description="parts of the set that a batch comes from, a divisor of the batch; default: the batch. Fewer "
        "open fewer chunks at a time, and mix a batch less"
    )  # fmt: skip
    window: Positive = Field(
        32, description="chunks that a lane draws from in turn. More: batches of a sorted set look less alike. Fewer, "
        "for a shuffled set: larger requests to a store"
    )  # fmt: skip
    chunk: Positive | None = Field(
        None, description="samples read at once; default: up to 128, fewer for a small set. 1 is a full shuffle, slow "
        "from a store"
    )  # fmt: skip
    threads: Annotated[Positive, FREE] = Field(
        2, description="decoding threads per rank; raise it where steps wait for data (data_wait) and cores are idle"
    )
    ahead: Annotated[Positive, FREE] = Field(
        2, description="batches made in advance; raise it where the store's speed varies, at the cost of memory"
    )
    memory_gb: Annotated[float, Field(gt=0), FREE] = Field(
        1.0, description="that a rank reads in advance; more makes requests to an object store larger and fewer"
    )
    cache: Annotated[Cache | None, FREE] = None
    max_bad_fraction: Annotated[Probability, FREE] = Field(
        0.01, description="stop when more images than this had to be replaced, for they could not be read or decoded"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.path is None) == (self.sources is None):
            raise ValueError("give either path or sources, and set the other to null")
        if self.sources is not None and self.repeats is not None:
            raise ValueError("repeats is of path; of several sets each of the sources has its own")
        return self

    @property
    def paths(self) -> list[str]:
        """Of all shard sets."""
        return [self.path] if self.path is not None else [source.path for source in self.sources or []]

    @property
    def repeats_of_paths(self) -> list[str | None]:
        """The file of repeats of each of them."""
        return [self.repeats] if self.path is not None else [source.repeats for source in self.sources or []]


class Model(Section):
    """The trunk, which is what a run makes."""

    name: str = Field(description="of the trunk: resnet18, resnet50, resnext101_32x8d, regnety_16gf, …; a wrong one is "
                                  "answered with those that there are")  # fmt: skip
    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="first layers: imagenet reduces a side by 4 at once; small keeps it, for crops of up "
        "to 96 pixels; ResNets only"
    )  # fmt: skip
    norm: Literal["batch", "layer"] = Field(
        "batch", description="batch: BatchNorm; layer: LayerNorm over channels and positions, for tasks that "
        "statistics of the batch give away. Of other libraries torchvision alone loads its export"
    )  # fmt: skip


class Optimizer(Section):
    """What moves the weights, and how fast."""

    name: Annotated[
        Literal["larc", "lars", "sgd", "adamw"], fixed("the checkpoints hold the state of this optimiser")
    ] = Field("larc", description="larc and lars adapt the rate of each layer, for batches of thousands; sgd or adamw "
                                  "for small ones")  # fmt: skip
    lr: Annotated[float, Field(gt=0)] = Field(
        0.3, description="peak, for a batch of 256; scaled linearly with the batch. Lower it where the loss is not "
        "finite or embeddings collapse; adamw takes about 0.001"
    )  # fmt: skip
    final_lr: Probability = Field(0.001, description="share of the peak at the end of the cosine")
    warmup_lr: Probability = Field(0.0, description="share of the peak at the start of the warm-up")
    warmup_images: Count = Field(
        0, description="images over which the rate rises to its peak in a line; longer for large batches and high rates"
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="after the warm-up; constant where the length is not known, so that a run can be prolonged",
    )
    cosine_from: Literal["warmup", "start"] = Field(
        "warmup", description="where the cosine begins: at the end of the warm-up, or under it at the start, as SEER's"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of larc, lars and sgd; adamw has its own")
    weight_decay: Rate = Field(
        1e-6,
        description="share of the weights, times the rate, that a step takes away; adamw takes much more, 0.05 say",
    )
    final_weight_decay: Rate | None = Field(
        None, description="at the end, by half a cosine over the run's images; default: constant"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="longest gradient, of the whole network; default: not clipped. For runs with rare large "
        "gradients: see grad_norm in the report"
    )  # fmt: skip
    trust: Annotated[float, Field(gt=0)] = Field(
        0.001, description="of larc and lars: a layer's own rate is this times the norm of its weights over that of "
        "its gradient"
    )  # fmt: skip
    exclude: Annotated[
        list[Literal["bias", "norm"]], fixed("the checkpoints hold the state of these parameter groups")
    ] = Field([], description="what has neither decay nor adapted rate; SwAV and SEER exclude nothing")


class ImageGroups(Section):
    """BatchNorm over so many images, whatever the number of ranks: several ranks' own, or slices of one's."""

    images: Positive = Field(description="whose statistics BatchNorm takes together; the same on any number of GPUs")


class Train(Section):
    """How long, on what and in which precision a network is trained, and what is kept of it."""

    batch: Positive = Field(
        description="images per step, over all ranks, which must divide it; the rate follows it. A smaller one needs "
        "less memory; see also accumulate"
    )
    images: Annotated[Positive | None, LENGTH] = Field(
        None, description="images in all, repeats counted; or give epochs"
    )
    epochs: Annotated[Annotated[float, Field(gt=0)] | None, LENGTH] = Field(
        None, description="times through the set; default: one"
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], FREE] = Field(
        "auto", description="auto: a GPU where there is one; cuda: fail where there is none"
    )
    threads: Annotated[Positive | None, FREE] = Field(
        None, description="CPU threads per rank for the network; default: torch's. On a CPU sums depend on it in the "
        "last bits, so keep it for an exact resume"
    )  # fmt: skip
    parallel: Annotated[Literal["auto", "none", "ddp", "fsdp2", "fairscale"], FREE] = Field(
        "auto", description="over several processes: auto is fsdp2, which shards the network; ddp sends less where a "
        "GPU holds it whole; fairscale shards as VISSL did, on GPUs, and is an extra"
    )  # fmt: skip
    shard_within: Annotated[Literal["node"] | Positive | None, FREE] = Field(
        None, description="fsdp2: shard over the ranks of a node, or so many, and replicate across; default: over all"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the network's arithmetic; auto: bf16 on a GPU that has it, else fp16, and fp32 on a "
        "CPU. fp32 to rule precision out as a cause"
    )  # fmt: skip
    accumulate: Positive = Field(
        1, description="gradient accumulation: micro-batches; the loss sees the full batch. For batches that do not "
        "fit, at one more forward pass"
    )  # fmt: skip
    sync_bn: bool | Positive | ImageGroups = Field(
        True, description="BatchNorm over all ranks, over groups of so many, or {images: N}: over so many images, to "
        "send less from some 64 ranks on; false: each rank alone"
    )  # fmt: skip
    compile: Annotated[bool | Literal["auto"], FREE] = Field(
        "auto", description="compile each block, once per resolution; auto: where it was measured to be faster, today "
        "nowhere; try it where a GPU is not busy"
    )  # fmt: skip
    channels_last: Annotated[bool | Literal["auto"], FREE] = Field(
        "auto", description="memory layout of images and, where they are not sharded, weights; auto: where it was "
        "measured to be faster. Results are equal up to rounding"
    )  # fmt: skip
    cudnn_benchmark: Annotated[bool, FREE] = Field(
        False, description="cuDNN tries its algorithms for every shape and keeps the fastest; false where bits must "
        "repeat, for others may win in another start"
    )  # fmt: skip
    fused_bn: Annotated[bool, FREE] = Field(
        False, description="BatchNorm and the ReLU behind it in one kernel, of RegNetY in NHWC on a GPU; try it where "
        "a GPU is busy. Results are equal up to rounding"
    )  # fmt: skip
    activation_checkpointing: bool | list[Annotated[int, Field(ge=1, le=4)]] = Field(
        False, description="recompute blocks in backward: all, or those of these stages; less memory for a third more "
        "arithmetic"
    )  # fmt: skip
    log_every: Annotated[Positive, FREE] = Field(10, description="steps between two logged ones")
    log_to: Annotated[list[BoardName], FREE] = Field(
        ["tensorboard"], description="besides metrics.jsonl; wandb and mlflow are extras to be installed; [] for none"
    )
    checkpoint_every: Annotated[Positive, FREE] = Field(
        1000, description="steps between two; a kill loses at most as many"
    )
    keep: Annotated[Positive, FREE] = Field(
        3, description="newest checkpoints to keep, besides the best by kNN where there is a probe"
    )
    keep_every_images: Annotated[Positive | None, FREE] = Field(
        None, description="one checkpoint per so many images is kept permanently, to evaluate the run's course later"
    )
    checkpoints: Annotated[Place | None, FREE] = Field(
        None, description="s3://bucket/prefix or a folder, of this run alone; default: in the run's folder"
    )
    stop_before: Annotated[Seconds, FREE] = Field(
        120.0, description="stop this long before the allocation ends: 10m, 90s, 2h; longer than a step and a "
        "checkpoint take"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give either images or epochs, and set the other to null")
        return self


class Health(Section):
    """What is done about steps whose loss or gradient is not finite, and about ranks that hang."""

    max_skips: Count = Field(default=3, description="such steps in a row before a rollback to the last checkpoint")
    max_rollbacks: Count = Field(default=2, description="rollbacks without a new checkpoint before the run stops")
    rollback_lr: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="multiplies the rate at each rollback; below 1 where the rate itself is the cause"
    )
    timeout: Seconds = Field(
        default=600.0, description="a process that makes no progress for so long ends: 10m, 90s, 2h; longer than the "
        "slowest step, checkpoint or probe"
    )  # fmt: skip


class Probe(Section):
    """kNN accuracy on a small labelled shard set, while training."""

    path: Place = Field(description="shard set: a folder, s3://bucket/prefix, or another store's URL")
    labels: Annotated[str, AfterValidator(_absolute_csv)] = Field(
        "folder", description="CSV file (source,label or key,label), or 'folder': an image's folder is its class"
    )
    every_images: Positive = Field(
        description="measured, and a checkpoint saved, once in so many images; rarer where it takes long"
    )


class Config(Section):
    """A run."""

    name: Annotated[str, FREE] = Field(
        description="of the recipe; the run's folder is runs/NAME unless --out says other"
    )
    seed: Annotated[Count, fixed("the order of the images and all crops follow from it")] = Field(
        0, description="of weights, order and crops; another one repeats an experiment independently"
    )
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
        self.objective.check_kinds(self.views)
        self.objective.check(self.views, self.train.batch)
        return self
