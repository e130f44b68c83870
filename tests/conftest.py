"""What all tests share: one torch thread, real data where there are some, and small NIfTI files of any geometry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

NiftiFile = Callable[..., Path]
BidsErrors = Callable[[Path], list[dict]]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real scans: AMODAL_DATA, or `../shared/data` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("AMODAL_DATA", beside))
    if not root.is_dir():
        pytest.skip(f"no real scans at {root}: set AMODAL_DATA to the folder that holds them")
    return root


@pytest.fixture(scope="session")
def bids_errors() -> BidsErrors:
    """`bids_errors(folder)`: what the validator of BIDS, offline by the schema it came with, calls errors."""
    beside = str(Path(sys.executable).parent)
    validator = shutil.which("bids-validator-deno", path=beside) or shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("bids-validator-deno is not installed: pip install 'amodal[dev]'")

    def errors(folder: Path) -> list[dict]:
        run = subprocess.run([validator, str(folder), "--json"], capture_output=True, text=True, timeout=120)
        issues = json.loads(run.stdout)["issues"]["issues"]
        found = [issue for issue in issues if issue.get("severity") == "error"]
        assert bool(found) == bool(run.returncode)
        return found

    return errors


@pytest.fixture
def nifti_file(tmp_path: Path) -> NiftiFile:
    """`nifti_file(name, **options)` writes a NIfTI file into the test's own folder (see `write_nifti`)."""

    def make(name: str = "image.nii.gz", **options) -> Path:
        path = tmp_path / name
        write_nifti(path, **options)
        return path

    return make


def write_nifti(
    path: Path,
    shape: tuple[int, ...] = (7, 9, 5),
    affine: np.ndarray | None = None,
    data: np.ndarray | None = None,
    sform: int = 1,
    qform: int = 1,
    dtype: type | np.dtype | str = np.float32,
    slope: tuple[float, float] | None = None,
    big: bool = False,
    edit: Callable[[nib.Nifti1Header], None] | None = None,
    seed: int = 0,
) -> None:
    """Write a NIfTI file with any header: `data` are the voxels as stored, `edit` changes the header last."""
    affine = np.eye(4) if affine is None else affine
    kind = np.dtype(dtype)
    if data is None:
        data = np.random.default_rng(seed).integers(1, 200, shape).astype(kind)
    header = nib.Nifti1Header(endianness=">" if big else "<")
    header.set_data_shape(data.shape)
    header.set_data_dtype(kind)
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code=qform)
    header.set_sform(affine, code=sform)
    if not sform:
        header["srow_x"] = header["srow_y"] = header["srow_z"] = 0
    header["scl_slope"], header["scl_inter"] = slope or (1, 0)
    header["vox_offset"] = 352
    if edit is not None:
        edit(header)
    content = header.binaryblock + b"\0\0\0\0" + data.astype(kind.newbyteorder(">" if big else "<")).tobytes(order="F")
    with nib.openers.Opener(path, "wb") as file:
        file.write(content)
