"""What a run writes down and says of its steps: metrics, replaced images, its heartbeat, lines for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from seer_pipe.config import Config, Derived
from seer_pipe.data.stream import Replaced
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.train.events import OnEvent
from seer_pipe.train.health import Signs
from seer_pipe.train.heartbeat import Heartbeat, State
from seer_pipe.train.telemetry import Metrics, Quarantine, finite, over_ranks


class Records:
    """Those of one process. The first rank writes; what was replaced is gathered there from all.

    ``utilisation``: MFU per image per second of all ranks, where the peak of the GPU is known (Chowdhery et al. 2022,
    PaLM, appendix B): of the trunk, without what is computed again. ``replaced``: images that this rank had to replace,
    not yet gathered. ``on_event``: given every logged step as an event, instead of a line for people.
    """

    def __init__(
        self, config: Config, world: World, say: Callable[[str], None], log_event: Callable[..., None],
        on_event: OnEvent | None, utilisation: float | None = None,
    ) -> None:  # fmt: skip
        self._utilisation = utilisation
        self._config, self._world, self._say, self._log_event, self._on_event = config, world, say, log_event, on_event
        self._signs = Signs(config.objective.signs())
        self.replaced: list[Replaced] = []
        self._metrics: Metrics | None = None
        self._quarantine: Quarantine | None = None
        self._heartbeat: Heartbeat | None = None

    def open(self, run: Path, derived: Derived, step: int, offset: int) -> None:
        """In the run's folder, after ``step`` finished steps; ``offset``: batches that rollbacks skipped."""
        if self._world.is_first:
            self._metrics = Metrics(run, step, self._config)
            self._quarantine = Quarantine(run, step + offset)
            self._heartbeat = Heartbeat(run, step, derived.steps, self._config.train.batch, self._world.size)

    def beat(self, state: State, step: int, loss: float | None = None) -> None:
        if self._heartbeat is not None:
            self._heartbeat.beat(state, step, loss)

    def log(self, step: int, images: int, derived: Derived, own: Mapping[str, float]) -> None:
        """The metrics of step ``step`` with what this rank measured of itself, after which ``images`` images were seen.
        All ranks must call it."""
        values = self._gather(images, own) | {"images": images}
        if self._utilisation is not None:
            values["mfu"] = values["images_per_s"] * self._utilisation
        chance = derived.chance_loss
        if chance is not None:
            values["loss_above_chance"] = values["loss"] - chance
        self.beat("running", step, values.get("loss"))
        if self._metrics is not None:
            self._metrics.write(step, values)
        if self._on_event is None:
            self._say(
                f"step {step}/{derived.steps}  loss {values['loss']:.4f}"
                f"{'' if chance is None else f' (chance {chance:.4f})'}  lr {values['lr']:.4g}  "
                f"{values['images_per_s']:.1f} images/s  waiting {values['data_wait']:.0%}"
            )
        elif self._world.is_first:
            self._on_event({"event": "step", "step": step, "steps": derived.steps, **finite(values)})
        for warning in self._signs.look(values, settled=step > derived.settled_steps):
            self._log_event("warning", step, reason=warning)
            self._say(f"warning: {warning}")

    def _gather(self, images: int, own: Mapping[str, float]) -> dict[str, float]:
        """Bring what was replaced on any rank to the first, and stop where it is too much. Of all ranks' ``own`` values
        one row, see `over_ranks`."""
        replaced, values = zip(*self._world.gather((self.replaced, own)), strict=True)
        gathered = [row for rows in replaced for row in rows]
        self.replaced = []
        verdict = None
        if self._quarantine is not None and gathered:
            self._quarantine.add(gathered)
            verdict = self._quarantine.too_many(self._config.data.max_bad_fraction, images)
        verdict = self._world.gather(verdict)[0]
        if verdict:
            raise UserError(verdict)
        return over_ranks(values)

    def flush(self, images: int) -> None:
        """All of it is on the disk: a checkpoint vouches for it. All ranks must call it."""
        self._gather(images, {})
        if self._quarantine is not None:
            self._quarantine.write()
        if self._metrics is not None:
            self._metrics.flush()

    def rewind(self, step: int) -> None:
        """Take back the metrics past ``step``."""
        if self._metrics is not None:
            self._metrics.rewind(step)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
