"""Every command of the documentation is run.

The rule for who writes a page: a ```bash block is run, as it stands, in the order of the page and in one folder a page,
and must end well. There stand, made for the test: ``~/pictures`` (a folder of classes with pictures), ``data/pictures``
(their shard set), ``runs/pictures`` (a finished run of `TRAIN`), ``urls.csv`` (columns url and caption, of a loopback
server), ``crawl.warc.gz``, and ``configs/`` with the real recipes' names and a recipe of seconds in each. A block that
cannot be run here has ``<!-- not run: WHY -->`` on the line above it. A ```python block with a title is put into the
folder under that name. A ```diff block changes a copy of the project there; its parts, after @@ each, are found by
their lines. Output and fragments stand in ```text blocks.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ingest.reasons import Reason
from seer_pipe.quickstart.draw import KINDS, picture
from tests.ingest.test_warc import RECORDS
from tests.ingest.web import Web
from tests.train.helpers import small

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^[ \t]*<!-- not run: (?P<why>.+?) -->\n)?^(?P<indent>[ \t]*)```bash\n(?P<text>.*?)^[ \t]*```$",
                   re.MULTILINE | re.DOTALL)  # fmt: skip
PROGRAM = re.compile(r'^```python title="(?P<name>[\w./]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^```diff\n--- a/(?P<file>\S+)\n\+\+\+ b/\S+\n@@\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
#: As the pages have it, so that a page may train it or find it there.
TRAIN = "seer-pipe train configs/quickstart.yaml data.path=data/pictures --out runs/pictures"


@dataclass(frozen=True)
class Block:
    line: int
    text: str
    why: str | None  # it is not run


def blocks(page: str) -> list[Block]:
    return [
        Block(page.count("\n", 0, found.start("text")), found["text"], found["why"]) for found in BLOCK.finditer(page)
    ]


def run(text: str, folder: Path) -> None:
    """``text`` under bash, with the commands of this interpreter; pytest.fail tells what it printed."""
    environment = os.environ | {
        "HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environment, text=True, timeout=900, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"exit code {done.returncode} of:\n{text}\n{done.stdout[-3000:]}")


def apply(diff: str, file: Path) -> None:
    """Change a file; each part of the diff must fit it in one place."""
    text = file.read_text()
    for part in diff.split("@@\n"):
        before, after = (
            "".join(line[1:] for line in part.splitlines(keepends=True) if line[0] in signs) for signs in (" -", " +")
        )
        assert text.count(before) == 1, f"{file}: {before!r}"
        text = text.replace(before, after)
    file.write_text(text)


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, server: Web) -> tuple[Path, Path]:
    """The folder that a page's commands run in, and what it holds before the first: a set knows where it is from,
    so every page has the same folder, anew."""
    folder, kept = tmp_path_factory.mktemp("docs") / "page", tmp_path_factory.mktemp("kept") / "page"
    for number in range(24):
        kind = sorted(KINDS)[number % 3]
        path = folder / "pictures" / kind / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(kind, number).save(path)
    (folder / "configs").mkdir()
    for real in (ROOT / "configs").glob("*.yaml"):
        epochs = "epochs" in yaml.safe_load(real.read_text())["train"]
        length = {"epochs": 2, "images": None} if epochs else {"images": 48}
        recipe = small(folder / "data/pictures", data={"path": "data/pictures"}, train=length,
                       model={"stem": "imagenet"})  # fmt: skip
        (folder / "configs" / real.name).write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    rows = "".join(f"{server.url(f'/jpeg/{number}')},a picture\n" for number in range(4))
    (folder / "urls.csv").write_text("url,caption\n" + rows)
    (folder / "crawl.warc.gz").write_bytes(b"".join(map(gzip.compress, RECORDS)))
    run("seer-ingest folder ~/pictures --out data/pictures", folder)
    run(TRAIN, folder)
    return folder, folder.rename(kept)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path, prepared: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(page.read_text())
    if not found:
        pytest.skip("no commands on this page")
    folder, kept = prepared
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    changes = list(CHANGE.finditer(page.read_text()))
    if changes:
        shutil.copytree(ROOT / "seer_pipe", folder / "seer_pipe")
    for program in PROGRAM.finditer(page.read_text()):
        (folder / program["name"]).parent.mkdir(exist_ok=True)
        (folder / program["name"]).write_text(program["text"])
    for change in changes:
        apply(change["text"], folder / change["file"])
    for block in found:
        if block.why:
            with capsys.disabled():
                print(f"\n{page.name}:{block.line} not run: {block.why}")
        else:
            run(block.text, folder)


def test_blocks_are_found() -> None:
    page = "# A\n```bash\na\nb\n```\n\n1. x\n    <!-- not run: why -->\n    ```bash\n    c\n    ```\n```text\nd\n```\n"
    assert blocks(page) == [Block(2, "a\nb\n", None), Block(9, "    c\n", "why")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_escapes(page: Path) -> None:
    """A block written in another way than the rule's would be shown and not run."""
    text = page.read_text()
    assert len(blocks(text)) == len(re.findall(r"^[ \t]*[`~]{3,}[ {.]*(?:bash|sh|shell|console)\b", text, re.MULTILINE))
    assert len(PROGRAM.findall(text)) == len(re.findall(r"^[ \t]*[`~]{3,}[ {.]*(?:python|py)\b", text, re.MULTILINE))


def test_every_reason_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs" / "ingest.md").read_text(), re.MULTILINE)
    assert rows == [(reason.value, reason.explanation) for reason in Reason]
