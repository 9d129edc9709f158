"""The rooms of seer_pipe keep to themselves: a method is named in its own folder alone."""

import re
from pathlib import Path

import seer_pipe

PACKAGE = Path(seer_pipe.__file__).parent
OF_A_METHOD = re.compile("prototyp|swav|sinkhorn|ln_k|simclr|moco|byol|simsiam|barlow|vicreg|dino", re.IGNORECASE)


def lines_that_name_a_method() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*")):
        place = file.relative_to(PACKAGE)
        if file.suffix in (".py", ".js", ".html") and place.parts[0] != "objectives":
            lines = enumerate(file.read_text().splitlines(), 1)
            found += [f"{place}:{number}: {line}" for number, line in lines if OF_A_METHOD.search(line)]
    return found


def test_no_room_but_objectives_names_a_method() -> None:
    """All else asks the objective's settings. Each line that may name one is listed, with its reason."""
    entries = (Path(__file__).parent / "allowed_names.txt").read_text().splitlines()[1:]
    allowed, reasons = zip(*(entry.rsplit(" | ", 1) for entry in entries), strict=True)
    assert all(reasons)
    found = lines_that_name_a_method()
    assert [line for line in found if not any(piece in line for piece in allowed)] == []
    assert [piece for piece in allowed if sum(piece in line for line in found) != 1] == []
    assert len(found) <= 25
