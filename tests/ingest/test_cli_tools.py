"""What is asked of a finished set on the command line."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.ingest.helpers import seer_ingest
from tests.ingest.test_run import fill
from tests.ingest.web import jpeg


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    fill(folder / "in", 12)
    (folder / "in" / "again.jpg").write_bytes(jpeg(3))
    (folder / "in" / "page.jpg").write_text("<html>")
    run = seer_ingest("folder", folder / "in", "--out", folder / "out", "--unit", 5)
    assert run.returncode == 0, run.stderr
    return folder / "out"


def test_stats(root: Path) -> None:
    found = json.loads(seer_ingest("stats", root, "--json").stdout)
    assert (found["samples"], found["shards"], found["rejected"]) == (13, 3, {"not_an_image": 1})
    text = seer_ingest("stats", root).stdout
    assert "13 images in 3 shards" in text
    assert "least 64, 5 % 64, median 64" in text
    assert "not_an_image" in text


def test_dedup_finds_what_is_repeated_between_shards(root: Path) -> None:
    found = json.loads(seer_ingest("dedup", root, "--distance", 0, "--json").stdout)
    assert (found["samples"], found["same"], found["near"]) == (13, 1, 0)
    assert Path(found["url"]).is_file()
    assert re.search(r"^excluded +1$", seer_ingest("stats", root).stdout, re.MULTILINE)


def test_verify_says_what_is_wrong_and_fails(root: Path) -> None:
    whole = seer_ingest("verify", root, "--images")
    assert whole.returncode == 0
    assert re.fullmatch(rf"{root}: verified in .+ (s|min)\n", whole.stderr)
    assert "13 samples in 3 shards" in whole.stdout
    tar = root / "00001.tar"
    data = tar.read_bytes()
    try:
        tar.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
        broken = seer_ingest("verify", root)
        assert broken.returncode == 1
        assert f"{tar}: 00001-000000 its bytes do not have the checksums" in broken.stdout
        *problems, summary = map(json.loads, seer_ingest("verify", root, "--json").stdout.splitlines())
        assert len(problems) == summary["problems"] == 2
    finally:
        tar.write_bytes(data)


def test_show_draws_a_sheet(root: Path, tmp_path: Path) -> None:
    run = seer_ingest("show", root, tmp_path / "sheet.png", "--samples", 6)
    assert (run.returncode, run.stdout) == (0, f"{tmp_path / 'sheet.png'}\n")
    assert Image.open(tmp_path / "sheet.png").width > 500


@pytest.mark.parametrize("verb", ["stats", "verify", "dedup"])
def test_no_set_is_one_line(tmp_path: Path, verb: str) -> None:
    run = seer_ingest(verb, tmp_path / "none")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {tmp_path / 'none'}: no shard set here")
    assert run.stderr.count("\n") == 1
