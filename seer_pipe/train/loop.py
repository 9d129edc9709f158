"""A run, from its config to its last checkpoint.

    read config → lay out the run's folder → build → restore what is there → step, step, step → commit

A run is resumed by starting it again: the newest committed checkpoint says how many steps are finished, and
everything else (which images come next, their crops, the learning rate) follows from that number.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from seer_pipe import config as settings
from seer_pipe.config import Config, Record
from seer_pipe.data.sources import open_data
from seer_pipe.data.views import VIEWS_VERSION
from seer_pipe.distributed.world import join
from seer_pipe.errors import UserError
from seer_pipe.train import build
from seer_pipe.train.boards import check_boards
from seer_pipe.train.events import Event, Events
from seer_pipe.train.folder import Agreement, agree, only_start
from seer_pipe.train.health import Watchdog
from seer_pipe.train.signals import StoppedError, StopRequest
from seer_pipe.train.telemetry import Clock
from seer_pipe.train.trainer import Hooks, Say, Trainer


def train(
    config: Config, run: Path, say: Say = print, *, hooks: Hooks | None = None, fresh: bool = False,
    on_purpose: Collection[str] = (),
) -> bool:  # fmt: skip
    """Train, or resume, the run in folder ``run``; whether it came to its end (False: it was asked to stop).

    ``fresh``: begin again; what the folder held is kept in a folder inside it. ``on_purpose``: settings that may differ
    from those of the run's finished steps. A start that is refused leaves the folder as it was.
    """
    hooks = hooks or Hooks()
    with (
        StopRequest(config.train.stop_before) as stop,
        join(config.train.device) as world,
        Watchdog(config.health.timeout) as watchdog,
        only_start(run, world),
    ):
        say_once: Say = say if world.is_first else lambda _: None
        shards, plan = open_data(config.data, config.train.batch, config.seed, config.views.media)
        build.check_world(settings.derive(config, plan.total, world.size), config.train, world)
        check_boards(config.train.log_to)
        build.set_up_torch(config.train, world)
        identity = {"shards": shards.fingerprint, "plan": plan.fingerprint, "views": str(VIEWS_VERSION)}
        agreement = Agreement(Record(hooks.init)) if fresh else world.first(
            lambda: agree(config, run, identity, hooks.init, on_purpose)
        )  # fmt: skip
        log_event = Events(run, hooks.on_event).write if world.is_first else _no_event
        trainer = None
        try:
            trainer = Trainer(
                config, run, shards=shards, plan=plan, identity=identity, world=world, say=say_once,
                log_event=log_event, hooks=hooks, watchdog=watchdog, agreement=agreement, fresh=fresh,
            )  # fmt: skip
            trainer.begin()
            if stop.warning is not None:
                log_event("warning", trainer.step, reason=stop.warning)
                say_once(f"warning: {stop.warning}")
            return loop(trainer, stop)
        except Exception as error:
            if (trainer is not None and trainer.begun) or not isinstance(error, UserError):
                if trainer is not None:
                    trainer.beat("failed")
                log_event("error", trainer.step if trainer else 0, reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            if trainer is not None:
                trainer.close()


def loop(trainer: Trainer, stop: StopRequest) -> bool:
    """Step after step, until the run is done (True) or a stop is asked for on any rank (False)."""
    clock = Clock(time.perf_counter())
    trainer.network.train()
    outcome = "stopped" if trainer.world.any(stop.reason is not None) else "start"  # asked for while it began
    while outcome in ("start", "rollback"):
        if outcome == "rollback":
            trainer.roll_back()
        outcome = "done"
        try:
            with closing(trainer.batches(stop, clock)) as batches:
                for batch in batches:
                    trainer.watchdog.beat()
                    trainer.guard.stop = stop.reason is not None
                    probed, logged = trainer.is_probed(), trainer.is_logged()
                    metrics = trainer.train_step(batch.crops, trainer.moment(batch), logged)
                    trainer.count(batch, clock)
                    trainer.knn = trainer.probe() if probed else None
                    if logged:
                        trainer.log(metrics, clock)
                    trainer.beat("running")
                    due = trainer.save_due
                    verdict = trainer.judge(all_steps=due or trainer.step == trainer.derived.steps)
                    if verdict is not None:
                        outcome = verdict
                        break
                    if due:
                        trainer.save_if_healthy()
        except StoppedError:
            outcome = trainer.judge(all_steps=True) or "stopped"
    trainer.end(done=outcome == "done", reason=stop.reason)
    return outcome == "done"


def _no_event(event: Event, step: int, **details: Any) -> None:
    """What the other ranks do with an event."""
