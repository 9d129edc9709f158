"""A section of settings, and how the text of settings is read.

YAML decides what a word is before anybody knows what is wanted: ``on`` is a truth value, ``1:30`` is 90, ``0100`` is
64, ``1e6`` is a text, and of two equal keys the last one counts. Here a word stays a text until the field that takes
it is known: a text field keeps it as it is written, and any other gets null, true, false or a decimal number, or
refuses it. Repeated keys, merge keys, tags and missing values are refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from seer_pipe.errors import UserError

NUMBER = re.compile(r"[-+]?(0|[1-9]\d*(_\d+)*)?(\.\d+|(?<=\d)\.)?((?<=[\d.])[eE][-+]?\d+)?")
NULL = ("null", "~")
WORDS = {"true": True, "false": False}
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
S = TypeVar("S", bound="Section")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


def absolute(path: str) -> str:
    """A run outlives the directory that it was started from; a store's address is none."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


Place = Annotated[str, AfterValidator(absolute)]


@dataclass(frozen=True)
class Mark:
    """What a resume may do to the setting that is annotated with it, once steps are finished. The mark of a section
    is that of each setting in it that has none of its own."""

    free: Literal["always", "constant", "never"]  # of effect: always, or where all schedules are constant
    why: str = ""  # it may not change


FREE = Mark("always")
"""Changes neither the data nor the arithmetic."""
LENGTH = Mark("constant")
"""The length of a run: what was computed depends on it through schedules alone."""


def fixed(why: str) -> Mark:
    """It may not change within a run, because ``why``."""
    return Mark("never", why)


class Plain(str):
    """A scalar that was written without quotes."""


class Section(BaseModel):
    """Settings that belong together; an unknown one is an error, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, tree: Any) -> Any:
        """Plain words become what their fields take."""
        if not isinstance(tree, Mapping):
            return tree
        fields = cls.model_fields
        return {
            name: _typed(value, fields[name].annotation) if name in fields else value for name, value in tree.items()
        }


def _typed(value: Any, wanted: Any) -> Any:
    """``value`` of a tree that was read from YAML or JSON, as a field of the type ``wanted`` takes it."""
    kinds = set(members(wanted))
    if isinstance(value, Plain):
        return str(value) if str in kinds else resolve(value)
    if isinstance(value, list):
        several = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
        inner = next((get_args(kind)[0] for kind in several), Any)
        typed = [_typed(item, inner) for item in value]
        return tuple(typed) if any(get_origin(kind) is tuple for kind in several) else typed
    if isinstance(value, Mapping) and not any(_is_section(kind) for kind in kinds):  # a section types its own
        inner = next((get_args(kind)[1] for kind in kinds if get_origin(kind) is dict), Any)
        return {name: _typed(item, inner) for name, item in value.items()}
    return value


def members(kind: Any) -> Iterator[Any]:
    """The types that a field takes: those of a union, without what is annotated to them."""
    if get_origin(kind) in (dict, list, tuple) or not get_args(kind):
        yield kind
    elif hasattr(kind, "__metadata__"):
        yield from members(get_args(kind)[0])
    else:
        for member in get_args(kind):
            yield from members(member)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def resolve(word: str) -> Any:
    """What a plain word is, where no text is wanted; a whole number is an int, however it is written: ``1e6``."""
    if word in WORDS:
        return WORDS[word]
    if not word.strip("+-.") or not NUMBER.fullmatch(word) or not math.isfinite(number := float(word)):
        return str(word)
    if set(word) <= set("+-_0123456789"):
        return int(word)
    return int(number) if number.is_integer() else number


def read_file(path: Path) -> Any:
    """The tree in a YAML file, as ``read`` gives it; UserError where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: no text in UTF-8: {error.reason}") from None
    return read(text, str(path))


def read(text: str, where: str) -> Any:
    """The tree in a YAML text, its plain words as ``Plain``; UserError, which begins with ``where``."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _tree(node, where, ())
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deep") from None


def _tree(node: yaml.Node, where: str, within: tuple[yaml.Node, ...]) -> Any:
    here = f"{where}: line {node.start_mark.line + 1}"
    if node in within:
        raise UserError(f"{here}: an anchor holds itself")
    if node.tag not in PLAIN_TAGS:
        raise UserError(f"{here}: {node.tag.replace('tag:yaml.org,2002:', '!!')}: tags are not read; leave it out")
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, where, (*within, node)) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Any] = {}
        for key, value in node.value:
            at = f"{where}: line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{at}: a key is a word")
            if key.value in tree:
                raise UserError(f"{at}: {key.value} is set a second time")
            if key.value == "<<" and key.style is None:
                raise UserError(f"{at}: merge keys (<<) are not read; write the settings out")
            if isinstance(value, yaml.ScalarNode) and value.style is None and not value.value:
                raise UserError(f"{at}: {key.value} has no value; write null where none is meant")
            tree[key.value] = _tree(value, where, (*within, node))
        return tree
    if node.style is not None:  # in quotes
        return str(node.value)
    return None if node.value in NULL else Plain(node.value)


def override(tree: dict[str, Any], text: str) -> None:
    """Change ``tree`` by ``key.path=value``. Lists, mappings and texts in quotes are YAML; all else is one plain word,
    taken whole, whatever YAML would make of ``#``, ``@``, ``%`` or ``*`` in it."""
    key, equals, value = text.partition("=")
    value = value.strip()
    if not equals or not key:
        raise UserError(f"{text!r}: an override is key.path=value")
    if not value:
        raise UserError(f"{text!r}: no value; write {key}=null where none is meant")
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise UserError(f"{text!r}: {parent} is a value, not a section")
    if value[0] in "[{\"'":
        tree[last] = read(value, repr(text))
    else:
        tree[last] = None if value in NULL else Plain(value)


def validate(section: type[S], tree: Mapping[str, Any], where: str) -> S:
    """The settings in ``tree``; UserError, which begins with ``where`` and names every key that is wrong."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, section, tree) for problem in error.errors())
        raise UserError(f"{where}: " + "; ".join(problems)) from None


def _explain(problem: Any, section: type[Section], tree: Mapping[str, Any]) -> str:
    named = problem["type"] in ("extra_forbidden", "missing")  # the last place is the key, there or not
    key = ".".join(map(str, _written(problem["loc"], tree, named)))
    if problem["type"] == "extra_forbidden":
        near = _nearest(key, list(_keys(section)))
        return f"{key}: no such setting" + (f"; did you mean {near}?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "union_tag_invalid":
        return f"{key}.name: {problem['ctx']['tag']!r} is none of {problem['ctx']['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.name: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _written(places: tuple[int | str, ...], tree: Any, named: bool) -> Iterator[int | str]:
    """The places of an error without the members of unions that pydantic puts between them."""
    for nth, place in enumerate(places, 1):
        last = named and nth == len(places)
        if isinstance(tree, Mapping) and (place in tree or last):
            tree = tree.get(str(place))
        elif isinstance(tree, list | tuple) and isinstance(place, int):
            tree = tree[place] if place < len(tree) else None
        else:
            continue
        yield place


def mark_of(section: type[Section], key: str) -> Mark | None:
    """The mark nearest to the setting with this dotted ``key``: its own, or that of a section around it."""
    kinds: list[type[Section]] = [section]
    mark: Mark | None = None
    for name in key.split("."):
        fields = [kind.model_fields[name] for kind in kinds if name in kind.model_fields]
        mark = next((own for field in fields for own in field.metadata if isinstance(own, Mark)), mark)
        kinds = [kind for field in fields for kind in members(field.annotation) if _is_section(kind)]
    return mark


def _nearest(key: str, known: list[str]) -> str | None:
    """The dotted key that is most like ``key``: by its last word, and among equals by the whole."""
    words = sorted({name.rpartition(".")[2] for name in known})
    close = difflib.get_close_matches(key.rpartition(".")[2], words, 1)
    alike = [name for name in known if name.rpartition(".")[2] in close]
    return max(alike, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio(), default=None)


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section and of all that it holds; ``[]`` stands for the places of a list."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in members(field.annotation):
            several = get_origin(kind) is list
            for inner in members(get_args(kind)[0]) if several else (kind,):
                if _is_section(inner):
                    yield from _keys(inner, f"{prefix}{name}{'[]' if several else ''}.")
