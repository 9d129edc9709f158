"""Classes of the images of a set from labels, words and lists of tags, and training on them."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.data.repeats import read_repeats
from seer_pipe.errors import UserError
from seer_pipe.evaluate import vocabulary as module
from seer_pipe.evaluate.vocabulary import Rules, read_rules, write_vocabulary
from seer_pipe.objectives.targets import Targets
from seer_pipe.shards import EXCLUDED, FINGERPRINT_KEY, ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store


def tagged(root: Path, values: Sequence[Any], kind: pa.DataType = pa.string(), shards: int = 2) -> Path:
    """A set of small pictures with a column ``tags``."""
    store, paths = open_store(root), [f"{shard}.tar" for shard in range(shards)]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    numbers = np.array_split(np.arange(len(values)), shards)
    for path, part in zip(paths, numbers, strict=True):
        writer = ShardWriter(store, path, [pa.field("tags", kind)])
        for number in part.tolist():
            writer.add(f"{number:04d}", buffer.getvalue(), source=f"kind {number % 3}/{number}.jpg", width=8, height=8,
                       tags=values[number])  # fmt: skip
        writer.commit()
    write_manifest(store, paths)
    return root


def found(root: Path, out: Path) -> tuple[list[tuple[str, int]], list[list[str]]]:
    """Tags with how many images have them, and those of each sample."""
    table, about = pq.read_table(out / "vocabulary.parquet"), json.loads((out / "about.json").read_text())
    shards = ShardSet.open(root)
    targets = Targets(str(out), len(shards), shards.fingerprint, about["classes"])
    rows, classes = targets.of(np.arange(len(shards)))
    names = table["tag"].to_pylist()
    each: list[list[str]] = [[] for _ in range(len(shards))]
    for row, number in zip(rows.tolist(), classes.tolist(), strict=True):
        each[row].append(names[number])
    assert table["class"].to_pylist() == list(range(len(names)))
    return list(zip(names, table["images"].to_pylist(), strict=True)), each


def exclude(root: Path, samples: Sequence[int]) -> None:
    about = {FINGERPRINT_KEY: ShardSet.open(root).fingerprint.encode()}
    pq.write_table(pa.table({"sample": pa.array(samples, pa.int64())}).replace_schema_metadata(about), root / EXCLUDED)


def test_words_become_classes_by_the_rules(tmp_path: Path) -> None:
    words = ["A Cat, a #cat!", "the kitten and the Dog", None, "", "собака the DOG", "the bird", "a dog"]
    root = tagged(tmp_path / "set", words)
    exclude(root, [6])
    (tmp_path / "stop.txt").write_text("The\na\n\n")
    (tmp_path / "same.csv").write_text("tag,of\nKitten,cat\nсобака,Dog\n")
    rules = read_rules(2, None, tmp_path / "stop.txt", tmp_path / "same.csv", tags=True)
    told = write_vocabulary(str(root), tmp_path / "out", tags="tags", rules=rules)
    assert told == {
        "images": 6, "with_a_class": 3, "classes": 2, "most_of_an_image": 2, "images_per_epoch": 3,
        "vocabulary": str(tmp_path / "out"),
    }  # fmt: skip
    names, each = found(root, tmp_path / "out")
    assert names == [("cat", 2), ("dog", 2)]
    assert each == [["cat"], ["cat", "dog"], [], [], ["dog"], [], []]
    repeats = read_repeats(str(tmp_path / "out/repeats.parquet"), ShardSet.open(root))
    assert (repeats.sample.tolist(), repeats.times.tolist()) == ([2, 3, 5, 6], [0, 0, 0, 0])
    write_vocabulary(str(root), tmp_path / "most", tags="tags", rules=Rules(most=2))
    assert found(root, tmp_path / "most")[0] == [("the", 3), ("dog", 2)]


def test_lists_are_tags_and_a_label_is_one_class(tmp_path: Path) -> None:
    root = tagged(tmp_path / "set", [["New York", "Dog"], [], None, ["dog"]], pa.list_(pa.string()))
    write_vocabulary(str(root), tmp_path / "lists", tags="tags")
    assert found(root, tmp_path / "lists")[0] == [("dog", 2), ("new york", 1)]
    write_vocabulary(str(root), tmp_path / "folders", labels="folder")
    names, each = found(root, tmp_path / "folders")
    assert names == [("kind 0", 2), ("kind 1", 1), ("kind 2", 1)]
    assert each == [["kind 0"], ["kind 1"], ["kind 2"], ["kind 0"]]


@given(data=st.data())
@settings(max_examples=10)
def test_the_same_as_counting_by_hand_in_pieces_of_any_size(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tags = data.draw(st.lists(st.lists(st.sampled_from("abcdef"), max_size=4), min_size=4, max_size=20))
    tags[:2] = [["a", "b"], ["b"]]
    folder = tmp_path_factory.mktemp("set")
    root = tagged(folder / "set", [" ".join(some) for some in tags])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", data.draw(st.integers(1, 7)))
        told = write_vocabulary(str(root), folder / "out", tags="tags", threshold=9)
    names, each = found(root, folder / "out")
    count = {tag: sum(tag in some for some in tags) for tag in set("".join(map("".join, tags)))}
    assert names == sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))
    order = [name for name, _ in names]
    assert each == [sorted(set(some), key=order.index) for some in tags]
    repeats = read_repeats(str(folder / "out/repeats.parquet"), ShardSet.open(root))
    times = dict(zip(repeats.sample.tolist(), repeats.times.tolist(), strict=True))
    for sample, some in enumerate(tags):
        exact = max((math.sqrt(max(1, 9 / count[tag])) for tag in some), default=0)
        assert math.floor(exact) <= times.get(sample, 1) <= math.ceil(exact)
    assert told["images_per_epoch"] == sum(times.get(sample, 1) for sample in range(len(tags)))


def test_rounding_is_right_in_the_mean(tmp_path: Path) -> None:
    root = tagged(tmp_path / "set", ["a" if number % 5 == 0 else "b" for number in range(1500)])
    write_vocabulary(str(root), tmp_path / "out", tags="tags", threshold=900)
    repeats = read_repeats(str(tmp_path / "out/repeats.parquet"), ShardSet.open(root))
    assert (repeats.sample % 5 == 0).all()  # those of "b", 1,200 images, come once
    assert 300 + (repeats.times - 1).sum() == pytest.approx(300 * math.sqrt(3), rel=0.05)


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    root = tagged(tmp_path / "set", ["one dog", "one cat", "one", "two"])

    def error(*words: object) -> str:
        done = CliRunner().invoke(app, ["vocabulary", str(root), "--out", str(tmp_path / "out"), *map(str, words)])
        assert isinstance(done.exception, UserError)
        return str(done.exception)

    assert "either --labels (one of each image) or --tags" in error()
    assert "'word': no column of" in error("--tags", "word")
    assert "gives 1 classes of 2 images or more" in error("--tags", "tags", "--least", 2)
    assert "begins with 'cat;dog'" in error("--tags", "tags", "--synonyms", _file(tmp_path / "s.csv", "cat;dog\n"))
    assert "no.txt: not readable" in error("--tags", "tags", "--stop", tmp_path / "no.txt")
    write_vocabulary(str(root), tmp_path / "out", tags="tags")
    shards, out = ShardSet.open(root), str(tmp_path / "out")
    with pytest.raises(UserError, match="no vocabulary here"):
        Targets(str(tmp_path), 4, shards.fingerprint, 4)
    with pytest.raises(UserError, match=r"set objective\.classes=4"):
        Targets(out, 4, shards.fingerprint, 5)
    with pytest.raises(UserError, match="was not made for the run's shard set"):
        Targets(out, 4, "another", 4)
    with pytest.raises(UserError, match="has images of 2 classes; objective weak_labels takes several"):
        Targets(out, 4, shards.fingerprint, 4, most=1)


def _file(file: Path, text: str) -> Path:
    file.write_text(text)
    return file
