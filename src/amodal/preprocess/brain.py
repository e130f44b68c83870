"""Where the brain is: the MNI152 brain, laid onto a head by an affine registration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..core.errors import InputError
from ..data.volume import Volume

_CENTRE = (0.0, 18.0, 20.0)  # of the MNI152 brain, LPS mm
_DEPTHS, _SCALES = (60.0, 75.0, 90.0), (0.95, 0.83)  # crown to the brain's centre (mm), template to subject: starts


def brain_mask(t1w: Volume) -> np.ndarray:
    """The brain of a T1w head, bool [X, Y, Z]. Mattes mutual information; several starts, as heads lie anywhere in the
    field of view. Good to a few millimetres: for training on stripped heads, not for volumetry."""
    template = _template()
    brain = template > 0
    near = sitk.BinaryDilate(brain, [4] * 3)  # the dark rim and the skull say where the brain ends
    head = _image(t1w)
    starts = [_start(head, depth, scale) for depth in _DEPTHS for scale in _SCALES]
    fits = [(_register(template, near, head, s, [6], [3.0], 4.0, 60, 0.2), i) for i, s in enumerate(starts)]
    similarity = starts[min(fits)[1]]
    _register(template, near, head, similarity, [3], [1.5], 1.0, 100, 0.1)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(similarity.GetMatrix())
    affine.SetTranslation(similarity.GetTranslation())
    affine.SetCenter(similarity.GetCenter())
    _register(template, near, head, affine, [3, 2], [1.5, 1.0], 1.0, 150, 0.1)
    mask = sitk.Resample(sitk.Cast(brain, sitk.sitkUInt8), head, affine.GetInverse(), sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(mask).transpose(2, 1, 0).astype(bool)


def _image(volume: Volume) -> sitk.Image:
    """A volume as ITK sees it: LPS millimetres, axes with their directions."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    lps = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3]
    image.SetSpacing(volume.spacing)
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / np.array(volume.spacing)).ravel().tolist())
    return image


def _template() -> sitk.Image:
    try:
        import nilearn
    except ImportError as error:
        what = 'the MNI152 template comes with nilearn; install it: pip install "amodal[phantom]".'
        raise InputError(what) from error
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    return sitk.ReadImage(str(Path(nilearn.__file__).parent / "datasets" / "data" / name), sitk.sitkFloat32)


def _start(head: sitk.Image, depth: float, scale: float) -> sitk.Similarity3DTransform:
    """The template's centre put `depth` mm below the crown."""
    data = sitk.GetArrayFromImage(head)
    z, y, x = np.nonzero(data > data.mean())
    crown = np.percentile(z, 99.5) - depth / head.GetSpacing()[2]
    place = head.TransformContinuousIndexToPhysicalPoint([float(np.median(x)), float(np.median(y)), float(crown)])
    start = sitk.Similarity3DTransform()
    start.SetCenter(_CENTRE)
    start.SetTranslation([float(p - c) for p, c in zip(place, _CENTRE)])
    start.SetScale(scale)
    return start


def _register(
    template: sitk.Image, near: sitk.Image, head: sitk.Image, transform: sitk.Transform, shrink: list[int],
    smooth: list[float], step: float, iterations: int, share: float,
) -> float:  # fmt: skip
    """Fit `transform` in place; the metric reached (lower is better)."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(near)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(share)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(smooth)
    method.SetOptimizerAsRegularStepGradientDescent(step, 1e-3, iterations, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    method.Execute(template, head)
    return method.GetMetricValue()
