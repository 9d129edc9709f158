"""What is minimised: one folder or file per method behind two small interfaces, `settings` and `base`."""

from typing import Annotated

from pydantic import Field

from seer_pipe.objectives.avid.settings import AvidSettings
from seer_pipe.objectives.barlow_twins.settings import BarlowTwinsSettings
from seer_pipe.objectives.byol.settings import ByolSettings
from seer_pipe.objectives.cma.settings import CmaSettings
from seer_pipe.objectives.cpc.settings import CpcSettings
from seer_pipe.objectives.deepcluster.settings import DeepClusterSettings
from seer_pipe.objectives.dino.settings import DinoSettings
from seer_pipe.objectives.image_audio.settings import ImageAudioSettings
from seer_pipe.objectives.jigsaw.settings import JigsawSettings
from seer_pipe.objectives.moco_v2.settings import MocoV2Settings
from seer_pipe.objectives.moco_v3.settings import MocoV3Settings
from seer_pipe.objectives.npid.settings import NpidSettings
from seer_pipe.objectives.pirl.settings import PirlSettings
from seer_pipe.objectives.random_walk.settings import RandomWalkSettings
from seer_pipe.objectives.relative_patch.settings import RelativePatchSettings
from seer_pipe.objectives.rotation.settings import RotationSettings
from seer_pipe.objectives.sela.settings import SelaSettings
from seer_pipe.objectives.simclr.settings import SimclrSettings
from seer_pipe.objectives.simsiam.settings import SimSiamSettings
from seer_pipe.objectives.supervised.settings import SupervisedSettings
from seer_pipe.objectives.swav.settings import SwavSettings
from seer_pipe.objectives.tracking.settings import TrackingSettings
from seer_pipe.objectives.vicreg.settings import VicregSettings
from seer_pipe.objectives.weak_labels.settings import WeakLabelsSettings

AnySettings = Annotated[
    AvidSettings
    | BarlowTwinsSettings
    | ByolSettings
    | CmaSettings
    | CpcSettings
    | DeepClusterSettings
    | DinoSettings
    | ImageAudioSettings
    | JigsawSettings
    | MocoV2Settings
    | MocoV3Settings
    | NpidSettings
    | PirlSettings
    | RandomWalkSettings
    | RelativePatchSettings
    | RotationSettings
    | SelaSettings
    | SimclrSettings
    | SimSiamSettings
    | SupervisedSettings
    | SwavSettings
    | TrackingSettings
    | VicregSettings
    | WeakLabelsSettings,
    Field(discriminator="name"),
]  # fmt: skip
"""The settings of every objective."""
