"""Where fluid, grey and white matter are, seen in one contrast: a hidden Markov random field fitted by EM.

Zhang et al. 2001 (IEEE TMI 20:45), the model behind FSL FAST: as dipy has it, or FAST itself where it is installed. The
field of the receiving coil is divided out first (N4), and a voxel of two tissues goes to the larger part.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.errors import AmodalError, InputError
from ..core.rng import seed_of
from ..data import nifti
from ..data.bids import write_text
from ..data.volume import Source, Study, Volume, same_grid
from .brain import brain_mask

CLASSES: tuple[str, ...] = ("CSF", "GM", "WM", "tumour")  # 1 to 4 in a map, 0 is outside
CSF, GM, WM, TUMOUR = 1, 2, 3, 4
DARK_FLUID, BRIGHT_FLUID = (CSF, GM, WM), (WM, GM, CSF)
# modality -> the classes from dark to bright, the percentile that bright specks (vessels) are cut at, FAST's type
CONTRAST: dict[str, tuple[tuple[int, int, int], float, int]] = {
    "T1w": (DARK_FLUID, 99.5, 1),
    "T1Gd": (DARK_FLUID, 98.0, 1),
    "T2w": (BRIGHT_FLUID, 99.5, 2),
    "PDw": (BRIGHT_FLUID, 99.5, 3),
    "T2starw": (BRIGHT_FLUID, 99.5, 2),
}  # (FLAIR: grey and white matter lie too close)
SHARES = {DARK_FLUID: (0.15, 0.6), BRIGHT_FLUID: (0.4, 0.85)}  # of the brain that is darker than each boundary, roughly
Tool = Literal["auto", "dipy", "fast"]
VERSION = 1  # of what follows: older maps on disk are made anew
SMOOTHNESS, ITERATIONS = 0.1, 12
N4_SPACING, N4_ITERATIONS = 5.0, (15, 15)
STARTS = (1 / 3, 0.63, 0.9)  # where dipy's classes begin, nearly, with room above
MASKED = 0.15  # share of voxels that are exactly 0, above which an image is stripped already
CORE = 20  # voxels inside a class, away from others, that its mean needs


def classify(volume: Volume, modality: str, tumour: np.ndarray | None = None, tool: Tool = "auto") -> np.ndarray:
    """The tissue of each voxel, uint8 [X, Y, Z]: 0 outside the brain, 1 CSF, 2 grey, 3 white matter, 4 tumour.

    `tumour`: bool [X, Y, Z] where a segmentation found one. `tool`: auto is FAST where it is installed, dipy otherwise.
    InputError: the contrast does not tell tissues apart, dipy is not installed, or there is no brain to be seen.
    """
    if modality not in CONTRAST:
        raise InputError(f"{modality} does not tell tissues apart; give one of {', '.join(CONTRAST)}.")
    order, _, _ = CONTRAST[modality]
    brain = _brain(volume)
    if brain.sum() < 10 * CORE:
        raise InputError(f"{volume.name}: no brain is to be seen in it; give an image that shows one.")
    fast = shutil.which("fast") if tool != "dipy" else None
    if tool == "fast" and fast is None:
        raise InputError("FSL FAST is not installed; install FSL, or take dipy.")
    found = _fast(fast, volume, brain, modality) if fast else _hmrf(volume, brain, modality)
    labels = np.array((0, *order), np.uint8)[found]
    if tumour is not None:
        labels[tumour & brain] = TUMOUR
    return labels


def segment(
    study: Study, names: Sequence[str], folder: Path | None = None, tumour: np.ndarray | None = None,
    tool: Tool = "auto",
) -> Study:  # fmt: skip
    """The study with the tissue maps of its modalities `names`, as far as it has them (`Study.tissue`).

    `folder`: where maps are kept (`LABEL_desc-tissueT1w_dseg.nii.gz` and a JSON), and found again while the image
    and the tumour are the same. A contrast that cannot be classified is left out, with a note.
    """
    maps, notes = dict(study.tissue), list(study.notes)
    for name in (n for n in names if n in study and n in CONTRAST and n not in maps):
        path = folder and folder / f"{study.label}_desc-tissue{name}_dseg.nii.gz"
        try:
            maps[name] = _kept(path, study[name], name, tumour, tool)
        except AmodalError as error:
            if "pip install" in str(error):
                raise
            notes.append(f"{name}: no tissue map ({error})")
    return replace(study, tissue=maps, notes=tuple(notes))


def tumour_of(source: Source, study: Study) -> np.ndarray | None:
    """A segmentation of tumour or lesions that lies with the study, bool [X, Y, Z]; None if there is none on its grid.

    BraTS: `*seg.nii.gz` beside the images. BIDS: below `derivatives/*/sub-*`, `desc-brats_dseg`, `desc-tumour_*`,
    `label-tumour_*` or `desc-lesion_mask`.
    """
    reference = study[study.reference]
    for path in _segmentations(source):
        try:
            found = nifti.read(path)
        except InputError:
            continue
        if same_grid(found, reference):
            return found.data > 0
    return None


# what it is made of


def _segmentations(source: Source) -> list[Path]:
    folders = sorted({path.parent for path in source.files.values()})
    found = [p for folder in folders for p in sorted(folder.glob("*seg.nii*")) if "dseg" not in p.name]
    if source.root is not None and source.layout == "bids":
        start = "_".join(part for part in (source.subject, source.session and f"ses-{source.session}") if part)
        start = start.replace("ses-ses-", "ses-")
        for pattern in ("desc-brats_dseg", "desc-tumour_dseg", "label-tumour_mask", "desc-lesion_mask"):
            found += sorted(source.root.glob(f"derivatives/*/{source.subject}/**/{start}*_{pattern}.nii*"))
    return found


def _kept(path: Path | None, volume: Volume, name: str, tumour: np.ndarray | None, tool: Tool) -> np.ndarray:
    """The map in the file `path`, if it was made of these very voxels; else a new one, written there."""
    if path is None:
        return classify(volume, name, tumour, tool)
    parts = [volume.data.tobytes(), b"" if tumour is None else np.packbits(tumour).tobytes()]
    key = seed_of(VERSION, tool, name, volume.affine.tolist(), *(hashlib.sha256(part).hexdigest() for part in parts))
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    try:
        if json.loads(beside.read_text())["Key"] == key:
            return nifti.read(path).data.astype(np.uint8)
    except (OSError, ValueError, KeyError, InputError):
        pass  # none yet, or not ours
    labels = classify(volume, name, tumour, tool)
    about = {
        "Description": f"Tissue classes seen in {name}: {', '.join(f'{i} {c}' for i, c in enumerate(CLASSES, 1))}.",
        "Manual": False,
        "SpatialReference": "orig",
        "Key": key,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, labels, volume, descrip=f"tissue classes from {name}", dtype=np.uint8, overwrite=True)
    write_text(beside, json.dumps(about, indent=2) + "\n")
    return labels


def _brain(volume: Volume) -> np.ndarray:
    """Where the brain is: what is not exactly 0 in a stripped image, else the template's brain laid onto the head."""
    inside = np.isfinite(volume.data) & (volume.data != 0)
    return inside if inside.mean() < 1 - MASKED else brain_mask(volume) & inside


def _hmrf(volume: Volume, brain: np.ndarray, modality: str) -> np.ndarray:
    """Three classes from dark to bright, 1 to 3; 0 outside the brain."""
    try:
        from dipy.segment.tissue import TissueClassifierHMRF
    except ImportError as error:
        raise InputError('tissue maps need dipy; install it: pip install "amodal[tissue]".') from error
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside = brain[box]
    image = np.where(inside, even(volume, brain)[box], 0.0)
    order, top, _ = CONTRAST[modality]
    image = np.clip(image / np.percentile(image[inside], top), 0, 1)
    # intensities bent so that the tissues lie where the classes begin: else one of them may end up empty
    bent = np.interp(image, (0, *centres(image[inside], SHARES[order]), 1), (0.15, *STARTS, 1))
    # outside a little noise of our own: dipy divides by the variance there, and adds random noise to exact zeros
    bent = np.where(inside, bent, 0.001 + 0.05 * np.random.default_rng(0).random(bent.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty class divides by 0; it is seen below
        _, classes, _ = TissueClassifierHMRF(verbose=False).classify(
            bent.astype(np.float64), 3, SMOOTHNESS, tolerance=1e-4, max_iter=ITERATIONS
        )
    out = np.zeros(brain.shape, np.intp)
    out[box] = parts(image, np.where(inside, classes, 0).astype(np.intp), inside)
    return out


def centres(values: np.ndarray, shares: tuple[float, float], rounds: int = 30) -> tuple[float, ...]:
    """Three centres of intensities [N] by k-means, rising, begun at the medians of three parts."""
    values = np.sort(values)
    cuts = [0, *(int(s * len(values)) for s in shares), len(values)]
    found = [float(np.median(values[a:b])) for a, b in itertools.pairwise(cuts)]
    for _ in range(rounds):
        ends = np.searchsorted(values, [(a + b) / 2 for a, b in itertools.pairwise(found)])
        groups = [values[a:b] for a, b in itertools.pairwise([0, *ends, len(values)])]
        found = [float(g.mean()) if g.size else c for g, c in zip(groups, found)]
    steps = np.diff([0.0, *found, 1.0])
    if (steps <= 1e-3).any():
        raise AmodalError("its intensities do not part into three tissues.")
    return tuple(found)


def parts(image: np.ndarray, classes: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Each voxel to the tissue that is the larger part of it.

    The means of pure tissue are those of voxels whose neighbours are all of their class; a mixture of two lies between
    their means, and half way is half of each. AmodalError: a class has no such voxels.
    """
    near = ndimage.generate_binary_structure(3, 1)
    pure = ndimage.minimum_filter(classes, footprint=near) == ndimage.maximum_filter(classes, footprint=near)
    means = []
    for k in (1, 2, 3):
        core = image[pure & inside & (classes == k)]
        core = core if core.size >= CORE else image[inside & (classes == k)]
        if core.size < CORE:
            raise AmodalError("its intensities do not part into three tissues.")
        means.append(float(np.median(core)))
    return np.where(inside, 1 + np.digitize(image, [(a + b) / 2 for a, b in itertools.pairwise(means)]), 0)


def even(volume: Volume, brain: np.ndarray) -> np.ndarray:
    """The image with the slow variation of the coil's sensitivity divided out: N4 (Tustison et al. 2010) at 5 mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    image.SetSpacing(volume.spacing)
    mask = sitk.GetImageFromArray(np.ascontiguousarray(brain.T.astype(np.uint8)))
    mask.SetSpacing(volume.spacing)
    shrink = [max(1, round(N4_SPACING / s)) for s in volume.spacing]
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations(list(N4_ITERATIONS))
    try:
        small = sitk.Shrink(image, shrink)
        method.Execute(small, sitk.Shrink(mask, shrink))
        field = sitk.Resample(method.GetLogBiasFieldAsImage(small), image, sitk.Transform(), sitk.sitkLinear, 0.0)
    except RuntimeError:  # too few voxels for its splines
        return volume.data
    return volume.data / np.exp(np.clip(sitk.GetArrayFromImage(field).T, -1.6, 1.6))


def _fast(program: str, volume: Volume, brain: np.ndarray, modality: str) -> np.ndarray:
    """FSL FAST with the flags that the authors used, three classes, numbered from dark to bright."""
    with tempfile.TemporaryDirectory() as folder:
        image, out = Path(folder) / "in.nii.gz", Path(folder) / "out"
        nifti.write(image, np.where(brain, volume.data, 0).astype(np.float32), volume)
        kind = str(CONTRAST[modality][2])
        flags = ["-n", "3", "-t", kind, "-H", "0.1", "-I", "4", "-l", "20"]
        environment = {**os.environ, "FSLOUTPUTTYPE": "NIFTI_GZ"}
        run = subprocess.run([program, *flags, "-o", str(out), str(image)], capture_output=True, env=environment)
        found = Path(folder) / "out_pveseg.nii.gz"
        if run.returncode or not found.exists():
            raise AmodalError(f"FSL FAST failed: {run.stderr.decode(errors='replace').strip()[-200:]}")
        classes = nifti.read(found).data.astype(np.intp)
    means = [float(volume.data[classes == k].mean()) if (classes == k).any() else np.inf for k in (1, 2, 3)]
    rank = np.zeros(4, np.intp)
    rank[1 + np.argsort(means)] = (1, 2, 3)
    return np.where(brain, rank[np.clip(classes, 0, 3)], 0)
