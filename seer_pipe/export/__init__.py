"""A trained trunk for other libraries, and other libraries' weights for a trunk."""

from seer_pipe.export.folder import export_backbone, load_backbone
from seer_pipe.export.formats import FORMATS
from seer_pipe.export.init import init_backbone
from seer_pipe.export.match import Loaded, load_weights
from seer_pipe.export.preprocess import Preprocessing
from seer_pipe.export.recalibrate import recalibrate_batch_norm

__all__ = [
    "FORMATS",
    "Loaded",
    "Preprocessing",
    "export_backbone",
    "init_backbone",
    "load_backbone",
    "load_weights",
    "recalibrate_batch_norm",
]
