"""What is minimised: one folder or file per method behind two small interfaces, `settings` and `base`."""

from typing import Annotated

from pydantic import Field

from seer_pipe.objectives.barlow_twins.settings import BarlowTwinsSettings
from seer_pipe.objectives.simclr.settings import SimclrSettings
from seer_pipe.objectives.swav.settings import SwavSettings
from seer_pipe.objectives.vicreg.settings import VicregSettings

AnySettings = Annotated[
    BarlowTwinsSettings
    | SimclrSettings
    | SwavSettings
    | VicregSettings,
    Field(discriminator="name"),
]  # fmt: skip
"""The settings of every objective."""
