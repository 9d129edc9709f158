"""Objectives and tiny trunks of the tests where the product's are listed, for as long as a test takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Union

from pydantic import Field

from seer_pipe import config
from seer_pipe.config import loading
from seer_pipe.models.build import FAMILIES, Family
from seer_pipe.objectives import AnySettings
from seer_pipe.objectives.settings import Settings
from tests.train.test_step import TinyClipTrunk, TinyTrunk

TINY = [
    Family((TinyTrunk.name,), lambda _name, _stem, channels: TinyTrunk(channels)),
    Family((TinyClipTrunk.name,), lambda _name, _stem, channels: TinyClipTrunk(channels)),
]


@contextmanager
def joined(*kinds: type[Settings]) -> Iterator[None]:
    """As if the line in `seer_pipe.objectives` named these too, and `seer_pipe.models.build` the trunks."""
    join(*kinds)
    try:
        yield
    finally:
        _set(AnySettings)
        for family in TINY:
            FAMILIES.remove(family)


def join(*kinds: type[Settings]) -> None:
    """For the rest of the process."""
    FAMILIES.extend(TINY)
    _set(Annotated[Union[(AnySettings, *kinds)], Field(discriminator="name")])


def _set(union: Any) -> None:
    for section in config.Config, loading._Kept:
        section.model_fields["objective"].annotation = union
        section.model_rebuild(force=True)
