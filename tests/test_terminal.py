"""The command line at a terminal: the bar of a training, Ctrl-C, and the shell's completion; and for programs JSON."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ingest.cli import app as ingest
from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.summary import line
from seer_pipe.train.events import read_events
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.units import duration
from tests.train.helpers import make_pictures, small

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    config = small(make_pictures(root / "pictures", [40]), train={"images": 24})
    settings.save(config, settings.derive(config, 40), root / "recipe.yaml")
    return root / "recipe.yaml"


@contextmanager
def terminal(*command: object, nohup: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command at a pseudo-terminal of 80 columns, and our end of that; ``nohup``: as that command starts others."""

    def prepare() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # whoever started the tests

    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 80))
    process = subprocess.Popen(
        [*map(str, command)], stdin=its, stdout=its, stderr=its, start_new_session=True,
        preexec_fn=prepare, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(its)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):
            os.close(ours)


def read(terminal: int, until: str) -> str:
    """What is printed, up to where ``until`` is seen or the program ends."""
    seen = ""
    while not re.search(until, ESCAPES.sub("", seen)):
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # its end was closed
            break
    return seen


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_ctrl_c_ends_it(recipe: Path, tmp_path: Path) -> None:
    words = ["-m", "seer_pipe", "train", recipe, "train.images=80000", "--out", tmp_path / "run"]
    with terminal(sys.executable, *words) as (process, ours):
        bar = r"step \d+/10000 .+\d (?:s|min) left  loss \d\.\d{3} \(chance 2\.485\)  \d+\.\d images/s  wait \d+%"
        seen = read(ours, until=bar)
        assert "M parameters with head" in seen
        assert re.search(bar, ESCAPES.sub("", seen)), seen
        os.write(ours, b"\x03")
        rest = read(ours, until="(?!)")
        assert process.wait() == 130
    text = ESCAPES.sub("", rest)
    assert re.search(r"stopped after \d+ of 10000 steps \(SIGINT\); the same command resumes it", text), text
    last = text.replace("\r\n", "\n").strip().splitlines()[-1]
    assert re.search(r"run: stopped in [\d.]+ (s|min .*); next: the same command resumes it$", last), text
    assert "Traceback" not in text
    assert "KeyboardInterrupt" not in text
    assert (seen + rest).rfind("\x1b[?25h") > (seen + rest).rfind("\x1b[?25l")  # the cursor is shown
    assert list((tmp_path / "run/checkpoints").glob("*/COMMITTED.json"))


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_commits_a_checkpoint_and_under_nohup_changes_nothing(
    recipe: Path, tmp_path: Path, nohup: bool
) -> None:
    run = tmp_path / "run"
    images = 64 if nohup else 80000
    words = ["-m", "seer_pipe", "train", recipe, f"train.images={images}", "--out", run]
    with terminal(sys.executable, *words, nohup=nohup) as (process, ours):
        read(ours, until=r"step [1-9]\d*/")
        os.close(ours)
        assert process.wait(120) == (0 if nohup else 130)
    last = read_events(run)[-1]
    assert (last["event"], last.get("reason")) == (("done", None) if nohup else ("stop", "SIGHUP"))
    assert (run / f"checkpoints/step-{last['step']:08d}/COMMITTED.json").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_a_run(recipe: Path, tmp_path: Path) -> None:
    words = ["train", str(recipe), "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-m", "seer_pipe", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 0
    assert "BrokenPipe" not in said
    assert "Traceback" not in said
    assert read_events(tmp_path / "run")[-1]["event"] == "done"


def test_json_tells_events_and_steps(recipe: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["event"] for row in rows if row["event"] != "checkpoint"] == ["start", "step", "step", "step", "done"]
    assert any(row["event"] == "checkpoint" for row in rows)
    steps = [row for row in rows if row["event"] == "step"]
    assert [{k: v for k, v in row.items() if k not in ("event", "steps")} for row in steps] == read_metrics(
        tmp_path / "run"
    )
    assert "chance_loss" in done.stderr
    assert "; next: " not in done.stderr  # a line for people


def test_status_watches_until_all_runs_are_over(tmp_path: Path) -> None:
    """A table that is drawn again in its place; the run is one of this process, as its heartbeat says."""
    beat = {"time": time.time(), "state": "running", "step": 5, "steps": 10, "images_per_s": 8.0, "loss": 2.5,
            "eta_s": 3725.0, "world": 1, "host": socket.gethostname(), "pid": os.getpid(), "restarts": 0}  # fmt: skip
    (tmp_path / "run").mkdir()
    heartbeat = tmp_path / "run/heartbeat.json"
    heartbeat.write_text(json.dumps(beat))
    with terminal(sys.executable, "-m", "seer_pipe", "status", tmp_path, "--watch") as (process, ours):
        seen = ESCAPES.sub("", read(ours, until=r"1 h 02 min"))
        assert re.search(r"run +running +5/10 +8\.0 +2\.5000 +1 h 02 min", seen), seen
        (tmp_path / "new.json").write_text(json.dumps(beat | {"state": "done", "step": 10}))
        (tmp_path / "new.json").replace(heartbeat)
        rest = read(ours, until="(?!)")
        assert process.wait(120) == 0
    assert "\x1b[1A" in rest  # up again, over what was there
    assert re.search(r"run +done +10/10", ESCAPES.sub("", rest)), rest


def test_a_command_ends_with_what_it_did_and_what_is_next(tmp_path: Path) -> None:
    assert line("set: complete", 3725, ["train", "look"]) == "set: complete in 1 h 02 min; next: train, or look"
    pictures = make_pictures(tmp_path / "pictures", [3])
    done = CliRunner().invoke(ingest, ["show", str(pictures), str(tmp_path / "sheet.png")])
    assert done.stdout == f"{tmp_path}/sheet.png\n"  # for programs, nothing else
    assert re.fullmatch(r"contact sheet written in .* (s|min)\n", done.stderr)


PROGRAMS = {
    "seer-pipe": "from seer_pipe.cli import main; main()",
    "seer-ingest": "from ingest.cli import main; main()",
    "print": "from seer_pipe.errors import run_to_end; run_to_end(lambda: print('a line'))",  # written at the exit
    "worker": "import typer; from seer_pipe.errors import run_to_end\n"
    "def broken(): raise BrokenPipeError('a worker')\n"
    "app = typer.Typer(pretty_exceptions_enable=False); app.command()(broken); run_to_end(app)",
}


@pytest.mark.parametrize(("program", "words"), [
    ("seer-pipe", ["config", "data"]), ("seer-pipe", ["--help"]), ("seer-ingest", ["--help"]), ("print", []),
])  # fmt: skip
def test_a_command_ends_silently_where_the_reader_of_its_output_is_gone(program: str, words: list[str]) -> None:
    ours, its = os.pipe()
    os.close(ours)
    command = [sys.executable, "-c", PROGRAMS[program], *words]
    ended = subprocess.run(command, stdout=its, stderr=subprocess.PIPE, timeout=600, check=False)
    os.close(its)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_another_pipe_that_breaks_is_an_error() -> None:
    command = [sys.executable, "-c", PROGRAMS["worker"]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("BrokenPipeError: a worker\n")


def test_output_that_cannot_be_written_is_told_once() -> None:
    command = [sys.executable, "-c", PROGRAMS["seer-pipe"], "config", "data"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: disk: No space left on device")


def test_durations_have_their_units() -> None:
    written = {0: "0 s", 0.25: "0.2 s", 9.96: "10 s", 41: "41 s", 59.6: "1 min 00 s", 250: "4 min 10 s",
               3725: "1 h 02 min", 200000: "2 d 7 h 33 min"}  # fmt: skip
    assert {seconds: duration(seconds) for seconds in written} == written


def test_help_reads_like_a_page() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}).stdout
    panels = re.findall(r"^╭─ ([\w ]+) ─", text, re.MULTILINE)
    assert panels == ["Options", "Start", "Data", "Training", "Cluster", "Evaluation and export", "Looking"]
    assert "seer-pipe train quickstart data.path=data/pictures --out runs/pictures" in text
    assert text.index("Looking") < text.index("Exit codes") < text.index("Environment")


@pytest.mark.parametrize(
    ("begun", "completed"),
    [
        ("seer-pipe tr", ["tracks", "train"]),
        ("seer-pipe atlas", ["atlas", "atlas-keys"]),
        ("seer-pipe eval lowsh", ["lowshot"]),
        ("seer-pipe train --init", ["--init-from"]),
        ("seer-pipe train quicks", ["quickstart"]),
        ("seer-ingest ur", ["urls"]),
    ],
)
def test_bash_completes(begun: str, completed: list[str]) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash here")
    script = """
        set -u
        program=${1%% *} variable=_${program^^}_COMPLETE
        eval "$(env "${variable//-/_}=source_bash" $program)"
        COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        $(complete -p $program | sed 's/.*-F \\([^ ]*\\) .*/\\1/') $program  # as bash calls what is registered
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = [bash, "-c", script, "bash", begun]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed
