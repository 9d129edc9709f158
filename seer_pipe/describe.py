"""Every setting as its field describes it, for `seer-pipe config` and docs/settings.md; a recipe with all it derives.

``python -m seer_pipe.describe > docs/settings.md`` writes the page. No torch at import.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from seer_pipe.config import Config, derive, dump
from seer_pipe.data.sources import open_data
from seer_pipe.errors import UserError
from seer_pipe.launch.cluster import Cluster
from seer_pipe.section import FREE, Mark, Section, mark_of, members

ON_PURPOSE = "--change"
WORDS = {str: "text", bool: "true or false", int: "integer", float: "number", Any: "any value", NoneType: "null"}
BOUNDS = ((annotated_types.Gt, ">"), (annotated_types.Ge, "≥"), (annotated_types.Lt, "<"), (annotated_types.Le, "≤"))
COLUMNS = (
    "| setting | type and range | default | what it does, and when to change it | resume |",
    "|---|---|---|---|---|",
)
HEAD = """# Settings

Every setting of a recipe and of a cluster, as `seer-pipe config [SECTION]` prints them: this page is generated from the
same fields, by `python -m seer_pipe.describe`. Any of a recipe is changed on the command line, `section.key=value`;
`[]` stands for the places of a list. What a recipe makes of them, with all that is derived, prints `seer-pipe train
RECIPE --show`.

The last column is what a run with finished steps allows: **freely**; **length**, which is free where no schedule ends
with the run and otherwise wants `--change`; **`--change`**, [on
purpose](checkpoints.md#training-further-and-changing-a-setting-on-purpose); or **no**, for the reason that stands
above the table.
"""


@dataclass(frozen=True)
class Setting:
    """One setting; ``default`` is None where it has to be given."""

    section: str  # "train"; of an objective "objective: NAME"
    key: str  # as on the command line; [] stands for the places of a list
    kind: str  # type and range
    default: str | None
    about: str  # what it does, and when to change it
    resume: str  # what a run with finished steps allows: freely, length, --change, no
    why: str  # it allows none


def settings(words: str | None = None) -> list[Setting]:
    """All, or those of a section, of an objective or below a key. UserError where there are none."""
    found = [*_rows(Config, "run", "", None, frozenset()), *_rows(Cluster, "cluster", "", None, frozenset())]
    if words is None:
        return found
    chosen = [
        row for row in found
        if words in (row.section, row.section.removeprefix("objective: "), row.key)
        or row.key.replace("[]", "").startswith(words.replace("[]", "") + ".")
    ]  # fmt: skip
    if not chosen:
        sections = dict.fromkeys(row.section.removeprefix("objective: ") for row in found)
        raise UserError(f"{words}: no section or setting of this name; there are {', '.join(sections)}, and their keys")
    return chosen


def _rows(
    kind: type[Section], group: str, prefix: str, made: Section | None, known: frozenset[Any]
) -> Iterator[Setting]:
    """The settings of a section and of those in it; ``made``: the section that a default makes, whose values are the
    defaults; ``known``: sections that are described elsewhere on the page."""
    fields = kind.model_fields
    direct = {field.annotation for field in fields.values() if _is_section(field.annotation)}
    for name, field in fields.items():
        key = prefix + name
        default = field.get_default(call_default_factory=True) if made is None else getattr(made, name)
        if field.annotation in direct:
            below = group if prefix else name
            inner = default if isinstance(default, Section) else None
            yield from _rows(field.annotation, below, f"{key}.", inner, known | direct)  # type: ignore[arg-type]
            continue
        inside = [inner for inner in sections(field.annotation) if inner not in known | direct]
        several = len(inside) > 1
        below = group if prefix or not inside else name
        if not several:
            yield _row(kind, below, key, field, default)
        places = "[]" if any(get_origin(member) is list for member in members(field.annotation)) else ""
        for section in inside:
            title = f"{name}: {get_args(section.model_fields['name'].annotation)[0]}" if several else below
            yield from _rows(section, title, f"{key}{places}.", None, known | direct)


def _row(kind: type[Section], group: str, key: str, field: FieldInfo, default: Any) -> Setting:
    resume, why = "freely", ""
    if group != "cluster":
        resume, why = _resume(mark_of(Config, key.replace("[]", "")))
    if field.is_required():
        text = None
    elif isinstance(default, Section | NoneType):
        text = "null"
    else:
        plain = json.loads(json.dumps(default), parse_float=lambda number: float(f"{float(number):.4g}"))
        text = yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n...\n").strip()
    about = field.description or next(
        (" ".join((kind.__doc__ or "").split()) for kind in sections(field.annotation)), ""
    )
    return Setting(group, key, kind_of(field.annotation, field.metadata), text, about, resume, why)


def _resume(mark: Mark | None) -> tuple[str, str]:
    if mark is None:
        return ON_PURPOSE, ""
    if mark.free == "never":
        return "no", mark.why
    return ("freely" if mark == FREE else "length"), ""


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def sections(kind: Any) -> Iterator[type[Section]]:
    """Those that a field may hold, itself or in a list."""
    for member in members(kind):
        if get_origin(member) is list:
            yield from sections(get_args(member)[0])
        elif _is_section(member):
            yield member


def kind_of(kind: Any, limits: Iterable[Any] = ()) -> str:
    """A type in words, with its range: ``integer > 0``, ``number from 0 to 1``, ``adamw or sgd``."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return kind_of(inner, [*limits, *(own for one in more for own in getattr(one, "metadata", [one]))])
    if get_origin(kind) is Literal:
        return _either(list(map(str, get_args(kind))))
    if get_origin(kind) is list:
        return f"list of: {kind_of(get_args(kind)[0])}"
    if get_origin(kind) is tuple:
        return f"[{'; '.join(map(kind_of, get_args(kind)))}]"
    if get_origin(kind) is dict:
        return f"names with: {kind_of(get_args(kind)[1])}"
    if _is_section(kind):
        return "a section"
    if kind not in WORDS:  # a union
        return _either([kind_of(member, limits) for member in get_args(kind)])
    found = [(sign, f"{getattr(limit, type(limit).__name__.lower()):g}") for limit in limits
             for of, sign in BOUNDS if isinstance(limit, of)]  # fmt: skip
    if [sign for sign, _ in found] == ["≥", "≤"]:
        return f"{WORDS[kind]} from {found[0][1]} to {found[1][1]}"
    return " ".join([WORDS[kind], ", ".join(map(" ".join, found))]).strip()


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def page() -> str:
    """docs/settings.md."""
    parts = [HEAD]
    for section, group in groupby(settings(), lambda row: row.section):
        rows = list(group)
        parts.append(f"## {section}\n")
        whys = dict.fromkeys(row.why for row in rows if row.why)
        for why in whys:
            keys = ", ".join(f"`{row.key}`" for row in rows if row.why == why) if len(whys) > 1 else "what says no"
            parts.append(f"A resume leaves {keys} as it is: {why}.\n")
        parts.append("\n".join([*COLUMNS, *map(_cells, rows)]) + "\n")
    return "\n".join(parts).removesuffix("\n")


def _cells(row: Setting) -> str:
    default = "required" if row.default is None else f"`{row.default}`"
    resume = f"`{row.resume}`" if row.resume == ON_PURPOSE else row.resume
    return "| " + " | ".join(
        cell.replace("|", "\\|") for cell in (f"`{row.key}`", row.kind, default, row.about, resume)
    ) + " |"  # fmt: skip


def resolved(config: Config) -> str:
    """The settings as a run keeps them in its config.yaml, with all that is derived for one process; that is null, and
    a comment says why, where the shard set is not at hand."""
    try:
        order = open_data(config.data, config.train.batch, config.seed)[1]
        return dump(config, derive(config, order.total, correlation=order.correlation[1]))
    except UserError as error:
        return dump(config, None) + f"# nothing is derived: {error}\n"


if __name__ == "__main__":
    print(page(), end="")
