"""The recipes that come with seer_pipe, by name.

They lie in configs/ at the top of the project; ``seer_pipe/configs`` is a link to it, which a wheel is built through.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seer_pipe import config
from seer_pipe.errors import UserError


def recipes() -> dict[str, Path]:
    """The file of every recipe."""
    return {file.stem: file for file in sorted(Path(__file__).with_name("configs").glob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """A file that is there, or the recipe that ``NAME`` or ``configs/NAME.yaml`` names; UserError where neither is.

    A folder is no recipe: the quickstart leaves one of its own name.
    """
    known = recipes()
    if not path.is_dir() and path.exists():
        return path
    if path.stem in known and path in (Path(path.stem), Path("configs", path.stem + ".yaml")):
        return known[path.stem]
    if path.is_dir():
        raise UserError(f"{path}: a folder, where the file or the name of a recipe belongs")
    raise UserError(f"{path}: no such file, and no recipe of that name; there are {', '.join(known)}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> config.Config:
    """The settings of the recipe that ``path`` names or is, changed by ``key.path=value``."""
    return config.load(find_recipe(path), overrides)
