"""What the features are worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from seer_pipe.cli.common import AsJson, Labels, columns, made, show
from seer_pipe.cli.job import as_job
from seer_pipe.summary import conclude

evaluate = typer.Typer(help="What the features of a run or an export are worth.", no_args_is_help=True)
verbs = typer.Typer()
verbs.add_typer(evaluate, name="eval")


SubjectArgument = Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")]
Labelled = Annotated[str, typer.Option(help="Images with labels: a shard set, a folder class/image, or a CSV file.")]
Test = Annotated[str | None, typer.Option(help="Images to test on, as --data; else a fifth of --data is held out.")]
Size = Annotated[int, typer.Option(min=8, max=2048, help="Pixels of the crops: 224, 384.")]
Epochs = Annotated[float, typer.Option(min=0.01, help="Times through the images.")]
Batch = Annotated[int, typer.Option(min=2, help="Images a step, over all ranks.")]
Rate = Annotated[float, typer.Option(min=1e-9, help="For a batch of 256; scaled linearly.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn: splits, order, first weights.")]
Neighbours = Annotated[int, typer.Option(min=1, help="Neighbours that vote.")]
Temperature = Annotated[float, typer.Option(min=0.001, help="Of the votes' weights.")]
Stage = Annotated[
    str | None,
    typer.Option(help="Of the trunk: its number from 1, or all, to compare them; by default the last one's mean."),
]
Untrained = Annotated[bool, typer.Option(help="The run's first weights instead of its last.")]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _report(result: dict[str, Any] | None, as_json: bool, subject: Path) -> None:
    """The first rank has a result to show."""
    if result is None:
        return
    if as_json or "stages" not in result:
        show(result, as_json)
    else:
        rows = [
            [number, *(f"{one[name]:.4f}" for name in one if name.startswith("accuracy")), one["pooling"]]
            for number, one in result["stages"].items()
        ]
        names = [name for name in result["stages"]["1"] if name.startswith("accuracy")]
        print(*columns(["stage", *names, "pooling"], rows), sep="\n")
        print(f"best stage: {result['best_stage']}")
    if not as_json:
        _conclude(subject)


def _conclude(subject: Path) -> None:
    then = [f"seer-pipe report {subject}", f"seer-pipe export {subject} --out NEW"]
    conclude(f"{subject}: evaluated", *then[: 2 * (subject / "config.yaml").exists()])


@evaluate.command()
@as_job
def knn(
    subject: SubjectArgument,
    data: Labelled,
    labels: Labels = None,
    queries: Annotated[str | None, typer.Option(help="Images to classify, if others.")] = None,
    k: Neighbours = 20,
    temperature: Temperature = 0.07,
    stage: Stage = None,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Classify images by their nearest neighbours among the features of labelled ones."""
    from seer_pipe.evaluate.knn import evaluate_knn

    result = evaluate_knn(
        subject, data, labels, queries, k=k, temperature=temperature, untrained=untrained, stage=stage
    )
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def linear(
    subject: SubjectArgument,
    data: Labelled,
    labels: Labels = None,
    test: Test = None,
    stage: Stage = None,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Train linear classifiers on frozen features of central crops, computed once: quick, not as published."""
    from seer_pipe.evaluate.linear import evaluate_linear

    _report(evaluate_linear(subject, data, labels, test, seed=seed, untrained=untrained, stage=stage), as_json, subject)


@evaluate.command()
@as_job
def linear_published(
    subject: SubjectArgument,
    data: Labelled,
    labels: Labels = None,
    test: Test = None,
    stage: Stage = None,
    size: Size = 224,
    epochs: Epochs = 100,
    batch: Batch = 256,
    lr: Rate = 0.3,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Train linear classifiers by the protocol of published figures: new random crops in each of 100 epochs."""
    from seer_pipe.evaluate.published import evaluate_published
    from seer_pipe.evaluate.training import Recipe

    recipe = Recipe(size, epochs, batch, lr, seed)
    result = evaluate_published(subject, data, labels, test, recipe, untrained=untrained, stage=stage, say=_say)
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def lowshot(
    subject: SubjectArgument,
    data: Labelled,
    labels: Labels = None,
    test: Test = None,
    share: Annotated[
        list[float] | None, typer.Option(help="Part of each class's images that is learnt from; by default 0.01, 0.1.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Times that each part is drawn; the mean counts.")] = 3,
    stage: Stage = None,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """As linear, with a hundredth and a tenth of the labels."""
    from seer_pipe.evaluate.linear import evaluate_lowshot

    result = evaluate_lowshot(
        subject,
        data,
        labels,
        test,
        shares=share or [0.01, 0.1],
        draws=draws,
        seed=seed,
        untrained=untrained,
        stage=stage,
    )
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def finetune(
    subject: SubjectArgument,
    data: Labelled,
    labels: Labels = None,
    test: Test = None,
    size: Size = 224,
    epochs: Epochs = 35,
    batch: Batch = 256,
    lr: Rate = 0.0125,
    share: Annotated[
        float, typer.Option(help="Part of each class's images that is learnt from, as 0.1; kept beside the result.")
    ] = 1,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Train the whole network on the labels, with a new classifier, by SEER's recipe."""
    from seer_pipe.evaluate.finetune import evaluate_finetune
    from seer_pipe.evaluate.training import Recipe

    recipe = Recipe(size, epochs, batch, lr, seed)
    result = evaluate_finetune(subject, data, labels, test, recipe, untrained=untrained, share=share, say=_say)
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def detection(
    subject: SubjectArgument,
    data: Annotated[
        list[Path], typer.Option(help="Boxes to learn: COCO's .json, or VOC's ImageSets/Main/NAME.txt; repeatable.")
    ],
    test: Annotated[list[Path], typer.Option(help="Boxes to test on, as --data.")],
    images: Annotated[Path | None, typer.Option(help="Folder of COCO's images; else beside the file.")] = None,
    test_images: Annotated[Path | None, typer.Option(help="The same of --test.")] = None,
    head: Annotated[str, typer.Option(help="fpn: a pyramid over the stages; c4: on the third one.")] = "fpn",
    frozen: Annotated[int, typer.Option(min=0, help="Stages that are not trained, from the first; with the stem.")] = 1,
    size: Annotated[int, typer.Option(min=32, max=4096, help="Pixels of the shorter side.")] = 800,
    epochs: Annotated[float, typer.Option(min=0.01, help="Times through the images.")] = 12,
    batch: Annotated[int, typer.Option(min=1, help="Images a step, over all ranks.")] = 16,
    lr: Annotated[float, typer.Option(min=1e-9, help="For a batch of 16; scaled linearly.")] = 0.02,
    seed: Seed = 0,
    untrained: Untrained = False,
    out: Annotated[Path | None, typer.Option(help="File for the detector's weights (safetensors).")] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune torchvision's Faster R-CNN on the trunk, and measure its average precision (extra: detection)."""
    from seer_pipe.evaluate.detection import evaluate_detection
    from seer_pipe.evaluate.training import Recipe

    result = evaluate_detection(
        subject, data, test, Recipe(size, epochs, batch, lr, seed), images=images, test_images=test_images, head=head,
        frozen=frozen, untrained=untrained, out=out, say=_say,
    )  # fmt: skip
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def transfer(
    subject: SubjectArgument,
    sets: Annotated[Path, typer.Argument(help="YAML list of data sets: name, data, labels, test.")],
    stage: Stage = None,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """kNN and linear accuracy on several data sets, in one table."""
    from seer_pipe.evaluate.transfer import evaluate_transfer

    result = evaluate_transfer(subject, sets, seed=seed, untrained=untrained, stage=stage)
    if result is None or as_json:
        return _report(result, as_json, subject)
    width = max(map(len, result["sets"]))
    print(f"{'':{width}}  {'knn':>7}  {'linear':>7}  {'images':>7}  {'unused':>8}")
    for name, row in result["sets"].items():
        left_out = sum(row["left_out"].values())
        print(f"{name:{width}}  {row['knn']:7.4f}  {row['linear']:7.4f}  {row['images']:7}  {left_out:8}")
    _conclude(subject)


@evaluate.command()
@as_job
def retrieval(
    subject: SubjectArgument,
    data: Annotated[str, typer.Option(help="Shard set with the images.")],
    stage: Stage = None,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Find an image's other half among all images' other halves: needs no labels."""
    from seer_pipe.evaluate.retrieval import evaluate_retrieval

    _report(evaluate_retrieval(subject, data, untrained=untrained, stage=stage), as_json, subject)


@evaluate.command()
@as_job
def pairs(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or its export as full.")],
    data: Annotated[str, typer.Option(help="Shard set of pictures or clips with their sounds.")],
    as_json: AsJson = False,
) -> None:
    """Find each picture's sound among all of a set, and each sound's picture: recall at 1, 5 and 10."""
    from seer_pipe.evaluate.pairs import evaluate_pairs

    _report(evaluate_pairs(subject, data), as_json, subject)


@evaluate.command()
@as_job
def sounds(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or its export as full.")],
    data: Annotated[str, typer.Option(help="Sounds with labels: ESC-50's folder, a folder class/sound, a shard set.")],
    labels: Labels = None,
    k: Neighbours = 20,
    temperature: Temperature = 0.07,
    seed: Seed = 0,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Classify sounds by features of a run that hears, in five folds: linear classifiers, and nearest neighbours."""
    from seer_pipe.evaluate.sounds import evaluate_sounds

    result = evaluate_sounds(subject, data, labels, k=k, temperature=temperature, seed=seed, untrained=untrained)
    _report(result, as_json, subject)


@evaluate.command()
@as_job
def propagation(
    subject: SubjectArgument,
    data: Annotated[Path, typer.Option(help="Folder of DAVIS 2017: JPEGImages, Annotations, ImageSets.")],
    stage: Annotated[
        str | None,
        typer.Option(help="Of the trunk: its number from 1, or all, to compare them; by default the last but one."),
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Frames before a frame to look in, besides the first.")] = 20,
    k: Annotated[int, typer.Option(min=1, help="Cells that are most alike, whose labels count.")] = 10,
    radius: Annotated[float, typer.Option(min=0.5, help="Cells within which to look in those frames.")] = 12,
    temperature: Annotated[float, typer.Option(min=0.001, help="Of the labels' weights.")] = 0.05,
    untrained: Untrained = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the masks that are found, as palette PNGs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Carry the masks of videos' first frames on by likeness of features: J, F and J&F on DAVIS 2017."""
    from seer_pipe.evaluate.propagation import Carrying, evaluate_propagation

    carrying = Carrying(context, k, radius, temperature)
    result = evaluate_propagation(subject, data, carrying, stage=stage, untrained=untrained, out=out, say=_say)
    if result is None or as_json:
        return _report(result, as_json, subject)
    head, parts = ("sequence", result["sequences"]) if "sequences" in result else ("stage", result["stages"])
    rows = {**parts, "all objects": result} if "sequences" in result else parts
    names = ("j_and_f", "j", "f")
    cells = [[name, *(f"{row[score]:.4f}" for score in names)] for name, row in rows.items()]
    print(*columns([head, "J&F", "J", "F"], cells), sep="\n")
    _conclude(subject)


@evaluate.command()
def neighbours(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    data: Annotated[str, typer.Option(help="Shard set with the images.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    as_json: AsJson = False,
) -> None:
    """Draw images with their nearest neighbours, under the run's first weights and under its last."""
    from seer_pipe.report.neighbours import draw_neighbours

    draw_neighbours(run, data, out)
    made("picture", out, as_json)
