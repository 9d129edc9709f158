"""What README and the page for those who come from another tool name is there: files, verbs, options, settings."""

import re
from pathlib import Path

import typer

from ingest.cli import app as ingest
from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.recipes import load_recipe, recipes

ROOT = Path(__file__).parents[2]


def verbs(cli: typer.Typer, name: str) -> dict[str, set[str]]:
    """The options of every verb, by its full name."""
    found: dict[str, set[str]] = {}

    def add(command: object, path: str) -> None:
        found[path] = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
        for verb, inner in getattr(command, "commands", {}).items():
            add(inner, f"{path} {verb}")

    add(typer.main.get_command(cli), name)
    return found


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []
    assert "example.org" not in (ROOT / "README.md").read_text() + (ROOT / "docs/start.md").read_text()


def test_what_is_ours_on_the_page_of_other_tools_exists() -> None:
    rows = re.findall(r"^\| .+? \| (.+?) \|", (ROOT / "docs/coming-from.md").read_text(), re.MULTILINE)
    ours = [code for row in rows for code in re.findall(r"`([^`]+)`", row)]
    known = verbs(app, "seer-pipe") | verbs(ingest, "seer-ingest")
    options = set().union(*known.values())
    keys = {key for key, _ in settings.flat(load_recipe(Path("quickstart")).model_dump(mode="json"))}
    for code in ours:
        for word in re.findall(r"(?<!\S)--[a-z-]+", code):
            assert word in options, code
        if code.startswith(("seer-pipe ", "seer-ingest ")):
            program, verb, *rest = code.split()
            assert f"{program} {verb}" in known, code
            if verb == "train" and not rest[0].isupper():
                assert rest[0] in recipes(), code
        for key in re.findall(r"^([a-z]+\.[a-z_]+)(?:=|$)", code):
            assert key in keys or any(name.startswith(f"{key}.") for name in keys), code
    assert len(ours) > 30
