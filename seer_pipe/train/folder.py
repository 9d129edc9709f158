"""A run's folder: begun once, by one start at a time, under one config."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from seer_pipe import config as settings
from seer_pipe.config import Config, Derived
from seer_pipe.errors import UserError
from seer_pipe.store import open_store
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.parallel import World


@contextmanager
def only_start(run: Path, world: World) -> Iterator[None]:
    """Refuse a second start of the same run while one is going on."""
    if not world.is_first:
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot make the run's folder: {error.strerror}") from None
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: this run is already going on; stop it first, or choose another folder") from None
        yield


def set_aside(config: Config, run: Path, world: World, say: Callable[[str], None]) -> None:
    """Move all that the folder of a run holds into ``RUN/before-TIME``, so that the run begins anew; delete nothing."""
    if world.is_first:
        elsewhere = config.train.checkpoints
        if elsewhere and Checkpoints(open_store(elsewhere)).steps():
            raise UserError(f"{elsewhere}: holds the checkpoints of a run, and --fresh moves only what is in the run's "
                            "folder: move them, or give another train.checkpoints")  # fmt: skip
        held = [path for path in run.iterdir() if path.name != ".lock" and not path.name.startswith("before-")]
        if held:
            aside = run / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S}"
            aside.mkdir()
            held.sort(key=lambda path: path.name != "checkpoints")  # first, so that what is killed here begins anew too
            for path in held:
                path.rename(aside / path.name)
            say(f"the run that was here is now in {aside}")
    world.barrier()


def lay_out(config: Config, derived: Derived, run: Path, world: World, say: Callable[[str], None]) -> None:
    """Keep the resolved config; a run that is there already must not be contradicted."""
    if world.is_first:
        path = run / "config.yaml"
        if path.exists():
            changed = settings.differences(settings.load(path), config)
            if changed:
                raise UserError(f"{run}: the run was begun with other settings: {'; '.join(changed)}; "
                                "use them, choose another folder, or give --fresh")  # fmt: skip
        text = settings.save(config, derived, path)
        say(f"{config.name}: {path}\n  " + text[text.index("derived:") :].replace("\n", "\n  ").rstrip())
    world.barrier()
