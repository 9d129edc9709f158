"""A run, from its config to its last checkpoint.

    read config → lay out the run's folder → build → restore what is there → step, step, step → commit

A run is resumed by starting it again: the newest committed checkpoint says how many steps are finished, and
everything else (which images come next, their crops, the learning rate) follows from that number.
"""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from seer_pipe import config as settings
from seer_pipe.config import Config, Derived
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import slots_of
from seer_pipe.data.sources import Order, Shards, open_cache, open_data
from seer_pipe.errors import UserError
from seer_pipe.store import open_store
from seer_pipe.train import build, checkpoint
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.events import Event, Events
from seer_pipe.train.parallel import World, join
from seer_pipe.train.step import TrainStep
from seer_pipe.train.telemetry import Metrics, Quarantine

Say = Callable[[str], None]


def train(config: Config, run: Path, say: Say = print) -> bool:
    """Train, or go on with, the run in folder ``run``; whether it came to its end (False: it was asked to stop)."""
    with join(config.train.device) as world, _only_start(run, world):
        say_once: Say = say if world.is_first else lambda _: None
        shards, plan = open_data(config.data, config.train.batch, config.seed)
        derived = settings.derive(config, plan.total, world.size)
        build.check_world(derived, config.train.batch, world)
        build.set_threads(config.train, world)
        _lay_out(config, derived, run, world, say_once)
        note = Events(run).write if world.is_first else _no_event
        trainer = Trainer(config, derived, shards, plan, run, world, say_once, note)
        try:
            return trainer.run()
        except Exception as error:
            note("error", trainer.step, reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            trainer.close()


def _no_event(event: Event, step: int, **details: Any) -> None:
    """What the other ranks do with an event."""


@contextmanager
def _only_start(run: Path, world: World) -> Iterator[None]:
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


def _lay_out(config: Config, derived: Derived, run: Path, world: World, say: Say) -> None:
    """Keep the resolved config; a run that is there already must not be contradicted."""
    if world.is_first:
        path = run / "config.yaml"
        if path.exists():
            changed = settings.differences(settings.load(path), config)
            if changed:
                raise UserError(f"{run}: the run was begun with other settings: {'; '.join(changed)}; "
                                "use them, or choose another folder")  # fmt: skip
        text = settings.save(config, derived, path)
        say(f"{config.name}: {path}\n  " + text[text.index("derived:") :].replace("\n", "\n  ").rstrip())
    world.barrier()


class _StopRequest:
    """Set by SIGTERM or SIGINT; the second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, _frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclass
class _Clock:
    """Time and images since the last logged step."""

    began: float
    waited: float = 0.0
    images: int = 0

    def rates(self) -> dict[str, float]:
        passed = time.perf_counter() - self.began
        rates = {"images_per_s": self.images / passed, "data_wait": self.waited / passed}
        self.began, self.waited, self.images = time.perf_counter(), 0.0, 0
        return rates


class Trainer:
    """The parts of one process of a run, and its steps."""

    def __init__(
        self, config: Config, derived: Derived, shards: Shards, plan: Order, run: Path, world: World, say: Say,
        note: Callable[..., None],
    ) -> None:  # fmt: skip
        self.config, self.derived, self.world, self.say, self.note = config, derived, world, say, note
        self.identity = {"shards": shards.fingerprint, "plan": plan.fingerprint}
        spread = build.spread_network(config, world)
        self.network, self.objective = spread.network, spread.objective
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        say(f"  {spread.trunk.name}: {parameters / 1e6:.1f} M parameters with head; {world.size} x {world.device.type}")
        self.optimizer: Optimizer = build.build_optimizer(config.optimizer, self.network)
        self.train_step = TrainStep(config, derived, spread.forward, self.objective, self.optimizer, world)
        self.checkpoints = Checkpoints(open_store(run / "checkpoints"))
        self.step = self._restore()  # finished steps
        self.loader = Loader(
            shards, plan, slots_of(world.rank, world.size, config.train.batch),
            build.build_crops(config.views), seed=config.seed, device=world.device.type,
            threads=config.data.threads, ahead=config.data.ahead,
            memory=int(config.data.memory_gb * 1e9), cache=open_cache(config.data),
            layout=build.layout(config.train), dtype=build.precision(config.train, world) or torch.float32,
        )  # fmt: skip
        self.metrics = Metrics(run, self.step) if world.is_first else None
        self.quarantine = Quarantine(run, self.step) if world.is_first else None
        self._replaced: list[Any] = []  # by this rank, not yet gathered

    def _restore(self) -> int:
        found = self.checkpoints.latest(self.say)
        if found is None:
            return 0
        for name, now in self.identity.items():
            if found.state[name] != now:
                raise UserError(
                    f"{self.checkpoints.store.url}: the checkpoint was made with another {name} "
                    f"({found.state[name][:12]}…, now {now[:12]}…): train a changed shard set in another folder"
                )
        checkpoint.load_network(self.network, found.network)
        checkpoint.load_optimizer(self.network, self.optimizer, found.optimizer)
        self.objective.load_state_dict(found.objective)
        self.say(f"resumed: {found.state['step']} of {self.derived.steps} steps are finished")
        return int(found.state["step"])

    def run(self) -> bool:
        self.note("resume" if self.step else "start", self.step, steps=self.derived.steps, world=self.world.size)
        stop, clock = _StopRequest(), _Clock(time.perf_counter())
        self.network.train()
        try:
            for batch in self._timed(self.loader.batches(self.step, self.derived.steps), clock):
                self._step(batch, clock)
                stopping = self.world.any(stop.asked)
                if stopping or self.step % self.config.train.checkpoint_every == 0:
                    self._commit()
                if stopping:
                    self.note("stop", self.step)
                    self.say(f"stopped after {self.step} of {self.derived.steps} steps; the same command goes on")
                    return False
            if self.step not in self.checkpoints.steps():
                self._commit()
            self.note("done", self.step)
            self.say(f"done: {self.derived.steps} steps, {self.derived.images} images")
            return True
        finally:
            stop.restore()

    def _timed(self, batches: Iterator[Batch], clock: _Clock) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            clock.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _step(self, batch: Batch, clock: _Clock) -> None:
        finished = self.step + 1
        log = finished % self.config.train.log_every == 0 or finished in (1, self.derived.steps)
        told = self.train_step(batch.crops, self.step * self.config.train.batch, log)
        self.step = finished
        clock.images += self.config.train.batch
        self._replaced += batch.replaced
        if log:
            self._log({name: float(value) for name, value in told.items()} | clock.rates())

    def _log(self, values: dict[str, float]) -> None:
        self._collect_replaced()
        if self.metrics is not None:
            values["images"] = self.step * self.config.train.batch
            self.metrics.write(self.step, values)
            self.say(
                f"step {self.step}/{self.derived.steps}  loss {values['loss']:.4f} "
                f"(ln K {self.derived.ln_prototypes:.4f})  lr {values['lr']:.4g}  "
                f"{values['images_per_s']:.1f} images/s  waiting {values['data_wait']:.0%}"
            )
        if not torch.isfinite(torch.tensor(values["loss"])):
            raise UserError(f"step {self.step}: the loss is {values['loss']}; lower optimizer.lr or warm up longer")

    def _collect_replaced(self) -> None:
        """Bring what was replaced on any rank to the first, and stop where it is too much."""
        gathered = [row for rows in self.world.gather(self._replaced) for row in rows]
        self._replaced = []
        verdict = None
        if self.quarantine is not None and gathered:
            self.quarantine.add(gathered)
            bad, limit = len(self.quarantine), self.config.data.max_bad_fraction
            if bad > limit * max(self.step * self.config.train.batch, 1000):  # a few at the start are no rate yet
                verdict = (f"{bad} images had to be replaced by step {self.step}, more than data.max_bad_fraction "
                           f"{limit}; most from {self.quarantine.worst_shards()}; see quarantine.parquet")  # fmt: skip
                self.quarantine.write()
        verdict = self.world.gather(verdict)[0]
        if verdict:
            raise UserError(verdict)

    def _commit(self) -> None:
        """Save everything; on return the checkpoint exists."""
        self._collect_replaced()
        parts = {
            "network": checkpoint.network_state(self.network),
            "optimizer": checkpoint.optimizer_state(self.network, self.optimizer),
            "objective": self.objective.state_dict(),
        }
        if self.world.is_first:
            assert self.quarantine is not None
            self.quarantine.write()
            state = {
                **self.identity,
                "images": self.step * self.config.train.batch,
                "config": self.config.model_dump(mode="json"),
                "derived": asdict(self.derived),
            }
            self.checkpoints.save(self.step, parts, state)
            self.note("checkpoint", self.step)
            self.checkpoints.tidy(self.config.train.keep)
        self.world.barrier()

    def close(self) -> None:
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()
