"""Trunks: RegNetY and ResNet families as plain modules, with torchvision's parameter names."""

from seer_pipe.models.build import Norm, Stem, build_trunk, multiply_adds, trunk_names
from seer_pipe.models.init import init_weights
from seer_pipe.models.trunk import Trunk

__all__ = ["Norm", "Stem", "Trunk", "build_trunk", "init_weights", "multiply_adds", "trunk_names"]
