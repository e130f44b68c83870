"""The voxel grid that a protocol measures on: field of view, size and spacing of a paper's preprocessing.

It is a `Frame`, so it can say where it lies; interpolation is that of `data.frame` (cubic, with a Gaussian where voxels
become wider) where the papers' is trilinear or not stated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.contract import Grid
from ..data.frame import Frame
from ..data.volume import Study, Volume

KEEP, FIT = 0.0, -1.0  # spacing as it comes; the whole field of view into `size` voxels


@dataclass(frozen=True)
class Space:
    """`size`: voxels along R, A, S (0: as many as there are); `spacing`: mm, `KEEP` or `FIT`. What lies beyond is cut
    off or padded, the same on both sides."""

    size: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (KEEP, KEEP, KEEP)

    def enter(self, study: Study) -> Study:
        """A study whose volumes share one grid, on the grid of the protocol."""
        if self == Space():
            return study
        frame = Frame.of(study[study.reference], self.grid(study[study.reference]))
        volumes = {name: Volume(frame.enter(study[name]), frame.affine) for name in study}
        return replace(study, volumes=volumes)

    def grid(self, reference: Volume) -> Grid:
        """As a network's grid, for one reference."""
        own = Frame.of(reference, Grid(spacing=((0.0, 1e3),) * 3, multiple=(1, 1, 1)))  # RAS+, voxels as they are
        steps = []
        for wanted, size, count, spacing in zip(self.spacing, self.size, own.shape, own.spacing):
            step = {KEEP: spacing, FIT: spacing * count / max(size, 1)}.get(wanted, wanted)
            steps.append((step, step))
        return Grid(size=self.size, spacing=(steps[0], steps[1], steps[2]), multiple=(1, 1, 1))
