"""A run's folder: begun once, by one start at a time, under one config."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from seer_pipe import changes
from seer_pipe import config as settings
from seer_pipe.changes import Difference, differences
from seer_pipe.config import Config, Derived, Record
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.store import Store, open_store
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.storage import DamagedError

LOCK = ".lock"  # in a run's folder, held while it runs


@contextmanager
def only_start(run: Path, world: World) -> Iterator[None]:
    """Refuse a second start of the same run while one is running. Of a start that is refused nothing is left."""
    if not world.is_first:
        yield
        return
    made = [path for path in (run, *run.parents) if not path.exists()]
    with _locked(run):
        try:
            yield
        except BaseException:
            if [path.name for path in run.iterdir()] == [LOCK]:  # refused: nothing is left of it
                (run / LOCK).unlink()
                with suppress(OSError):  # another start has put something there
                    for path in made:
                        path.rmdir()
            raise


def _locked(run: Path) -> TextIO:
    """The lock of a run, held until it is closed, in a folder that is made where there is none."""
    while True:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run}: cannot make the run's folder: {error.strerror}") from None
        with suppress(FileNotFoundError):  # a start that was refused has just removed the folder
            file = (run / LOCK).open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise UserError(
                    f"{run}: this run is already running; stop it first, or choose another folder"
                ) from None
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # it, too, was just removed: another start would not see that it is held


def set_aside(config: Config, run: Path, world: World, say: Callable[[str], None]) -> None:
    """Move all that the folder of a run holds into ``RUN/before-TIME``, so that the run starts over; delete nothing."""
    if world.is_first:
        elsewhere = config.train.checkpoints
        if elsewhere and Checkpoints(open_store(elsewhere)).steps():
            raise UserError(f"{elsewhere}: holds the checkpoints of a run, and --fresh moves only what is in the run's "
                            "folder: move them, or give another train.checkpoints")  # fmt: skip
        held = [path for path in run.iterdir() if path.name != LOCK and not path.name.startswith("before-")]
        if held:
            aside = run / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S}"
            aside.mkdir()
            held.sort(key=lambda path: path.name != "checkpoints")  # first, so that a run killed here starts over too
            for path in held:
                path.rename(aside / path.name)
            say(f"the run that was here is now in {aside}")
    world.barrier()


@dataclass(frozen=True)
class Agreement:
    """What a start means for the run that is in its folder."""

    record: Record
    changed: Sequence[Difference] = ()  # on purpose, after steps that are finished
    corrected: Sequence[str] = ()  # where no step is finished: the run starts over with these

    def change(self, step: int, images: int) -> dict[str, Any]:
        """What is changed on purpose, after so many finished steps and images, for config.yaml and events.jsonl."""
        return {"step": step, "images": images, "settings": {each.key: [each.old, each.new] for each in self.changed}}

    def recorded(self, step: int, images: int) -> Record:
        more = [self.change(step, images)] if self.changed else []
        return replace(self.record, changes=[*self.record.changes, *more])


def agree(
    config: Config, run: Path, identity: Mapping[str, str] | None = None, init: Mapping[str, str | None] | None = None,
    on_purpose: Collection[str] = (),
) -> Agreement:  # fmt: skip
    """Compare a start with what is in the run's folder, and write nothing. UserError where it contradicts the run.

    identity     of its data and crops, as checkpoints keep it, where it is known
    init         the weights that it is given
    on_purpose   the settings that may differ; all may as long as no step is committed
    """
    path, store = run / "config.yaml", store_of(run, config)
    steps = Checkpoints(store).steps()
    if not path.exists():
        return Agreement(Record(init))
    before, record = settings.load(path), settings.read_record(path)
    found = differences(before, config)
    elsewhere = store_of(run, before)
    if not steps and elsewhere.url != store.url and Checkpoints(elsewhere).steps():
        raise UserError(f"{run}: its checkpoints are in {elsewhere.url}, and {store.url} has none: move them there, or "
                        "leave train.checkpoints as it was")  # fmt: skip
    begun_from = (record.init or {}).get("name") or "no given weights"
    other = init is not None and init["sha256"] != (record.init or {}).get("sha256")
    if steps and steps[-1] > 0:
        if init is not None and other:
            raise UserError(f"{run}: was begun from {begun_from}, and not from this {init['name']} (SHA-256 "
                            f"{init['sha256']}): omit --init-from, or use another folder or --fresh")  # fmt: skip
        changes.check(run, found, on_purpose)
        return Agreement(record, found)
    corrected = list(map(str, found))
    if init is not None and other:
        corrected.append(f"--init-from ({begun_from} in the run, {init['name']} now)")
    if steps and not corrected and identity:
        corrected += _other_data(store, identity)
    if record.init is not None and init is None and (corrected or not steps):
        raise UserError(f"{run}: was begun from {begun_from}, and no step is finished: give --init-from again, or "
                        "--fresh")  # fmt: skip
    return Agreement(Record(init or record.init), corrected=corrected)


def _other_data(store: Store, identity: Mapping[str, str]) -> list[str]:
    """How the first checkpoint differs in these; one that is damaged is passed over elsewhere."""
    with suppress(DamagedError):
        state = Checkpoints(store).open(0).state
        return [f"other {name}" for name, value in identity.items() if state.get(name) != value]
    return []


def lay_out(config: Config, derived: Derived, run: Path, record: Record, say: Callable[[str], None]) -> None:
    """Keep the resolved config, once nothing contradicts it."""
    text = settings.save(config, derived, run / "config.yaml", record)
    say(f"{config.name}: {run / 'config.yaml'}\n  " + text[text.index("derived:") :].replace("\n", "\n  ").rstrip())
