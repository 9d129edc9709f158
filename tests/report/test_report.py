"""The report of a run: whole, self-contained, true to its numbers, and never in the way of a broken set."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seer_pipe import config as settings
from seer_pipe.objectives.deepcluster.settings import DeepClusterSettings
from seer_pipe.objectives.settings import EMBEDDING_SIGNS, Sign
from seer_pipe.objectives.simsiam.settings import SimSiamSettings
from seer_pipe.objectives.swav.settings import SwavSettings
from seer_pipe.recipes import load_recipe
from seer_pipe.report.charts import Chart, nice_ticks, number, run_charts, thinned
from seer_pipe.report.evaluated import evaluation_charts, results
from seer_pipe.report.health import SILENT, overall, verdicts
from seer_pipe.report.history import Start, folded, restarts, rollbacks, starts
from seer_pipe.report.ingested import domain, ingested, sample_numbers
from seer_pipe.report.page import write_report
from seer_pipe.report.recipe import changes
from seer_pipe.shards import Rejected as Row
from seer_pipe.shards import ShardSet, ShardWriter, put_rejected, write_manifest
from seer_pipe.store import open_store
from seer_pipe.train.loop import train
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    pictures = make_pictures(root / "pictures", [20, 4])
    rejected = [Row("http://a.example/x.jpg", "dns"), Row("<script>alert(1)</script>/y.jpg", "dns"), Row("z", "empty")]
    put_rejected(ShardSet.open(pictures).store, "rejected/00000.parquet", rejected)
    assert train(small(pictures, train={"images": 24}), root / "run", say=lambda _: None)
    (root / "run/evaluation").mkdir()
    result = {"evaluation": "knn", "accuracy": 0.4567, "images": 24, "images_seen": 24}
    (root / "run/evaluation/knn-24.json").write_text(json.dumps(result))
    return root / "run"


class _Page(HTMLParser):
    """Tags that are not closed, and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report(run: Path) -> None:
    page = write_report(run).read_text()
    parsed = _Page(page)
    assert parsed.open == []
    assert parsed.fetched
    assert all(link.startswith("data:image/jpeg;base64,") for link in parsed.fetched)
    assert "url(" not in page
    assert "45.7%" in page
    assert page.count("<script") == 1  # our own: a source is text, whatever it holds
    for told in (
        "dns: 2",
        "empty: 1",
        "a.example",
        "3 of 3",
        "peak_lr",
        "chance",
        "1 start, 0 killed",
        '<p class="verdict ',
        "3 of 3 steps",
        "CPU cores",
        "fp32",
    ):
        assert told in page
    assert page.count("<svg") >= 6
    assert page.count('alt="a stored image"') == 24
    assert page.count('alt="a crop of 24 pixels"') == 8
    assert page.count('alt="a crop of 16 pixels"') == 8


def test_a_set_that_is_gone_is_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("/pictures", "/nowhere"))
    page = write_report(copy).read_text()
    assert "no shard set here" in page
    assert page.count("<svg") >= 6


def test_large_sets_are_sampled(tmp_path: Path) -> None:
    shards = ShardSet.open(make_pictures(tmp_path, [3] * 7))
    whole, part = ingested(shards), ingested(shards, most=3)
    assert (whole.samples, whole.sampled, part.samples, part.sampled, part.sampled_shards) == (21, 21, 21, 9, 3)
    assert sum(whole.domains.values()) == 21
    assert whole.short_side[0] <= whole.short_side[50] <= whole.short_side[100]


def test_text_beside_images_is_counted_and_shown(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for path, kind in (("0.tar", pa.string()), ("1.tar", pa.int64())):
        writer = ShardWriter(store, path, [pa.field("txt", kind)])
        for at in range(20):
            text = f"text {at}" if at % 2 else ""
            kept = text if kind == pa.string() else at
            writer.add(f"{at}", b"image", source="a/b", width=9, height=9, txt=kept)
        writer.commit()
    write_manifest(store, ["0.tar", "1.tar"])
    found = ingested(ShardSet.open(tmp_path))
    assert (found.captioned, found.captions[:2], len(found.captions)) == (10, ["text 1", "text 3"], 10)


@given(st.integers(0, 500), st.integers(1, 50))
def test_spread(count: int, most: int) -> None:
    chosen = sample_numbers(count, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    if count and most > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_domain() -> None:
    assert domain("https://user@b.example:80/x/y.jpg") == "b.example"
    assert domain("cats/1.jpg") == "cats"
    assert domain("1.jpg") == "(no folder)"


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
@example(low=0.0, span=5e-324)
def test_ticks_enclose(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span + 1)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert all(a < b for a, b in pairwise(ticks))


def test_chart_draws_what_it_was_given() -> None:
    svg = Chart("Loss", "About.", {"loss": [(0, 4.0), (50, math.nan), (100, 2.0)]}, {"ln K": 3.0}).svg("c1")
    line = re.search(r'class="line s0" d="M([-\d. L]+)"', svg)
    assert line is not None
    assert [tuple(map(float, point.split())) for point in line[1].split("L")] == [
        (0, -4),
        (100, -2),
    ]  # y grows downwards
    assert 'class="mark" d="M0 -3H100"' in svg
    shown = re.search(r'class="plot whole"[^>]* viewBox="([^"]+)"', svg)
    assert shown is not None
    assert shown[1] == "0 -4 100 2"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 60))
def test_a_curve_that_is_thinned_keeps_its_peaks_and_its_ends(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert len(kept) <= most + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(values), max(values)} <= {y for _, y in kept}


def test_an_evaluation_is_drawn_by_steps_over_the_untrained_trunk(run: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for images, accuracy in ((0, 0.2), (8, 0.3), (24, 0.5)):
        result = {"evaluation": "knn", "k": 20, "accuracy": accuracy, "images_seen": images, "untrained": images == 0}
        (tmp_path / f"evaluation/knn-{images}.json").write_text(json.dumps(result))
    rows = [{"step": 1.0, "images": 8.0}, {"step": 3.0, "images": 24.0, "knn": 0.4}]
    probe, knn = evaluation_charts(results(tmp_path, rows), rows, [(2, "resumed")])
    assert (probe.title, probe.series, probe.lines) == ("kNN probe", {"accuracy": [(3, 0.4)]}, {})
    assert (knn.series, knn.lines) == ({"accuracy": [(1, 0.3), (3, 0.5)]}, {"untrained": 0.2})
    assert '<path class="happened" d="M2 ' in knn.svg("c1")


def test_what_is_no_accuracy_is_drawn_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for images, both, context in ((0, 0.3, 20), (8, 0.5, 20), (8, 0.4, 7)):
        result = {"evaluation": "propagation", "j_and_f": both, "j": 0.1, "context": context, "images_seen": images}
        (tmp_path / f"evaluation/propagation-{images}-{context}.json").write_text(json.dumps(result))
    assert results(tmp_path, []) == {
        "propagation J&F (context 20)": [(0, 0.3), (8, 0.5)], "propagation J&F (context 7)": [(8, 0.4)],
    }  # fmt: skip


def test_a_recipe_is_told_by_what_it_changes() -> None:
    tree = load_recipe(Path("quickstart")).model_dump(mode="json")
    assert changes(settings.parse(tree, "test")) == ("quickstart", [])
    tree |= {"name": "mine", "data": tree["data"] | {"path": "elsewhere", "threads": 7}}  # of no recipe's name
    base, rows = changes(settings.parse(tree, "test"))
    assert base == "quickstart"
    assert rows == [["data.threads", str(load_recipe(Path("quickstart")).data.threads), "7"]]


def test_every_metric_is_drawn() -> None:
    rows = [{"step": 1, "loss": 1.0, "lr": 0.1, "images": 8, "something_new": 3.0}]
    assert [chart.title for chart in run_charts(rows, chance=2.0)] == ["Loss", "Learning rate", "something new"]


def test_an_objective_without_a_chance_loss_is_not_judged_by_one() -> None:
    row = {"step": 10.0, "loss": -0.9, "embedding_std": 0.9, "effective_rank": 30.0}
    loss, *others = run_charts([row])
    texts = [loss.title, loss.about, loss.svg("c1"), *(chart.about for chart in others)]
    found = verdicts([row], [], {"chance_loss": None}, EMBEDDING_SIGNS)
    assert [good for good, _ in found] == [True]
    assert not [text for text in [*texts, *(text for _, text in found)] if "chance" in text or "ln K" in text]
    assert "line of chance" in run_charts([row], chance=1.0)[0].about


def test_starts_kills_and_what_was_done_twice() -> None:
    """A kill between checkpoints, as its successor found it; then a stop, and a start that goes on."""

    def at(second: int, event: str, step: int, **more: object) -> dict:
        return {"time": f"2026-01-01T00:00:{second:02d}.000+00:00", "event": event, "step": step, **more}

    def beat(second: int, step: int) -> dict:
        return {"time": datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC).timestamp(), "step": step}

    machine = {"host": "h", "on": "2 CPU cores", "precision": "fp32", "versions": "torch 2"}
    events = [
        at(0, "start", 0, world=2, machine=machine), at(1, "checkpoint", 0), at(4, "checkpoint", 10),
        at(20, "resume", 10, world=2, before=beat(9, 17)), at(25, "checkpoint", 20), at(30, "stop", 20),
        at(40, "resume", 20, world=1, before=beat(30, 20)),
    ]  # fmt: skip
    first, second, third = starts(events, beat(47, 28))
    assert (first.ended, first.first, first.last, first.seconds, first.redone) == ("killed", 0, 17, 9, 0)
    assert (second.ended, second.first, second.last, second.seconds, second.redone) == ("stopped", 10, 20, 10, 7)
    assert (third.ended, third.first, third.last, third.seconds, third.redone) == ("running", 20, 28, 7, 0)
    assert (first.world, first.machine) == (2, machine)
    assert restarts([first, second, third]) == [
        (10, "resumed at step 10 (killed before)"), (20, "resumed at step 20 (stopped before)")
    ]  # fmt: skip
    assert rollbacks([at(5, "rollback", 3, sick=8)]) == [(3, "rolled back from step 8 to step 3")]
    assert starts([], None) == []


def test_a_row_of_checkpoints_is_one_line() -> None:
    row = [{"event": "checkpoint", "step": step, "time": ""} for step in range(100)]
    skip = {"event": "skip", "step": 50, "time": ""}
    rows = folded([*row[:50], skip, *row[50:]])
    assert [(one["event"], one["step"], one.get("checkpoints")) for one in rows] == [
        ("checkpoint", 49, 50), ("skip", 50, None), ("checkpoint", 99, 50)
    ]  # fmt: skip
    assert rows[2]["from step"] == 50


def test_numbers_are_written_one_way() -> None:
    written = {
        1234567: "1,234,567",
        2.772588722239781: "2.773",
        31250.5: "31,250",
        True: "True",
        "a": "a",
        3e-6: "3e-06",
    }
    assert {value: number(value) for value in written} == written


def test_collapse_is_told_from_structure_that_was_learned() -> None:
    """By rows of real runs on drawn pictures. That of the quickstart, whose embeddings have gone from 54 directions to
    5 for eight kinds of pictures, fills fewer than those that collapsed."""
    learned = {"step": 270.0, "loss": 2.291, "code_entropy": 1.518, "prediction_entropy": 3.278, "embedding_std": 0.734,
               "effective_rank": 5.25, "prototypes_dead": 0.0625}  # fmt: skip
    uniform = {"step": 100.0, "loss": 3.467, "code_entropy": 3.466, "prediction_entropy": 3.466, "embedding_std": 0.323,
               "effective_rank": 6.8, "prototypes_dead": 0.0}  # epsilon 1  # fmt: skip
    one = {"step": 100.0, "loss": 0.001, "code_entropy": 0.0, "prediction_entropy": 0.006, "embedding_std": 0.230,
           "effective_rank": 18.5, "prototypes_dead": 0.969}  # a softmax for Sinkhorn's  # fmt: skip
    swav = SwavSettings(prototypes=32).signs()
    assert _wrong(learned | {"step": 1.0, "effective_rank": 54.4, "loss": 4.128}, learned, signs=swav) == []
    assert len(_wrong(uniform, signs=swav)) == 2
    assert [text.split("; ")[1].split(":")[0] for text in _wrong(one, signs=swav)] == [
        "few prototypes are ever predicted", "more than half of the prototypes are nearest to no image"
    ]  # fmt: skip

    clusters = DeepClusterSettings(name="deepcluster", prototypes=32).signs()
    slow = {"step": 30.0, "loss": 3.545, "embedding_std": 0.561, "effective_rank": 37.5, "labelled": 1.0,
            "label_accuracy": 0.036, "label_perplexity": 0.654, "cluster_perplexity": 0.898, "cluster_largest": 0.071,
            "refresh_nmi": 0.779}  # as it should be  # fmt: skip
    alone = {"step": 40.0, "loss": 0.760, "embedding_std": 0.339, "effective_rank": 22.4, "labelled": 1.0,
             "label_accuracy": 0.849, "label_perplexity": 0.038, "cluster_perplexity": 0.328, "cluster_largest": 0.327,
             "refresh_nmi": 0.640}  # a ring without the slow copy  # fmt: skip
    assert _wrong(slow, signs=clusters) == []
    assert [text.split("; ")[1].split(":")[0] for text in _wrong(alone, signs=clusters)] == [
        "images move to few clusters between two refreshes"
    ]  # fmt: skip

    same = {"step": 60.0, "loss": -0.957, "embedding_std": 0.218, "effective_rank": 1.73}  # targets with gradient
    (told,) = _wrong(same, signs=SimSiamSettings(name="simsiam").signs())
    assert "embeddings lie in one direction" in told


def _wrong(*rows: dict[str, float], signs: Sequence[Sign]) -> list[str]:
    return [text for good, text in verdicts(rows, [], {}, signs) if not good]


def test_verdicts() -> None:
    derived, signs = {"settled_steps": 5}, SwavSettings(prototypes=20).signs()  # ln 20 = 2.996
    healthy = {"step": 10.0, "loss": 2.0, "effective_rank": 30.0, "embedding_std": 0.9, "prototypes_dead": 0.1,
               "data_wait": 0.0}  # fmt: skip
    assert all(good for good, _ in verdicts([healthy], [], derived, signs))
    ill = {"step": 10.0, "loss": 2.99, "effective_rank": 1.2, "embedding_std": 0.9, "prototypes_dead": 0.9,
           "data_wait": 0.5}  # fmt: skip
    found = verdicts([ill], [{"event": "skip"}], derived, signs)
    assert [good for good, _ in found] == [False] * 5
    assert verdicts([ill | {"step": 2.0}], [], derived, signs)[0][0]  # too early to judge the loss
    old = verdicts([healthy | {"step": 1000.0}], [{"event": "skip", "step": 50}], derived, signs)
    assert (True, "earlier, and recovered from: skipped steps: 1") in old


def test_the_verdict_on_a_run() -> None:
    began, now = datetime(2026, 1, 1, tzinfo=UTC), datetime.now(UTC).timestamp()

    def judged(ended: str, *wrong: str, silent: float = 0.0, step: int = 50) -> tuple[str, str]:
        last = Start(began, 0, step, 60.0, ended, 0, {}, 1)
        findings = [(True, "all is fine"), *((False, text) for text in wrong)]
        derived = {"steps": 100, "settled_steps": 10}
        found = overall([{"step": float(step)}], last, {"time": now - silent}, derived, findings)
        return found.level, f"{found.word}: {found.why}"

    assert judged("running")[0] == judged("done", silent=1e6)[0] == "good"
    assert judged("failed") == ("bad", "Failed: after 50 of 100 steps; the last error stands under Events and restarts")
    level, told = judged("running", silent=2 * SILENT)
    assert (level, told.startswith("Not running: no heartbeat for 20 min")) == ("bad", True)
    level, told = judged("stopped", "it collapses; try this", "and that")
    assert level == "warn"
    assert told.startswith("Needs attention: it collapses; try this; and 1 more below; 50 of 100 steps")
    assert judged("running", step=5)[0] == "early"
    assert overall([], None, None, {}, [(False, "no step was logged yet")]).level == "early"
