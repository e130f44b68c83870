"""One grid for a study: by the affines, and where a mismatch is measured, by a rigid registration.

Whatever is done, a volume is interpolated once, from its own voxels to those of the reference. The registration
maximises the mutual information of Mattes et al. 2003 (IEEE TMI 22:120), as SimpleITK has it, on copies of 2 mm in
world space; the values written in the notes are measured afterwards, on all voxels of the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.errors import InputError
from ..data.volume import Source, Study, Volume, same_grid

WORK = 2.0  # mm: the voxels on which is measured and registered
MOVED = 0.7  # mm, mean over the head: less than this is left to the affines
GAIN = 0.01  # relative rise of the mutual information below which a movement is not believed
LIMIT_MM, LIMIT_DEGREES = 30.0, 30.0  # beyond this it is a failure, not a movement
OVERLAP = 0.3  # of the reference's head that must lie in the field of view of the other volume
WHOLE = 0.9  # below this share the notes say how much of the head is covered
_BINS = 32
_SAMPLES = 10000  # voxels of the head that the metric looks at; the seed is fixed
_SEED = 1


@dataclass(frozen=True)
class Rigid:
    """A measured movement: `matrix` 4x4 takes RAS+ millimetres of the reference to those of the other volume."""

    matrix: np.ndarray
    millimetres: float  # mean over the head of the reference
    degrees: float
    before: float  # mutual information in nats, by the affines alone
    after: float
    covers: float  # share of the reference's head in the field of view of the other

    @property
    def believed(self) -> bool:
        """Large enough to matter, and better by the measure."""
        return self.sane and self.millimetres > MOVED and self.after > self.before * (1 + GAIN)

    @property
    def sane(self) -> bool:
        return self.millimetres <= LIMIT_MM and self.degrees <= LIMIT_DEGREES


def prepare(source: Source) -> Study:
    """Read a study and bring its volumes to one grid."""
    return align(source.read())


def align(study: Study) -> Study:
    """The study with every volume on the voxels of its reference modality; the notes say what was done to which.

    A study on one grid comes back as it is. InputError where a volume lies elsewhere than the reference.
    """
    name = study.reference
    fixed = study[name]
    if all(same_grid(fixed, volume) for volume in study.volumes.values()):
        return study
    target = _work(fixed)
    head = _head(target)
    volumes, notes = {name: fixed}, list(study.notes)
    for other, volume in study.volumes.items():
        if other == name:
            continue
        if same_grid(fixed, volume):
            volumes[other] = volume
            continue
        found = measure(target, head, volume, f"{study.label}: {other}", name)
        volumes[other] = resample(volume, fixed, found.matrix if found.believed else np.eye(4))
        notes.append(_note(other, name, found))
    return replace(study, volumes=volumes, notes=tuple(notes))


def resample(volume: Volume, onto: Volume, matrix: np.ndarray | None = None) -> Volume:
    """A volume on the voxels of another: cubic B-spline, clipped to the source's range, 0 beyond its field of view.

    `matrix` 4x4 takes world millimetres of `onto` to those of `volume` (identity if not given).
    """
    world = np.eye(4) if matrix is None else matrix
    index = np.linalg.inv(volume.affine) @ world @ onto.affine  # voxels of `onto` -> voxels of `volume`, sheared or not
    data = _sample(volume.data, index, onto.shape, sitk.sitkBSpline3, outside=np.nan)
    inside = np.clip(data, volume.data.min(), volume.data.max())
    return Volume(np.where(np.isnan(data), 0, inside), onto.affine, onto.header, volume.path)


def measure(target: sitk.Image, head: np.ndarray, volume: Volume, name: str, reference: str) -> Rigid:
    """The rigid movement between the reference, as a work image with its head mask, and a volume."""
    moving = _work(volume)
    seen = _sees(target, volume)
    if (share := float(seen[head].mean())) < OVERLAP:
        raise InputError(
            f"{name} covers {share:.0%} of the head in {reference}, at least {OVERLAP:.0%} is needed; "
            f"check that both are of one subject and that their affines are right."
        )
    transform = _register(target, moving, head, volume)
    matrix = _matrix(transform)
    points = _points(target)[:, head]
    shifts = np.linalg.norm((matrix @ points - points)[:3], axis=0)
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    before = mutual_information(target, moving, head & seen, np.eye(4))
    after = mutual_information(target, moving, head & seen, matrix)
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return Rigid(matrix, float(shifts.mean()), degrees, before, after, share)


def mutual_information(target: sitk.Image, moving: sitk.Image, mask: np.ndarray, matrix: np.ndarray) -> float:
    """Mutual information in nats over the masked voxels of `target`; 32 x 32 bins, 1st to 99th percentiles."""
    a = _array(target)[mask]
    index = np.linalg.inv(_affine(moving)) @ matrix @ _affine(target)
    b = _sample(_array(moving), index, mask.shape, sitk.sitkLinear)[mask]
    joint = np.bincount(_bin(a) * _BINS + _bin(b), minlength=_BINS**2).reshape(_BINS, _BINS) / a.size
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / apart[some])).sum())


def _bin(x: np.ndarray) -> np.ndarray:
    low, high = np.percentile(x, (1, 99))
    return np.clip((x - low) / max(float(high - low), 1e-12) * _BINS, 0, _BINS - 1).astype(np.int64)


def _note(other: str, reference: str, found: Rigid) -> str:
    moved = f"{found.millimetres:.1f} mm, {found.degrees:.1f} degrees"
    gain = f"mutual information {found.before:.3f} -> {found.after:.3f}"
    if found.covers < WHOLE:
        gain += f"; it covers {found.covers:.0%} of the head, the rest is 0"
    if found.believed:
        return f"{other}: rigidly registered to {reference} (moved {moved}; {gain})."
    if not found.sane:
        return (
            f"{other}: resampled to {reference} by the affines; registration wanted to move it {moved}, more than is "
            f"plausible, and was not applied: check that they lie on each other."
        )
    return f"{other}: resampled to {reference} by the affines (measured mismatch {moved}; {gain})."


# --------------------------------------------------------------------------------------- images in RAS+ world, for ITK


def _work(volume: Volume) -> sitk.Image:
    """A copy on an upright grid of 2 mm over the field of view, smoothed against aliasing; ITK's axes are RAS+ here."""
    smooth = ndimage.gaussian_filter(volume.data, [max(0.0, 0.5 * (WORK / s - 1)) for s in volume.spacing], truncate=2)
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in volume.shape], [1])).reshape(4, -1)
    corners = (volume.affine @ ends)[:3]
    low, high = corners.min(1), corners.max(1)
    affine = np.diag([WORK, WORK, WORK, 1.0])
    affine[:3, 3] = low
    shape = tuple(int(n) for n in np.ceil((high - low) / WORK) + 1)
    image = sitk.GetImageFromArray(_sample(smooth, np.linalg.inv(volume.affine) @ affine, shape, sitk.sitkLinear).T)
    image.SetSpacing([WORK] * 3)
    image.SetOrigin([float(x) for x in low])
    return image


def _array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).T


def _affine(image: sitk.Image) -> np.ndarray:
    affine = np.diag([*image.GetSpacing(), 1.0])
    affine[:3, 3] = image.GetOrigin()
    return affine


def _points(image: sitk.Image) -> np.ndarray:
    """World coordinates [4, X, Y, Z] of an image's voxels."""
    grid = np.indices(image.GetSize(), dtype=np.float64)
    homogeneous = np.concatenate([grid, np.ones_like(grid[:1])])
    return np.einsum("ij,jxyz->ixyz", _affine(image), homogeneous)


def _head(image: sitk.Image) -> np.ndarray:
    """Where the head is, with a rim of 6 mm of what is around it (its edge says most about where it lies)."""
    inside = sitk.OtsuThreshold(image, 0, 1, 128)
    return _array(sitk.BinaryDilate(inside, [3, 3, 3])) > 0


def _sees(image: sitk.Image, volume: Volume) -> np.ndarray:
    """Which voxels of an image lie in the field of view of a volume."""
    index = np.linalg.inv(volume.affine) @ _affine(image)
    ends = np.array(volume.shape)[:, None, None, None] - 0.5
    where = np.einsum("ij,jxyz->ixyz", index @ np.linalg.inv(_affine(image)), _points(image))[:3]
    return ((where >= -0.5) & (where <= ends)).all(0)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """ITK on one thread: its sums, and so the last bits of what it finds, depend on their number (which is global)."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@_one_thread()
def _sample(data: np.ndarray, index: np.ndarray, shape: tuple[int, ...], how: int, outside: float = 0) -> np.ndarray:
    """Data [X, Y, Z] at `index` @ voxel for every voxel of a grid; half a voxel beyond the outermost centres counts in.

    Done in index space, so that ITK, which knows no shear, never sees an affine.
    """
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(index[:3, :3].ravel().tolist())
    transform.SetTranslation(index[:3, 3].tolist())
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    grid = (list(shape), transform, how, (0.0,) * 3, (1.0,) * 3, identity)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    return sitk.GetArrayFromImage(sitk.Resample(image, *grid, outside, sitk.sitkFloat32)).T


@_one_thread()
def _register(target: sitk.Image, moving: sitk.Image, head: np.ndarray, volume: Volume) -> sitk.Euler3DTransform:
    """The rigid transform, from reference to moving world, of most mutual information; one thread, fixed seed."""
    start = sitk.Euler3DTransform()
    start.SetCenter(_points(target)[:3, head].mean(1).tolist())
    mask = sitk.GetImageFromArray(head.T.astype(np.uint8))
    mask.CopyInformation(target)
    seen = sitk.GetImageFromArray(_sees(moving, volume).T.astype(np.uint8))
    seen.CopyInformation(moving)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricMovingMask(seen)
    method.SetMetricSamplingStrategy(method.RANDOM)
    share = min(1.0, _SAMPLES / max(1, int(head.sum())))
    method.SetMetricSamplingPercentagePerLevel([min(1.0, 4 * share), share], _SEED)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInterpolator(sitk.sitkLinear)
    # Powell's line searches go on along the narrow valley where a gradient step zigzags and stops 1 to 3 mm short.
    method.SetOptimizerAsPowell(
        numberOfIterations=20, maximumLineIterations=20, stepLength=1.0, stepTolerance=0.05, valueTolerance=1e-5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    with contextlib.suppress(RuntimeError):  # too small or too empty to be registered: the affines stand
        method.Execute(target, moving)
        return start
    return sitk.Euler3DTransform()


def _matrix(transform: sitk.Euler3DTransform) -> np.ndarray:
    rotation, centre = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - rotation @ centre
    return matrix
