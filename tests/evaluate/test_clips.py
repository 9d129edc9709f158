"""Trunks of clips: what evaluations show them, which of these take them, and what is refused."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.config import Frames
from seer_pipe.data.media import CLIPS
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embed import features_of_files
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.knn import evaluate_knn
from seer_pipe.evaluate.linear import evaluate_linear
from seer_pipe.evaluate.pairs import evaluate_pairs
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.release import export_run
from seer_pipe.evaluate.retrieval import evaluate_retrieval
from seer_pipe.evaluate.subject import load_subject
from seer_pipe.export import Preprocessing, export_backbone, init_backbone
from seer_pipe.models import build_trunk
from seer_pipe.run import start
from seer_pipe.shards import ShardSet, members_of
from tests.export.test_export import code_of
from tests.export.test_preprocess import levels
from tests.media import make_clips
from tests.objectives.union import joined
from tests.train.helpers import make_pictures, small

COUNT, SIZE = 30, 32
FRAMES = Frames(count=4, fps=5, joined=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips") / "set", COUNT, sounds=True)


@pytest.fixture(scope="module")
def run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a tiny trunk, with sounds."""
    config = small(
        clips,
        views={
            "crops": [{"count": 1, "size": SIZE, "scale": [0.3, 1]}],
            "frames": FRAMES.model_dump(),
            "sound": {"spectrum": "log_mel", "bands": 16, "seconds": 0.4},
        },
        model={"name": "tiny_clips"},
        objective={"name": "image_audio", "sound_model": "tiny", "head": {"hidden": [16], "dim": 8}},
        train={"images": 32},
    )
    folder = tmp_path_factory.mktemp("runs") / "run"
    with joined():
        assert start(config, folder, say=lambda _: None)
        yield folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    prepared = Preprocessing(SIZE, frames=(FRAMES.count, FRAMES.fps))
    clips = torch.randn(1, *prepared.shape)
    export_backbone(build_trunk("r2plus1d_18"), out, images=clips, metadata={}, preprocessing=prepared)
    return out


def test_what_is_seen_is_what_the_cards_code_makes_of_the_clip(
    torchvision: object, clips: Path, backbone: Path, tmp_path: Path
) -> None:
    """The frames of the middle, each as an image of its own; up to the rounding of two implementations."""
    shards = ShardSet.open(clips)
    with closing(Images(ShardPictures(shards), SIZE, FRAMES)) as images:
        (numbers, seen), *_ = images.batches(np.arange(4))
    assert (numbers, tuple(seen.shape)) == ([0, 1, 2, 3], (4, 3, FRAMES.count, SIZE, SIZE))
    rows = [row for shard in range(len(shards.paths)) for row in shards.sidecar(shard).to_pylist()]
    for number, clip in enumerate(seen):
        (tmp_path / "clip.mp4").write_bytes(members_of(shards.read(0, rows[number]))[CLIPS[0]])
        scope: dict = {}
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            exec(code_of(backbone, "Preprocessing")[0], scope)
        finally:
            os.chdir(before)
        theirs = scope["images"][0]
        assert theirs.shape == clip.shape
        assert max(levels(one, other) for one, other in zip(clip.unbind(1), theirs.unbind(1), strict=True)) <= 2.01
        assert not torch.equal(clip[:, 0], clip[:, -1])  # it moves


def test_a_run_is_evaluated_on_clips(run: Path, clips: Path, tmp_path: Path) -> None:
    for untrained in (False, True):
        knn = evaluate_knn(run, str(clips), "folder", None, k=3, temperature=0.07, untrained=untrained)
        assert knn is not None
        assert knn["images"] == COUNT
    staged = evaluate_knn(run, str(clips), "folder", None, k=3, temperature=0.07, untrained=False, stage="all")
    assert staged is not None
    assert set(staged["stages"]) == {"1", "2"}
    linear = evaluate_linear(run, str(clips), "folder", None, seed=0, untrained=False, stage="1")
    assert linear is not None
    assert linear["trained_on"] + linear["images"] == COUNT
    halves = evaluate_retrieval(run, str(clips), untrained=False)
    assert halves is not None
    assert halves["images"] == COUNT
    found = evaluate_pairs(run, str(clips))
    assert found is not None
    assert found["images"] == COUNT


def test_the_card_of_a_run_speaks_of_clips(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out", "full")
    card = (tmp_path / "out/README.md").read_text()
    assert "trained by seer_pipe on clips without labels" in card
    assert f"{COUNT} clips without labels" in card
    assert load_subject(tmp_path / "out").frames == FRAMES


def test_an_export_knows_its_frames(backbone: Path, clips: Path) -> None:
    subject = load_subject(backbone)
    assert (subject.frames, subject.size) == (FRAMES, SIZE)
    card = (backbone / "README.md").read_text()
    assert "4 frames at 5 a second" in card
    assert "G per clip of 32 x 32" in card
    result = evaluate_knn(backbone, str(clips), "folder", None, k=3, temperature=0.07, untrained=False)
    assert result is not None
    assert result["images"] == COUNT


def test_torchvisions_checkpoint_is_a_backbone_of_clips(torchvision: object, tmp_path: Path) -> None:
    trunk = build_trunk("r2plus1d_18")
    torch.save(trunk.state_dict() | {"fc.weight": torch.zeros(400, 512)}, tmp_path / "r2plus1d_18.pth")
    made, loaded = init_backbone(tmp_path / "r2plus1d_18.pth", tmp_path / "out")
    assert (made.name, loaded.library, loaded.left_out) == ("r2plus1d_18", "torchvision", ("fc.weight",))
    subject = load_subject(tmp_path / "out")
    assert (subject.size, subject.frames) == (112, Frames(count=16, fps=15, joined=True))


def test_what_has_no_clips_is_refused_in_a_line(backbone: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", [8])
    folder = tmp_path / "folder"
    for number, name in enumerate("aabb"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(folder / name / f"{number}.png")
    for data, labels in ((pictures, "folder"), (folder, None)):
        with pytest.raises(UserError, match=f"{data}: the trunk takes clips; give it a set that seer-ingest --media"):
            evaluate_knn(backbone, str(data), labels, None, k=3, temperature=0.07, untrained=False)
    for verb in ("finetune", "linear-published"):
        with pytest.raises(UserError, match="its trunk r2plus1d_18 takes clips, and this evaluation has images"):
            CliRunner().invoke(app, ["eval", verb, str(backbone), "--data", str(folder)], catch_exceptions=False)
    with pytest.raises(ValueError, match="a trunk of clips, and no other, is shown frames"):
        export_backbone(build_trunk("r2plus1d_18"), tmp_path / "out", images=torch.randn(1, 3, 4, 32, 32), metadata={})


def test_image_files_have_no_place_among_embeddings_of_clips(run: Path, clips: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["embed", str(run), str(clips), "--out", str(tmp_path / "rows.parquet")])
    assert result.exit_code == 0, result.output
    with pytest.raises(UserError, match="takes clips"):
        features_of_files(run, [tmp_path / "a.png"], tmp_path / "rows.parquet")
