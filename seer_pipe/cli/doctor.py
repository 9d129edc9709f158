"""What a run will need, before it is started."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from seer_pipe.cli.common import AsJson, ConfigArgument, Overrides

verbs = typer.Typer()


@verbs.command()
def doctor(
    config: ConfigArgument,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the run.")] = 1,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="GB of each.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images, where the set is not at hand yet; of several, by weight.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run derives and needs, and what looks wrong. Exit code 1 where something does."""
    from seer_pipe.errors import UserError
    from seer_pipe.recipes import load_recipe
    from seer_pipe.train.doctor import at_hand, examine, supposed

    recipe = load_recipe(config, overrides or [])
    known = {}
    if images is not None:
        order = supposed(recipe, images)
    else:
        try:
            order, known["image_bytes"] = at_hand(recipe)
        except UserError as error:
            raise UserError(f"{error}; or say how many images there will be: --images N") from None
    result = examine(recipe, order, gpus, gpu_memory, **known)
    print(json.dumps(result) if as_json else "\n".join(_lines(recipe.name, gpus, result)))
    raise typer.Exit(1 if result["problems"] else 0)


def _lines(name: str, gpus: int, result: dict[str, Any]) -> list[str]:
    def rows(values: dict[str, Any], unit: str = "") -> list[str]:
        return [f"  {key.replace('_', ' ')}: {f'{value:,.4g}' if isinstance(value, float) else f'{value:,}'}{unit}"
                for key, value in values.items() if value is not None]  # fmt: skip

    derived = result["derived"] | result["derived"]["objective"]
    del derived["objective"]
    sets = [line for path, one in result["sets"] for line in (path, *rows(one))]
    host = ["memory of a GPU's process", *rows(result["host"], " GB")] if any(result["host"].values()) else []
    problems = [f"  {problem}" for problem in result["problems"]] or ["  nothing"]
    return [f"{name} on {gpus} GPUs", "derived", *rows(derived), "memory per GPU, estimated",
            *rows(result["memory"], " GB"), *host,
            "sent by a GPU in a step", *(rows(result["sent"], " GB") or ["  nothing"]),
            "the loader must give, at most", *rows(result["loader"]),
            "the order of a sorted set, and what it takes of a GPU's process", *rows(result["order"]), *sets,
            "looks wrong", *problems]  # fmt: skip
