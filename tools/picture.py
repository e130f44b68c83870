"""The picture of the README, from what `amodal demo` wrote: `python tools/picture.py demo docs/images/demo.png`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from amodal.data.intensity import Window

NAMES = ("T1w", "ce-gadolinium_T1w", "T2w")


def unit(path: Path) -> np.ndarray:
    data = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
    return (Window.of(data).enter(data) + 1) / 2


def main(demo: Path, out: Path) -> None:
    study, made = demo / "study" / "sub-001" / "anat", demo / "completed" / "sub-001" / "anat"
    images = {name.replace("ce-gadolinium_T1w", "T1Gd"): unit(study / f"sub-001_{name}.nii.gz") for name in NAMES}
    truth, synthetic = unit(study / "sub-001_FLAIR.nii.gz"), unit(made / "sub-001_desc-synth_FLAIR.nii.gz")
    images |= {"FLAIR, synthetic": synthetic, "FLAIR, truth": truth}
    box = tuple(slice(w.min() - 2, w.max() + 3) for w in np.nonzero(truth > 0.05))
    _, y, z = (int(0.5 * (s.start + s.stop)) for s in box)
    figure, axes = plt.subplots(2, 6, figsize=(15, 5.6), facecolor="black")
    for column, (name, data) in enumerate([*images.items(), ("error, ± 0.3", synthetic - truth)]):
        style = {"cmap": "PuOr_r", "vmin": -0.3, "vmax": 0.3} if column == 5 else {"cmap": "gray", "vmin": 0, "vmax": 1}
        for axis, cut in zip(axes[:, column], (data[box[0], box[1], z + 4], data[box[0], y, box[2]])):
            axis.imshow(cut.T[:, ::-1], origin="lower", **style)
            axis.axis("off")
        axes[0, column].set_title(name, color="orange" if column == 3 else "white", fontsize=13)
    figure.tight_layout(pad=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=70, facecolor="black")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
