"""Draws docs/images/phantom.png: five contrasts of one virtual subject, and one virtual heart from apex to base."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from amodal.data.phantom import HeartConfig, PhantomConfig, heart_subject, subject

FIVE = {"T1w": None, "FLAIR": None, "T2starw": None, "CT": (-400, 1400), "CT, brain": (-10, 90), "PET": (0, 11)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "phantom.png")
    args = options.parse_args()
    names = ("T1w", "FLAIR", "T2starw", "CT", "PET")
    head = PhantomConfig(shape=(128, 144, 120), head=True, stripped=False, modalities=names, lesions=1.0, age=(70, 70))
    brain, heart = subject(2, 21, head), heart_subject(2, 3, HeartConfig(disease=0.0))
    figure, axes = plt.subplots(3, 6, figsize=(12, 6.4), facecolor="black")
    for axis, (title, limits) in zip(axes[0], FIVE.items()):
        image = brain.images[title.split(",")[0]][..., 62]
        _show(axis, image, title, limits or (0, float(np.percentile(image, 99.7))))
    for row, phase in zip(axes[1:], heart.images):
        top = float(np.percentile(heart.images["ED"], 99.6))
        for axis, z in zip(row, (6, 10, 14, 18, 23, 29)):
            _show(axis, heart.images[phase][..., z], f"cine {phase}, slice {z}", (0, top))
    figure.tight_layout(pad=0.3, h_pad=1.2)
    figure.savefig(args.out, dpi=60, facecolor="black")


def _show(axis: plt.Axes, image: np.ndarray, title: str, limits: tuple[float, float]) -> None:
    axis.imshow(image.T, cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1])
    axis.set_title(title, color="white", fontsize=9)
    axis.axis("off")


if __name__ == "__main__":
    main()
