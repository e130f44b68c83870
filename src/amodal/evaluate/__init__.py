"""Evidence: hide what is there, make it, and measure how near it came, beside two baselines.

patterns     which sets are hidden
measure      on which scale, where, by what
subject      one subject: read once, every pattern made and measured
run          subject after subject, several at a time, each kept when it is done
results      what is written, and runs compared
paired       tests between methods
calibrate    what the SD maps are worth, and the factors that make their intervals hold
protocols    how each paper's tables were measured; numbers.json: what they say
space        the voxel grids of protocols
downstream   what completed images are worth to a segmentation network
"""

from .measure import measure, slice_axis
from .patterns import parse_patterns
from .protocols import PROTOCOLS, TRUST, Protocol
from .run import Plan, Table, evaluate
from .subject import MODEL

__all__ = [
    "MODEL",
    "PROTOCOLS",
    "TRUST",
    "Plan",
    "Protocol",
    "Table",
    "evaluate",
    "measure",
    "parse_patterns",
    "slice_axis",
]
