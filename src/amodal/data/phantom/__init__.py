"""The virtual cohort: brains and hearts with known truth, made individual and scanned by signal equations."""

from .cine import VirtualHeart, heart_studies, heart_subject
from .cohort import make_cohort
from .config import PhantomConfig
from .heart import HeartConfig
from .hearts import make_hearts
from .tissue import TISSUES, Tissue
from .virtual import VirtualSubject, subject, to_study

__all__ = [
    "TISSUES",
    "HeartConfig",
    "PhantomConfig",
    "Tissue",
    "VirtualHeart",
    "VirtualSubject",
    "heart_studies",
    "heart_subject",
    "make_cohort",
    "make_hearts",
    "subject",
    "to_study",
]
