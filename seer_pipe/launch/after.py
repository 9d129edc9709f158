"""What happens once the tasks of a start are gone: the run is done, is requeued, or has failed.

Slurm's batch script runs this after ``srun``, on the host (a container has no ``scontrol``):
``python -m seer_pipe.launch.after CODE RUN…``, one run for each task of an array.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from seer_pipe.launch import record
from seer_pipe.launch.record import AGAIN, Outcome
from seer_pipe.train.committed import committed_steps, store_of

AGAIN_BY_SUBMITIT = 255  # its own handler's, before ours is set
LONGEST = 600  # seconds of back-off
SHARED = 10  # seconds in which a shared file system shows what another node wrote


def decide(run: Path, start: str, code: int | None) -> Outcome:
    """What comes of a start whose tasks left ``code`` (None: nobody knows)."""
    launched, before, now = record.read(run), record.read_outcome(run), time.time()
    assert launched is not None
    ended = record.endings(run, start)
    step = max(committed_steps(store_of(run)), default=0)
    crashes = 0 if before is None or step > before.step else before.crashes
    if any(end["ending"] == "done" and end["rank"] == 0 for end in ended):
        return Outcome("done", "", now, now, step=step)
    if failed := [end["why"] for end in ended if end["ending"] == "failed"]:
        return Outcome("failed", failed[0], now, now, step=step)
    if launched.cancelled:
        return Outcome("cancelled", f"cancelled at step {step}", now, now, step=step)
    cut = [end for end in ended if end["ending"] != "done"]
    # Slurm stops the others of a task that was killed; what had begun to train reports that as a crash, the rest cannot
    killed = bool(cut and cut[0]["why"]) and code not in (None, 0, AGAIN, AGAIN_BY_SUBMITIT)
    if cut and cut[0]["ending"] == "stopped" and not killed:
        return Outcome("again", f"stopped, the checkpoint of step {step} is committed", now, now, crashes, step)
    crashed = [end["why"] for end in cut if end["ending"] == "crashed"]
    why = crashed[0] if crashed else "a task was killed" + ("" if code is None else f" (exit code {code})")
    crashes, limit = crashes + 1, launched.settings.max_crashes
    if crashes > limit:
        return Outcome("failed", f"{crashes} crashes without a new checkpoint; {why}", now, now, crashes, step)
    delay = min(launched.settings.backoff_s * 2 ** (crashes - 1), LONGEST)
    return Outcome("again", f"crash {crashes} of at most {limit} in a row: {why}", now, now + delay, crashes, step)


def describe(outcome: Outcome) -> str:
    if outcome.what == "again":
        wait = f" in {outcome.at - outcome.time:.0f} s" if outcome.crashes and outcome.at > outcome.time else ""
        return f"requeued{wait}: {outcome.why}" + ("" if outcome.crashes else "; nothing is wrong")
    return f"{outcome.what}: {outcome.why}" if outcome.why else outcome.what


def main(code: int, runs: list[Path]) -> int:
    run = runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    start = f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    deadline = time.monotonic() + SHARED
    while code == 0 and not record.endings(run, start) and time.monotonic() < deadline:
        time.sleep(0.5)
    outcome = decide(run, start, code)
    record.write_outcome(run, outcome)
    print(describe(outcome), flush=True)
    if outcome.what == "again":
        # The requeue ends this script as well, which has to outlive it: the new start is two minutes away by default.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["scontrol", "requeue", job], check=True)
        delay = max(1, round(outcome.at - time.time()))
        for _ in range(5):
            if subprocess.run(["scontrol", "update", f"JobId={job}", f"StartTime=now+{delay}"]).returncode == 0:
                break
            time.sleep(0.5)
        return 0
    return code or int(outcome.what == "failed")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), [Path(run) for run in sys.argv[2:]]))
