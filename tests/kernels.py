"""Runs pytest once under each set of kernels that torch has for this processor, with one thread and with two; or with
as many as OMP_NUM_THREADS says, where it is set.

    python tests/kernels.py [what pytest takes]

Kernels and threads sum in different orders, and a training follows the last bit: what a test asserts of one must hold
for all. ``make test-kernels`` runs the whole suite this way, .ci/run the tests of learning (``-m learns``).
"""

import itertools
import os
import subprocess
import sys

import torch

#: torch's own kernels, oldest first, and oneDNN's of the same age; torch takes one that a processor lacks at its word,
#: and dies of it.
SETS = {"DEFAULT": "SSE41", "AVX2": "AVX2", "AVX512": "DEFAULT"}


def kernels() -> list[dict[str, str]]:
    """The variables of the environment that choose each."""
    best, names = torch.backends.cpu.get_cpu_capability(), list(SETS)
    known = names[: names.index(best) + 1] if best in SETS else ["DEFAULT"]
    return [{"ATEN_CPU_CAPABILITY": name.lower(), "DNNL_MAX_CPU_ISA": SETS[name]} for name in known]


def main() -> int:
    failed = []
    given = os.environ.get("OMP_NUM_THREADS")
    for chosen, threads in itertools.product(kernels(), ("1", "2") if given is None else (given,)):
        what = " ".join(f"{name}={value}" for name, value in {**chosen, "OMP_NUM_THREADS": threads}.items())
        print(f"── {what}", flush=True)
        command = [sys.executable, "-m", "pytest", "--durations=0", "--durations-min=30", *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, **chosen, "OMP_NUM_THREADS": threads}, check=False)
        if done.returncode:
            failed.append(what)
    print("\n".join(f"failed under {what}" for what in failed) or "the same under all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
