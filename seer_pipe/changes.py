"""Which settings of a run may change once steps are finished: freely, on purpose, or not at all, and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from seer_pipe.config import Config, flat
from seer_pipe.errors import UserError
from seer_pipe.section import FREE, LENGTH, mark_of


@dataclass(frozen=True)
class Difference:
    """A setting with its value in the run and the one asked for now."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} ({self.old} in the run, {self.new} now)"

    @property
    def fixed(self) -> str | None:
        """Why it may not change, if so."""
        mark = mark_of(Config, self.key)
        return mark.why if mark is not None and mark.free == "never" else None


def differences(old: Config, new: Config) -> list[Difference]:
    """The settings that differ and are not free. Where all schedules are constant the length of a run is free: what
    was computed does not depend on it."""
    before, after = dict(flat(old.model_dump(mode="json"))), dict(flat(new.model_dump(mode="json")))
    free = {FREE} if any(map(_knows_its_end, (old, new))) else {FREE, LENGTH}
    return [
        Difference(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and mark_of(Config, key) not in free
    ]


def _knows_its_end(config: Config) -> bool:
    constant = config.optimizer.schedule == "constant" and config.optimizer.final_weight_decay is None
    return config.objective.knows_its_end or not constant


def check(run: object, found: Collection[Difference], on_purpose: Collection[str] = ()) -> None:
    """UserError where a run with finished steps is contradicted; ``on_purpose``: keys that ``--change`` names."""
    if refused := [difference for difference in found if difference.fixed]:
        listed = "; ".join(f"{difference}: {difference.fixed}" for difference in refused)
        raise UserError(f"{run}: cannot change within a run: {listed}; use another folder, or --fresh")
    if asked := [difference for difference in found if difference.key not in on_purpose]:
        how = " ".join(f"--change {difference.key}={difference.new}" for difference in asked)
        raise UserError(f"{run}: the run was begun with other settings: {'; '.join(map(str, asked))}; use them, "
                        f"another folder or --fresh, or continue with {how}".replace("=None", "=null"))  # fmt: skip


def next_epoch(position: int, then: int, now: int, images_in_set: int) -> int:
    """Where the data continue when the batch changes from ``then`` to ``now`` images: at the start of an epoch.

    ``position`` counts batches, before and after. Another batch has another order, so the epoch under way cannot be
    finished. The crops follow from the number of the epoch, so none that was begun is repeated.
    """
    epochs = (-(-position // (images_in_set // batch)) for batch in (then, now))
    return max(epochs) * (images_in_set // now)
