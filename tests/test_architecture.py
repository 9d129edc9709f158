"""The picture of the rooms in docs/architecture.md is true to the imports, and no arrow of it runs upward."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

TOP = Path(__file__).parents[1]
PROGRAMS = ("seer_pipe", "ingest")
ENTRIES = ("__init__", "__main__")  # of seer_pipe itself: no rooms


@cache
def modules() -> dict[str, Path]:
    """Every module of both programs by its name."""
    files = [file for program in PROGRAMS for file in (TOP / program).rglob("*.py")]
    names = (".".join(file.relative_to(TOP).with_suffix("").parts) for file in files)
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


@cache
def imported(file: Path, *, at_load: bool = False) -> frozenset[str]:
    """The modules of ours that a file imports, but for types alone; ``at_load``: and not in a function, when called."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not (at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules()}
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            within = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules() else node.module for name in within}
    return frozenset(found)


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("seer_pipe.") else module.split(".")[0]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for module, file in modules().items():
        if room(module) not in ("seer_pipe", *ENTRIES):
            others = {room(name) for name in imported(file)} - {room(module), "seer_pipe"}
            found.setdefault(room(module), set()).update(others)
    return found


def table() -> dict[str, set[str]]:
    """Room to imports as the page has them, from the top down."""
    page = (TOP / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", imports)) for name, imports in rows}


def test_the_page_names_every_room_and_what_it_imports() -> None:
    assert table() == arrows()


def test_no_arrow_of_the_page_runs_upward() -> None:
    order = list(table())
    upward = [(name, other) for name, others in table().items() for other in others
              if order.index(other) <= order.index(name)]  # fmt: skip
    assert upward == []


def test_no_circle_of_files() -> None:
    graph = {name: imported(file, at_load=True) - {name} for name, file in modules().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules())  # CycleError names a circle


def test_ingest_knows_little_of_the_other_program() -> None:
    assert arrows()["ingest"] == {"shards", "share", "store", "slurm", "summary", "units", "errors"}


def test_what_is_asked_on_a_login_node_imports_no_torch() -> None:
    """Nor does the batch script's last word, or the keeper of a local run: torch and DALI take seconds to import."""
    modules = [f"seer_pipe.launch.{name}" for name in ("status", "cancel", "after", "keeper", "job")]
    heavy = ("torch", "nvidia", "numba", "pyarrow", "numpy")
    code = f"import sys, seer_pipe.cli, {', '.join(modules)}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
