"""The parts of one process of a run: how they are built and restored, and what is done with them around a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from seer_pipe import config as settings
from seer_pipe.changes import next_epoch
from seer_pipe.config import Config
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import slots_of
from seer_pipe.data.sources import Order, Shards, open_cache
from seer_pipe.distributed.parts import assign, whole_shape
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk, build_trunk
from seer_pipe.objectives.base import Moment, Network
from seer_pipe.train import build
from seer_pipe.train.committed import store_of
from seer_pipe.train.doctor import training_flops
from seer_pipe.train.events import OnEvent
from seer_pipe.train.folder import Agreement, lay_out, set_aside
from seer_pipe.train.health import Guard, Policy, Watchdog
from seer_pipe.train.heartbeat import State, read_heartbeat
from seer_pipe.train.machine import gpu_busy, machine, peak_flops, peak_memory
from seer_pipe.train.records import Records
from seer_pipe.train.restore import Saver, zero_state
from seer_pipe.train.signals import StopRequest, Wait
from seer_pipe.train.step import TrainStep
from seer_pipe.train.telemetry import Clock

Say = Callable[[str], None]


@dataclass
class Hooks:
    """What rooms above this one put into a run. Each is called on every rank, unless it says otherwise.

    initialise    fills a trunk on the CPU with its first weights
    init          where these are from: name, sha256, licence, method
    rehearse      given the run's folder, on the first rank, when its first checkpoint is there
    probe         the kNN accuracy of the network, which it puts into evaluation mode and back
    on_event      given every event as it is written, and every logged step as one, on the first rank; without it a
                  step is a line for people
    """

    initialise: Callable[[Trunk], Any] | None = None
    init: Mapping[str, str | None] | None = None
    rehearse: Callable[[Path], None] | None = None
    probe: Callable[[Network], float] | None = None
    on_event: OnEvent | None = None


class Trainer:
    """The parts of one process of a run, and its steps."""

    def __init__(
        self, config: Config, run: Path, *, shards: Shards, plan: Order, identity: Mapping[str, str], world: World,
        say: Say, log_event: Callable[..., None], hooks: Hooks, watchdog: Watchdog, agreement: Agreement, fresh: bool,
    ) -> None:  # fmt: skip
        """Build and restore, and write nothing: what contradicts the run is refused here."""
        self.config, self.plan, self.world, self.say, self.log_event = config, plan, world, say, log_event
        self.path, self.hooks, self.watchdog, self.agreement, self.fresh = run, hooks, watchdog, agreement, fresh
        spread = build.spread_network(config, world, len(shards), shards.fingerprint)
        self.network, self.objective, self.layout = spread.network, spread.objective, spread.layout
        parameters = sum(whole_shape(parameter).numel() for parameter in self.network.parameters())
        name, millions = self.network.trunk.name, parameters / 1e6
        say(f"  {name}: {millions:.1f} M parameters with head; {world.size} x {world.device.type}")
        self.optimizer: Optimizer = build.build_optimizer(config.optimizer, self.network)
        zero_state(self.optimizer)
        self.guard = Guard(self.network, self.optimizer, self.objective, world.device)
        self.derived = settings.derive(config, plan.total, world.size, correlation=plan.correlation[1])
        self.train_step = TrainStep(config, self.derived, spread, self.optimizer, world, self.guard)
        self.saver = Saver(
            store_of(run, config), network=self.network, optimizer=self.optimizer, objective=self.objective,
            train=config.train, identity=identity, world=world, say=say, log_event=log_event,
        )  # fmt: skip
        peak = peak_flops(world.device, build.precision(config.train, world))
        utilisation = None if peak is None else training_flops(config) / (peak * world.size)
        self.policy = Policy(config.health)
        self.records = Records(config, world, say, log_event, hooks.on_event, utilisation)
        self.step = self.images = 0  # finished steps, and images that they saw
        self.offset = 0  # batches of the data that rollbacks skipped: step s takes batch s + offset
        self._judged = 0  # the last step whose verdict is known
        self._overdue = False  # a checkpoint, for steps were being skipped when it was due
        self.knn: float | None = None  # of the last step, where it was probed
        self.found = self._restore_or_initialise()
        self.loader = Loader(
            shards, plan, slots_of(world.rank, world.size, config.train.batch),
            build.build_crops(config), config.views.sound, config.views.frames, seed=config.seed,
            device=world.device.type, threads=config.data.threads, ahead=config.data.ahead,
            memory=int(config.data.memory_gb * 1e9), cache=open_cache(config.data),
            layout=self.layout, dtype=build.precision(config.train, world) or torch.float32,
        )  # fmt: skip
        self.begun = False  # whether the run's folder was written to

    def _restore_or_initialise(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, which the run has then; None where it begins."""
        self.watchdog.beat()
        found = None if self.fresh or self.agreement.corrected else self.saver.restore()
        if found is not None:
            self._take(found)
            self.policy.skipped = found.get("skipped", 0)
            self.train_step.rate_factor = found.get("rate_factor", 1.0)
            if found.get("scaler"):
                self.train_step.scaler.load_state_dict(found["scaler"])
        elif self.hooks.initialise is not None:
            model = self.config.model
            trunk = build_trunk(model.name, stem=model.stem, norm=model.norm)
            self.hooks.initialise(trunk)
            for name, tensor in self.network.trunk.state_dict(keep_vars=True).items():
                assign(tensor, trunk.state_dict()[name])
            build.begin_copies(self.network)
        return found

    def _take(self, found: Mapping[str, Any]) -> None:
        """The place of a checkpoint that was loaded, which may have been saved under another batch."""
        self.step = self._judged = found["step"]
        self.images = found["images"]
        self.train_step.refreshed = found.get("refreshed", 0)
        position = self.step + found.get("offset", 0)
        then, now = found["config"]["train"]["batch"], self.config.train.batch
        if then != now:
            position = next_epoch(position, then, now, self.plan.total)
        self.offset = position - self.step
        done, correlation = (self.step, self.images), self.plan.correlation[1]
        self.derived = settings.derive(self.config, self.plan.total, self.world.size, done, correlation)
        self.train_step.derived = self.derived

    def begin(self) -> None:
        """Lay out the run's folder, or take up what is in it."""
        self.begun = True
        if self.fresh:
            set_aside(self.config, self.path, self.world, self.say)
        if self.world.is_first:
            record = self.agreement.recorded(self.step, self.images)
            lay_out(self.config, self.derived, self.path, record, self.say)
        self.saver.clean(over=bool(self.agreement.corrected))
        self.world.barrier()
        if self.agreement.corrected:
            self.say(f"no step was finished, so the run starts over with {'; '.join(self.agreement.corrected)}")
        on = machine(self.world.device, build.precision(self.config.train, self.world), self.layout)
        if self.found is not None:
            self.say(f"resumed: {self.step} of {self.derived.steps} steps are finished")
            before = read_heartbeat(self.path)  # of the start before, which may have been killed after its checkpoint
            beat = {} if before is None else {"before": {"time": before["time"], "step": before["step"]}}
            self.log_event("resume", self.step, steps=self.derived.steps, world=self.world.size, machine=on, **beat)
        else:
            init = self.agreement.record.init
            more = {} if init is None else {"init": dict(init)}
            self.log_event("start", 0, steps=self.derived.steps, world=self.world.size, machine=on, **more)
        if self.agreement.changed:
            self._report_changes()
        if self.step == 0:
            self._rehearse()
        self.records.open(self.path, self.derived, self.step, self.offset)

    def _report_changes(self) -> None:
        assert self.found is not None
        before = settings.parse(self.found["config"], str(self.path))
        derived = settings.derive(before, self.plan.total, self.world.size, (self.step, self.images))
        rates = [
            build.rate_at(config.optimizer, of, self.images)
            for config, of in ((before, derived), (self.config, self.derived))
        ]
        self.log_event("change", rates=rates, **self.agreement.change(self.step, self.images))
        self.say(f"changed on purpose after step {self.step}: {'; '.join(map(str, self.agreement.changed))}; "
                 f"learning rate {rates[0]:.4g} before, {rates[1]:.4g} now")  # fmt: skip

    def _rehearse(self) -> None:
        self.watchdog.beat()
        milestones = self.derived.images // (self.config.train.keep_every_images or self.derived.images + 1)
        self.saver.rehearse(self._state(), milestones + (self.config.probe is not None))
        self.watchdog.beat()
        if self.hooks.rehearse is not None and self.world.is_first:
            self.hooks.rehearse(self.path)
        self.world.barrier()

    def batches(self, stop: StopRequest, clock: Clock) -> Generator[Batch, None, None]:
        """This rank's batches of the steps that remain; StoppedError where a stop is asked for while it waits."""
        first, last = self.step + self.offset, self.derived.steps + self.offset
        waiting = Wait(stop, alone=self.world.size == 1)
        with closing(self.loader.batches(first, last, waiting)) as batches:  # type: ignore[type-var]
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                clock.waited += time.perf_counter() - began
                if batch is None:
                    return
                yield batch

    def judge(self, all_steps: bool) -> Literal["stopped", "rollback"] | None:
        """Act on the verdicts that have come in; with ``all_steps`` on that of the last step too."""
        stopping = False
        for verdict in self.guard.verdicts(all_steps=all_steps):
            self._judged += 1
            stopping |= verdict.stop
            action = self.policy.judge(verdict.bad)
            if verdict.bad:
                whose = "" if verdict.rank is None else f" of rank {verdict.rank}"
                what = "gradient" if verdict.rank is None else "loss"
                self.log_event("skip", self._judged, batch=self._judged - 1 + self.offset, what=what, rank=verdict.rank)
                self.say(f"step {self._judged} was skipped: the {what}{whose} is not finite")
            if action == "rollback":
                return "rollback"
            if action == "stop":
                raise UserError(
                    f"step {self._judged}: loss or gradient are not finite in {self.policy.skipped} steps in a row, "
                    f"and {self.policy.rollbacks} rollbacks did not help; lower optimizer.lr or warm up longer"
                )
        return "stopped" if stopping else None

    def roll_back(self) -> None:
        """Resume from the last healthy checkpoint, with the data after the bad steps."""
        bad, position = self._judged, self._judged + self.offset
        self.saver.finish()
        found = self.saver.restore(healthy=True)
        assert found is not None  # there is one since the run began
        self._take(found)
        self.offset = position - self.step
        self.policy.skipped, self.policy.rollbacks = 0, self.policy.rollbacks + 1
        self.train_step.rate_factor *= self.config.health.rollback_lr
        self.guard.forget()
        self.records.rewind(self.step)
        self.log_event("rollback", self.step, sick=bad, offset=self.offset, rate_factor=self.train_step.rate_factor)
        self.say(f"rolled back from step {bad} to {self.step}; continues with other data")

    def beat(self, state: State) -> None:
        self.records.beat(state, self.step)

    def moment(self, batch: Batch) -> Moment:
        return Moment(self.images, self.derived.images, batch.samples, batch.epochs, batch.labels)

    def is_probed(self) -> bool:
        """Whether the step that begins is the first to reach a multiple of the probe's interval."""
        batch, probe = self.config.train.batch, self.config.probe
        if probe is None or self.hooks.probe is None:
            return False
        return (self.images + batch) // probe.every_images > self.images // probe.every_images

    def is_logged(self) -> bool:
        """Whether the step that begins is."""
        number = self.step + 1
        return self.is_probed() or number % self.config.train.log_every == 0 or number in (1, self.derived.steps)

    def count(self, batch: Batch, clock: Clock) -> None:
        """A step on ``batch`` is finished."""
        self.step += 1
        self.images += self.config.train.batch
        clock.images += self.config.train.batch
        self.records.replaced += batch.replaced

    def log(self, metrics: Mapping[str, float | Tensor], clock: Clock) -> None:
        """All ranks must call it."""
        values = {name: float(value) for name, value in metrics.items()} | clock.rates()
        values["memory_gb"] = peak_memory(self.world.device)
        if (busy := gpu_busy(self.world.device)) is not None:
            values["gpu_busy"] = busy
        if self.knn is not None:
            values["knn"] = self.knn
        self.records.log(self.step, self.images, self.derived, values)

    def probe(self) -> float:
        assert self.hooks.probe is not None
        self.watchdog.beat()
        accuracy = self.hooks.probe(self.network)
        self.network.train()
        self.say(f"step {self.step}/{self.derived.steps}  kNN {accuracy:.1%}")
        return accuracy

    @property
    def save_due(self) -> bool:
        return self.knn is not None or self._overdue or self.step % self.config.train.checkpoint_every == 0

    def save_if_healthy(self) -> None:
        """Begin to commit a checkpoint that is due; while steps are skipped it waits, for one to roll back to must be a
        healthy one."""
        self._overdue = self.policy.skipped > 0
        if not self._overdue:
            self._save()

    def end(self, *, done: bool, reason: str | None) -> None:
        """Commit the last checkpoint, and report the end; ``reason`` of a stop, if it is known on this rank."""
        if not done:
            self.beat("stopping")
        self._save()
        self.saver.finish(must=True)
        if done:
            self.log_event("done", self.step)
            self.beat("done")
            self.say(f"done: {self.derived.steps} steps, {self.derived.images} images")
            return
        reason = reason or "asked on another rank"
        self.log_event("stop", self.step, reason=reason)
        self.say(f"stopped after {self.step} of {self.derived.steps} steps ({reason}); the same command resumes it")

    def _state(self) -> dict[str, Any]:
        """What a checkpoint says beside its tensors."""
        return {
            "step": self.step,
            "images": self.images,
            "offset": self.offset,
            "skipped": self.policy.skipped,
            "rate_factor": self.train_step.rate_factor,
            "refreshed": self.train_step.refreshed,
            "scaler": self.train_step.scaler.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "derived": asdict(self.derived),
        }

    def _save(self) -> None:
        """Begin to commit a checkpoint of this step, if there is none yet."""
        if self.saver.saved == self.step:
            return
        self.watchdog.beat()
        self.records.flush(self.images)
        if self.policy.skipped == 0:
            self.policy.rollbacks = 0
        self.saver.save(self._state(), self.knn)

    def close(self) -> None:
        self.loader.close()
        self.records.close()
