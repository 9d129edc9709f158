"""What a run's recipe changes: against the recipe that it was made from, or against other runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seer_pipe import config as settings
from seer_pipe.config import Config
from seer_pipe.recipes import load_recipe, recipes
from seer_pipe.report.charts import number

#: Where a run's images are and what it is called: they differ from any recipe, and change nothing of the method.
OWN = ("name", "data.path", "data.sources")


def base_of(config: Config) -> tuple[str, Config]:
    """The recipe that these settings were made from, and its name: of the recipes that come with seer_pipe the one of
    its name, else the one from which fewest settings differ."""
    names = [config.name] if config.name in recipes() else list(recipes())
    known = {name: load_recipe(recipes()[name]) for name in names}
    name = min(known, key=lambda name: len(differing([known[name], config])))
    return name, known[name]


def differing(configs: Sequence[Config]) -> list[list[str]]:
    """The settings that are not equal in all: key, and the value in each; "-" where one has no such setting."""
    trees: list[dict[str, Any]] = [dict(settings.flat(config.model_dump(mode="json"))) for config in configs]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    values = {key: ["-" if tree.get(key) is None else number(tree[key]) for tree in trees] for key in keys}
    return [[key, *row] for key, row in values.items() if len(set(row)) > 1]


def changes(config: Config) -> tuple[str, list[list[str]]]:
    """The name of `base_of` these settings, and what of the method was changed: key, value there, value here."""
    name, base = base_of(config)
    return name, [row for row in differing([base, config]) if row[0] not in OWN]
