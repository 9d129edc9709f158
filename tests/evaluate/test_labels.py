"""Labelled images from every kind of place, and one line for each thing that can be wrong."""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from ingest.tools.excluded import exclude
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embed import embed
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.finetune import evaluate_finetune
from seer_pipe.evaluate.knn import evaluate_knn
from seer_pipe.evaluate.labels import Labelled, left_out, open_labelled
from seer_pipe.evaluate.linear import evaluate_linear, evaluate_lowshot
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.retrieval import evaluate_retrieval
from seer_pipe.evaluate.training import Recipe
from seer_pipe.evaluate.transfer import evaluate_transfer, read_list
from seer_pipe.shards import ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.distributed import run_ranks
from tests.evaluate.conftest import COLOURS


def names(labelled: Labelled) -> list[str]:
    return [labelled.classes[label] for label in labelled.labels.tolist()]


def test_every_place_gives_images_and_labels(folder: Path, shards: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*/*.[jp][pn]g"))
    (tmp_path / "files.csv").write_text("file,label\n" + "".join(f"{f},{f.parent.name}\n" for f in files))
    (tmp_path / "keys.csv").write_text("key,label\n000001,red\n000002,blue\n")
    (tmp_path / "sources.csv").write_text("source,label\nx/red/1.jpg,red\nx/blue/0.jpg,blue\n")
    whole = open_labelled(str(folder))
    assert (len(whole), whole.classes) == (24, ["blue", "red"])
    assert names(open_labelled(str(tmp_path / "files.csv"))) == names(whole)
    assert names(open_labelled(str(shards), "folder")) == ["blue", "red"] * 12
    by_column = open_labelled(str(shards), "colour")
    assert by_column.numbers.tolist() == [n for n in range(24) if n != 3]
    assert open_labelled(str(shards), str(tmp_path / "keys.csv")).numbers.tolist() == [1, 2]
    assert names(open_labelled(str(shards), str(tmp_path / "sources.csv"))) == ["blue", "red"]


def test_files_are_read_as_they_are_meant_to_be_seen(tmp_path: Path) -> None:
    upright = Image.new("RGB", (40, 20), "black")
    upright.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    upright.rotate(180).save(tmp_path / "a" / "turned.jpg", exif=exif)
    upright.convert("P").save(tmp_path / "b" / "upright.gif")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"nothing")
    images = Images(open_labelled(str(tmp_path)).pictures, 16)
    ((numbers, pixels),) = images.batches()
    images.close()
    assert numbers == [0, 2]
    assert list(images.left_out) == [1]
    left, right = pixels[..., :6].mean(dim=(1, 2, 3)), pixels[..., 10:].mean(dim=(1, 2, 3))
    assert (left > right + 2).all()


@pytest.mark.learns
def test_results_of_every_place_are_kept(folder: Path, shards: Path, backbone: Path) -> None:
    knn = evaluate_knn(backbone, str(shards), "folder", str(folder), k=3, temperature=0.07, untrained=False)
    assert (knn["accuracy"], knn["images"], knn["classes"]) == (1.0, 24, 2)
    assert knn["left_out"] == left_out(Counter())
    linear = evaluate_linear(backbone, str(folder), None, None, seed=0, untrained=False)
    assert (linear["images"], linear["trained_on"]) == (4, 20)
    assert linear["accuracy"] >= 0.75
    few = evaluate_lowshot(backbone, str(folder), None, None, shares=[0.1, 0.5], draws=2, seed=0, untrained=False)
    assert (few["trained_on_10%"], few["trained_on_50%"]) == (2, 10)
    assert few["accuracy_50%"] >= 0.75
    assert set(kept(backbone)) == {"knn-7", "linear-7", "lowshot-7"}


def test_nothing_is_left_out_without_being_counted(folder: Path, shards: Path, backbone: Path, tmp_path: Path) -> None:
    """A row for nobody, a row twice, images without a label, files that are no images: in every evaluation."""
    whole = shutil.copytree(folder, tmp_path / "folder")
    (whole / "red" / "broken.jpg").write_bytes(b"nothing")
    (whole / "loose.jpg").write_bytes((whole / "red" / "01.jpg").read_bytes())
    files = sorted(file for file in whole.glob("*/*.[jp][pn]g"))
    rows = [f"{file},{file.parent.name}" for file in files]
    (tmp_path / "files.csv").write_text(
        "\n".join(["file,label", *rows, rows[0], "gone.jpg,red", f"{whole}/loose.jpg,"])
    )
    keys = [f"{number:06d},{sorted(COLOURS)[number % 2]}" for number in range(20)]
    (tmp_path / "keys.csv").write_text("\n".join(["key,label", *keys, keys[0], "nobody,red"]))
    by_hand = {"without_label": 1, "rows_without_image": 1, "repeated_rows": 1, "excluded": 0, "unreadable": 1}
    how = {"untrained": False, "k": 3, "temperature": 0.07}
    assert evaluate_knn(backbone, str(tmp_path / "files.csv"), None, None, **how)["left_out"] == by_hand
    result = evaluate_knn(backbone, str(shards), str(tmp_path / "keys.csv"), str(whole), **how)
    assert (result["images"], result["left_out"]) == (24, {**by_hand, "without_label": 4 + 1})
    by_folder = {**by_hand, "rows_without_image": 0, "repeated_rows": 0}
    linear = evaluate_linear(backbone, str(whole), None, None, seed=0, untrained=False)
    assert (linear["images"] + linear["trained_on"], linear["left_out"]) == (24, by_folder)
    few = evaluate_lowshot(backbone, str(whole), None, None, shares=[0.5], draws=1, seed=0, untrained=False)
    assert few["left_out"] == by_folder
    recipe = Recipe(size=24, epochs=1, batch=6)
    tuned = evaluate_finetune(backbone, str(whole), None, str(whole), recipe, untrained=False)
    assert (tuned["images"], tuned["trained_on"]) == (24, 24)
    assert tuned["left_out"] == {name: 2 * number for name, number in by_folder.items()}
    (tmp_path / "sets.yaml").write_text(f"- {{name: a, data: {whole}}}")
    assert (
        evaluate_transfer(backbone, tmp_path / "sets.yaml", seed=0, untrained=False)["sets"]["a"]["left_out"]
        == by_folder
    )


def test_excluded_and_damaged_images_of_a_set_are_counted(shards: Path, backbone: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "keys.csv").write_text("key\n000002\n")
    exclude(copy, str(tmp_path / "keys.csv"))
    assert open_labelled(str(copy), "colour").left_out == Counter(without_label=1, excluded=1)
    result = evaluate_retrieval(backbone, str(copy), untrained=False)
    assert (result["images"], result["left_out"]) == (23, left_out(Counter(excluded=1)))
    embedded = embed(backbone, str(copy), tmp_path / "e.parquet")
    assert (embedded["images"], embedded["left_out"]) == (23, left_out(Counter(excluded=1)))


def test_a_number_that_is_none_is_no_label(tmp_path: Path) -> None:
    writer = ShardWriter(open_store(tmp_path), "00000.tar", [pa.field("stars", pa.float64())])
    for number, stars in enumerate([1.0, float("nan"), 2.0, None]):
        writer.add(f"{number:06d}", b"data", source=str(number), width=1, height=1, stars=stars)
    writer.commit()
    write_manifest(open_store(tmp_path), ["00000.tar"])
    found = open_labelled(str(tmp_path), "stars")
    assert (found.classes, found.left_out["without_label"]) == (["1.0", "2.0"], 2)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(folder: Path, shards: Path, backbone: Path) -> None:
    how = {"k": 3, "temperature": 0.07, "untrained": False}
    alone = evaluate_knn(backbone, str(shards), "folder", None, **how)
    first, second = run_ranks(2, _knn, backbone, str(shards), how)
    assert first == alone
    assert second is None


def test_transfer_is_a_table_of_all_sets(folder: Path, shards: Path, backbone: Path, tmp_path: Path) -> None:
    file = tmp_path / "sets.yaml"
    ours = f"- {{name: ours, data: {shards}, labels: colour, test: {folder}}}"
    file.write_text(f"- {{name: plain, data: {folder}}}\n{ours}")
    result = evaluate_transfer(backbone, file, seed=0, untrained=False)
    assert {name: row["images"] for name, row in result["sets"].items()} == {"plain": 4, "ours": 24}
    assert all(row["linear"] >= 0.75 for row in result["sets"].values())
    assert kept(backbone)["transfer-7"] == result


@pytest.mark.parametrize(
    ("text", "message"),
    [("5", "not a list"), ("- {name: a}", "entry 1: data: missing"), ("[]", "at least one"),
     ("[{name: a, data: b}, {name: a, data: c}]", "a name of its own"), ("- {name: a, data: b, lables: c}", "lables")],
)  # fmt: skip
def test_a_list_that_is_none_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sets.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "sets.yaml")


def _knn(backbone: Path, shards: str, how: dict) -> dict | None:
    return evaluate_knn(backbone, shards, "folder", None, **how)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        ("SHARDS", None, "labels missing"),
        ("SHARDS", "shape", "no column of"),
        ("SHARDS", "none.csv", "none.csv: No such file"),
        ("SHARDS", "width", "names 1 classes"),
        ("FOLDER", "colour", "leave --labels out"),
        ("FOLDER/red", None, "neither a shard set nor"),
        ("nowhere", None, "no such shard set, folder"),
        ("EMPTY/bad.csv", None, "begins with 'a,b'"),
        ("SHARDS", "EMPTY/keys.csv", "no key of it is one of .*: 'nobody', …"),
        ("EMPTY/gone.csv", None, "gone.jpg: no such file"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, shards: Path, tmp_path: Path, data: str, labels, message: str) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "gone.csv").write_text("file,label\ngone.jpg,red\n")
    (tmp_path / "keys.csv").write_text("key,label\nnobody,red\n")
    for word, path in {"SHARDS": shards, "FOLDER": folder, "EMPTY": tmp_path}.items():
        data, labels = data.replace(word, str(path)), labels and labels.replace(word, str(path))
    with pytest.raises(UserError, match=message):
        open_labelled(data, labels)


def test_a_class_that_nothing_was_learnt_of_is_named(folder: Path, shards: Path) -> None:
    with pytest.raises(UserError, match="class 'red' has no image among those that are learnt from"):
        open_labelled(str(folder), None, ["blue", "green"])
    assert len(ShardSet.open(shards)) == 24
