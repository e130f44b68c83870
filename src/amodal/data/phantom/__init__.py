"""The virtual cohort: brains with known truth, made individual and scanned by signal equations."""

from .cohort import make_cohort
from .config import PhantomConfig
from .tissue import TISSUES, Tissue
from .virtual import VirtualSubject, subject, to_study

__all__ = ["TISSUES", "PhantomConfig", "Tissue", "VirtualSubject", "make_cohort", "subject", "to_study"]
