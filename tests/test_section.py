"""Settings as text: a word is what its field takes, as it is written, and what YAML would pass silently is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.section import Section, override, read, read_file, resolve, validate


class Inner(Section):
    name: Literal["inner"] = "inner"
    depth: int = 3


class Other(Section):
    name: Literal["other"] = "other"
    width: int = 3
    part: Inner = Inner()


class Tree(Section):
    text: str = "text"
    or_text: str | None = None
    whole: int = 1
    number: float = 1.0
    switch: bool = False
    either: bool | Annotated[int, Field(gt=0)] = True
    word: Literal["node"] | int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    names: list[str] = Field([])
    table: dict[str, str] = Field({})
    free: dict[str, Any] = Field({})
    method: Annotated[Inner | Other, Field(discriminator="name")] = Inner()
    parts: list[Inner] = Field([])


def changed(*texts: str) -> Tree:
    tree: dict[str, Any] = {}
    for text in texts:
        override(tree, text)
    return validate(Tree, tree, "tree")


@pytest.mark.parametrize(
    "word",
    ["on", "no", "true", "20240101", "2024-01-01", "0100", "1e6", "1:30", "1.0", ".nan", "0x1F", "@x", "%x", "*x", "&x",
     "d/web #2", "# 2", "a: b", "- a", "!x", "a\tb", "|", ">", "`", "s3://b/p?x=1", "=", "<<", "1_000"],
)  # fmt: skip
def test_a_text_is_taken_as_it_is_written(word: str) -> None:
    tree = changed(f"text={word}", f"or_text={word}")
    assert (tree.text, tree.or_text) == (word, word)
    if yaml_takes(word):
        file = validate(Tree, read(f"text: {word}\nnames: [{word}]\ntable: {{a: {word}}}\n", "file"), "file")
        assert (file.text, file.names, file.table) == (word, [word], {"a": word})


def yaml_takes(word: str) -> bool:
    try:
        return bool(yaml.load(f"{{a: [{word}]}}", Loader=yaml.BaseLoader) == {"a": [word]})
    except yaml.YAMLError:
        return False


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("whole=1e6", "whole", 1_000_000), ("whole=1_000", "whole", 1000), ("whole=2.5e3", "whole", 2500),
        ("whole=-0", "whole", 0), ("number=1e-3", "number", 0.001), ("number=3", "number", 3.0),
        ("number=.5", "number", 0.5), ("switch=true", "switch", True), ("either=false", "either", False),
        ("either=2", "either", 2), ("word=node", "word", "node"), ("word=8", "word", 8),
        ("or_text=null", "or_text", None), ("or_text=~", "or_text", None), ("or_text='null'", "or_text", "null"),
        ('or_text="a #b"', "or_text", "a #b"), ("parts=[{depth: 1e1}]", "parts", [Inner(depth=10)]),
        ("whole= 7 ", "whole", 7), ("pair=[1, 2e0]", "pair", (1.0, 2.0)), ("names=[on, 01]", "names", ["on", "01"]),
        ("free={exclusive: true, n: 3, t: soon}", "free", {"exclusive": True, "n": 3, "t": "soon"}),
        ("method={name: other, width: 4}", "method", Other(width=4)),
    ],
)  # fmt: skip
def test_a_word_is_what_its_field_takes(text: str, key: str, value: object) -> None:
    found = getattr(changed(text), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["whole=yes", "whole=true", "whole=0100", "whole=1:30", "whole=0x1F", "whole=1.5", "whole=2024-01-01", "whole=.inf",
     "whole='3'", f"whole={'9' * 5000}", "number=true", "number=.nan", "number=nan", "number=.inf", "number=1e999",
     "number=1:30", "number=1,5", "number=@x", "switch=1", "switch=yes", "switch='true'", "either=0", "word=nodes",
     "pair=[1]", "pair=1", "text=null", "text=[a]", "names=a", "table=3", "method=inner"],
)  # fmt: skip
def test_a_word_that_is_something_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=rf"^tree: {text.partition('=')[0]}(\.\d)?: ") as caught:
        changed(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a is set a second time"),
        ("a: {b: 1, b: 2}\n", "line 1: b is set a second time"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", r"line 3: merge keys \(<<\)"),
        ("a:\nb: 1\n", "line 1: a has no value; write null"),
        ("a: !!binary aGk=\n", "line 1: !!binary: tags are not read"),
        ("a: !!python/object:os.system x\n", "line 1: !!python/object:os.system: tags"),
        ("a: &x [*x]\n", "an anchor holds itself"),
        ("[1, 2]: 3\n", "line 1: a key is a word"),
        ("a: @x\n", "not YAML: .*line 1"),
        ("a: %x\n", "not YAML: .*line 1"),
        ("a: *x\n", "not YAML: .*undefined alias"),
        ("\ta: 1\n", "not YAML: .*line 1"),
        ("a: 1\n---\na: 2\n", "not YAML: .*single document"),
        ("a: \x00\n", "not YAML: "),
        ("a: " + "[" * 5000, "nested too deep"),
    ],
)
def test_what_yaml_passes_silently_or_cannot_read_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_file(tmp_path / "file.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'file.yaml'}: ")
    assert "\n" not in str(caught.value)


def test_an_anchor_is_a_copy() -> None:
    tree = read("parts:\n- &one {depth: 1}\n- *one\n", "file")
    tree["parts"][0]["depth"] = "2"
    assert tree["parts"][1] == {"depth": "1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("depht=1", r"depht: no such setting; did you mean method\.depth\?|did you mean parts\[\]\.depth"),
        ("method={name: other, widht: 1}", r"^tree: method\.widht: no such setting; did you mean method\.width\?$"),
        ("method={name: other, part: {dept: 1}}", r"method\.part\.dept: .*did you mean method\.part\.depth\?$"),
        ("method={name: inner, depth: x}", r"^tree: method\.depth: input should be a valid integer.*not 'x'$"),
        ("parts=[{depht: 1}]", r"^tree: parts\.0\.depht: no such setting; did you mean parts\[\]\.depth\?$"),
        ("either=x", r"^tree: either: input should be a valid boolean.*; either: input should be a valid integer"),
        ("text.more=1", "^tree: text: input should be a valid string"),
        ("names=[a", r"^\'names=\[a\': not YAML: "),
        ("text='a", "not YAML: "),
        ("text='a' b", "not YAML: "),
        ("whole=", "no value; write whole=null"),
        ("=3", "an override is key.path=value"),
    ],
)
def test_an_error_names_the_key_as_it_is_written(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        changed(text)
    assert "\n" not in str(caught.value)


def test_what_is_null_takes_settings_of_its_own(tmp_path: Path) -> None:
    """As over the ``probe: null`` of a run's own config.yaml."""
    recipe = settings.load(Path(__file__).parents[1] / "configs" / "quickstart.yaml", ["name=20240101"])
    assert recipe.probe is None
    settings.save(recipe, settings.derive(recipe, 600), tmp_path / "config.yaml")
    probed = settings.load(tmp_path / "config.yaml", ["probe.path=d/web #2", "probe.every_images=1e4"])
    assert probed.probe is not None
    place = str(Path("d/web #2").absolute())
    assert (probed.name, probed.probe.path, probed.probe.every_images) == ("20240101", place, 10_000)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_comes_back_from_a_saved_tree(text: str) -> None:
    saved = yaml.safe_dump(Tree(text=text, names=[text], table={text: text}).model_dump(mode="json"))
    found = validate(Tree, read(saved, "saved"), "saved")
    assert (found.text, found.names, found.table) == (text, [text], {text: text})


@given(st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_what_python_writes(whole: int, number: float) -> None:
    assert resolve(f"{whole}") == whole
    if abs(whole) >= 1000:
        assert resolve(f"{whole:_}") == whole
    found = changed(f"number={number!r}").number
    assert (found, type(found)) == (number, float)
