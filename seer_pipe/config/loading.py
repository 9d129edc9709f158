"""Settings from a YAML file, and a run's resolved settings with its record back into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from seer_pipe.config.derived import Derived
from seer_pipe.config.sections import Config
from seer_pipe.config.views import Sound
from seer_pipe.errors import UserError
from seer_pipe.objectives import AnySettings
from seer_pipe.section import Section, override, read_file, validate
from seer_pipe.store import FolderStore


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``key.path=value`` overrides; UserError says what is wrong where."""
    tree = read_file(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a config: expected sections, found {type(tree).__name__}")
    if tree.pop("derived", None) is not None:  # a run's own config.yaml, with its record
        for name in ("init", "changes"):
            tree.pop(name, None)
    for change in overrides:
        override(tree, change)
    return parse(tree, str(path))


def parse(tree: Mapping[str, Any], where: str) -> Config:
    return validate(Config, tree, where)


class _Kept(Section):
    objective: AnySettings


def parse_objective(tree: Mapping[str, Any], where: str) -> AnySettings:
    """The settings of an objective alone, as an export keeps them."""
    return validate(_Kept, {"objective": tree}, where).objective


def parse_sound(tree: Mapping[str, Any], where: str) -> Sound:
    """What is heard, as an export keeps it."""
    return validate(Sound, tree, where)


@dataclass(frozen=True)
class Record:
    """What RUN/config.yaml holds beside settings and derived values.

    init       of a run that began from given weights: their name, SHA-256, licence and method, as far as known
    changes    made on purpose, oldest first: step and images then, and {key: [old, new]} of the settings
    """

    init: Mapping[str, str | None] | None = None
    changes: Sequence[Mapping[str, Any]] = ()


def read_record(path: Path) -> Record:
    """That of a config.yaml which ``save`` wrote."""
    tree = yaml.safe_load(path.read_text())
    return Record(tree.get("init"), tree.get("changes", ()))


def dump(config: Config, derived: Derived | None, record: Record = Record()) -> str:
    """The resolved config with every derived value, as YAML."""
    tree = config.model_dump(mode="json") | {"derived": derived and asdict(derived)}
    if record.init is not None:
        tree["init"] = dict(record.init)
    if record.changes:
        tree["changes"] = [dict(change) for change in record.changes]
    text: str = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    return text


def save(config: Config, derived: Derived, path: Path, record: Record = Record()) -> str:
    """Write `dump`, and return it."""
    text = dump(config, derived, record)
    FolderStore(path.parent).put(path.name, text.encode())  # a kill leaves the one or the other, and never a part
    return text


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of a tree of settings by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
