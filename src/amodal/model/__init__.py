"""A model: a trained method with its grid, its intensity scales and what is known of it. It completes studies.

system    Model, Completion: from a study to a completed one
intervals what its SD maps are worth, as `amodal evaluate --calibrate` found it
files     what a model's folder holds, checked before anything of it is believed
slices    missing slices of one stack, and denser stacks
perceive  what a model that perceives completeness sees in a study
store     load: by the name of one that comes along, from a folder or a hub
"""

from .files import FORMAT, SHIPPED, describe, is_model
from .intervals import Calibration, into_card, of_card
from .perceive import PERCEIVING, perceive, perceive_stack
from .slices import complete_slices
from .store import build, load
from .system import Completion, Model

__all__ = [
    "FORMAT",
    "PERCEIVING",
    "SHIPPED",
    "Calibration",
    "Completion",
    "Model",
    "build",
    "complete_slices",
    "describe",
    "into_card",
    "is_model",
    "load",
    "of_card",
    "perceive",
    "perceive_stack",
]
