"""What the commands do, as functions with typed results. `seer_pipe` itself has them by the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seer_pipe import run
from seer_pipe.config import Config
from seer_pipe.data.crops import Views
from seer_pipe.errors import UserError
from seer_pipe.evaluate.finetune import Recipe
from seer_pipe.evaluate.finetune import evaluate_finetune as _finetune
from seer_pipe.evaluate.knn import evaluate_knn as _knn
from seer_pipe.evaluate.linear import evaluate_linear as _linear
from seer_pipe.evaluate.subject import hearing, load_subject
from seer_pipe.models import Trunk
from seer_pipe.recipes import load_recipe
from seer_pipe.train.build import build_crops
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.train.trainer import Say

Place = str | Path


@dataclass(frozen=True)
class Run:
    """A run that was trained or resumed."""

    folder: Path
    finished: bool  # False: it was asked to stop, and the same call resumes it
    metrics: Mapping[str, float]  # of the last logged step, as RUN/metrics.jsonl has them; empty where there is none


def pretrain(
    recipe: Place | Config,
    out: Place,
    overrides: Sequence[str] = (),
    *,
    init_from: Place | None = None,
    fresh: bool = False,
    say: Say = print,
) -> Run:
    """Train a recipe, or resume its run, as `seer-pipe train` does; under torchrun on all its processes.

    Args:
        recipe: the name or file of a recipe, or its settings as `seer_pipe.config.load` gives them.
        out: the run's folder.
        overrides: ``section.key=value``, as on the command line.
        init_from: first weights of the trunk: an export, or a file of another library.
        fresh: start over; a run that is there is moved aside.
        say: gets each line that is logged.

    What a person can mend (settings, data, another run in the folder) is a UserError.
    """
    if isinstance(recipe, Config):
        if overrides:
            raise UserError("pretrain: overrides are for a recipe's name or file; change the settings themselves")
        config = recipe
    else:
        config = load_recipe(Path(recipe), overrides)
    first = Path(init_from) if init_from is not None else None
    finished = run.start(config, Path(out), say, fresh=fresh, init_from=first)
    logged = read_metrics(Path(out))
    return Run(Path(out), finished, logged[-1] if logged else {})


def load_backbone(path: Place, *, untrained: bool = False, device: str = "cpu") -> Trunk:
    """The trunk of a run (of its newest checkpoint) or of an exported folder, in evaluation mode.

    It is an ``nn.Module``: normalised images [n, 3, H, W], or clips [n, 3, T, H, W] where it takes these, to features
    [n, width]. ``untrained``: with a run's first weights. A folder that holds neither is a UserError.
    """
    return load_subject(Path(path), untrained=untrained, device=device).trunk.eval()


def load_sound_backbone(path: Place, *, device: str = "cpu") -> Trunk:
    """The trunk of sounds of a run, or of a folder exported as ``full``, in evaluation mode.

    It is an ``nn.Module``: spectrograms [n, 1, columns, bands], as `seer_pipe.data.sound.spectrograms` makes them, to
    features [n, width]. A folder without one is a UserError.
    """
    ears = hearing(load_subject(Path(path), device=device), Path(path))
    return ears.objective.sound_trunk(ears.head).eval()


@dataclass(frozen=True)
class Evaluation:
    """What features are worth by one protocol."""

    evaluation: str  # knn, linear or finetune
    accuracy: float
    images: int  # that were classified
    classes: int
    left_out: Mapping[str, int]  # images that were not used, by reason
    details: Mapping[str, Any]  # settings and what else was measured, by name

    @classmethod
    def of(cls, result: Mapping[str, Any] | None) -> Evaluation | None:
        """From what an evaluation keeps; None where there is nothing, on ranks other than the first."""
        if result is None:
            return None
        own = ("evaluation", "accuracy", "images", "classes", "left_out")
        details = {name: result[name] for name in result if name not in own}
        return cls(**{name: result[name] for name in own}, details=details)


def evaluate_knn(
    subject: Place,
    data: str,
    labels: str | None = None,
    queries: str | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    stage: int | None = None,
    untrained: bool = False,
) -> Evaluation | None:
    """Classify images by their nearest neighbours among labelled ones, as `seer-pipe eval knn`.

    Args:
        subject: a run's folder, or an exported backbone's.
        data: images with labels: a shard set, a folder class/image, or a CSV file.
        labels: where a shard set's labels are: ``folder``, a column, or a CSV file.
        queries: images to classify; by default those of ``data``, each by the others.
        k: neighbours that vote.
        temperature: of the votes' weights.
        stage: of the trunk, from 1; by default the last one's mean.
        untrained: the run's first weights instead of its last.

    None on other ranks than the first. The result is kept with the subject too, as the command does.
    """
    at = None if stage is None else str(stage)
    return Evaluation.of(
        _knn(Path(subject), data, labels, queries, k=k, temperature=temperature, untrained=untrained, stage=at)
    )


def evaluate_linear(
    subject: Place,
    data: str,
    labels: str | None = None,
    test: str | None = None,
    *,
    seed: int = 0,
    stage: int | None = None,
    untrained: bool = False,
) -> Evaluation | None:
    """Train linear classifiers on frozen features, as `seer-pipe eval linear`: the best on held-out images is tested.

    ``test``: images to test on; by default a fifth of ``data`` is held out. The rest as of `evaluate_knn`.
    """
    at = None if stage is None else str(stage)
    return Evaluation.of(_linear(Path(subject), data, labels, test, seed=seed, untrained=untrained, stage=at))


def evaluate_finetune(
    subject: Place,
    data: str,
    labels: str | None = None,
    test: str | None = None,
    *,
    size: int = 224,
    epochs: float = 35,
    batch: int = 256,
    lr: float = 0.0125,
    seed: int = 0,
    untrained: bool = False,
    say: Say = print,
) -> Evaluation | None:
    """Train the whole network on the labels by SEER's recipe, as `seer-pipe eval finetune`.

    ``size``: pixels of the crops. ``lr``: for a batch of 256. The rest as of `evaluate_linear`.
    """
    recipe = Recipe(size, epochs, batch, lr, seed)
    return Evaluation.of(_finetune(Path(subject), data, labels, test, recipe, untrained=untrained, say=say))


def views(recipe: Place | Config, *, seed: int = 0, device: str = "cpu", threads: int = 2) -> Views:
    """The crops of a recipe for any loop, on images or tensors: decoded, cut and augmented by the compiled kernels.

    Args:
        recipe: the name or file of a recipe, or its settings; its sections ``views`` and ``objective`` count.
        seed: of what is drawn.
        device: where the crops are made and come out: ``cpu``, ``cuda``, …
        threads: that work on the CPU's part.

    Make it once per process and call it for each batch; `close` ends its threads.
    """
    config = recipe if isinstance(recipe, Config) else load_recipe(Path(recipe))
    if config.views.pictures == 2 or config.views.frames is not None:
        has = "pairs (views.pictures: 2)" if config.views.frames is None else "clips (views.frames)"
        raise UserError(f"seer_pipe.views: makes crops of images, and the recipe has those of {has}")
    return Views(build_crops(config), seed=seed, device=device, threads=threads)
