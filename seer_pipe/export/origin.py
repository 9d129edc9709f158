"""Where a file of weights is from, as far as it says so itself."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from seer_pipe.errors import UserError

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".torch", ".tar", ".pkl")
LICENCE = re.compile(r"^licen[cs]e:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Origin:
    """``licence`` and ``method`` (of training without labels) are None where the file does not say."""

    name: str
    sha256: str  # of the file; of a folder's weight files, one after the other by name
    licence: str | None
    method: str | None


def origin(path: Path) -> Origin:
    """That of a weight file, or of a folder with weight files and perhaps a model card. UserError where there is none.

    The licence is that of a safetensors file's metadata, or of the front matter of the folder's README.md.
    """
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in WEIGHTS)
    if not files:
        raise UserError(f"{path}: no such file or folder of weights")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    about = {name: value for name, value in _metadata(files[0]).items() if value != "unknown"}
    licence = about.get("licence") or about.get("license") or (_on_the_card(path) if path.is_dir() else None)
    known = "initial_weights" not in about or "initial_weights_method" in about  # else they may have seen labels
    return Origin(path.name, digest.hexdigest(), licence, about.get("method") if known else None)


def _metadata(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from error


def _on_the_card(folder: Path) -> str | None:
    card = folder / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = LICENCE.search(front)
    return found[1].strip("\"'") if found else None
