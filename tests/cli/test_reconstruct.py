"""amodal reconstruct and complete --measured: k-space in, images and a report out."""

import json

import nibabel as nib
import numpy as np
import pytest

from amodal.cli.app import main
from amodal.data.phantom import PhantomConfig, make_cohort

pytest.importorskip("sigpy", reason="the extra kspace is not installed")
SIZE = 64


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A virtual subject and its FLAIR as undersampled k-space of four coils; the fully sampled magnitude beside."""
    folder = tmp_path_factory.mktemp("scan")
    config = PhantomConfig(shape=(SIZE, SIZE, 8), spacing=3.0, noise=0.0, slice_thickness=0.0)
    make_cohort(folder / "bids", 1, 3, config, workers=1)
    image = nib.load(next((folder / "bids").glob("sub-*/anat/*_FLAIR.nii.gz")))
    truth = np.asarray(image.dataobj, np.float32)
    x, y = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    maps = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2)) * np.exp(1j * a * x) for a in (-1, 1) for b in (-1, 1)])
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    seen = np.fft.ifftshift(maps[None] * truth.transpose(2, 0, 1)[:, None], axes=(-2, -1))
    full = np.fft.fftshift(np.fft.fft2(seen, norm="ortho"), axes=(-2, -1))
    noise = np.random.default_rng(0).standard_normal((2, *full.shape)) * 0.005 * truth.max()
    kept = np.zeros(SIZE, bool)
    kept[::2] = kept[SIZE // 2 - 12 : SIZE // 2 + 12] = True
    np.save(folder / "FLAIR.npy", ((full + noise[0] + 1j * noise[1]) * kept).astype(np.complex64))
    return folder, truth, image.affine


def nearness(path, truth):
    made = np.asarray(nib.load(path).dataobj, np.float32)
    head = truth > 0
    return 10 * np.log10(truth.max() ** 2 / np.mean((made - truth)[head] ** 2))


def test_kspace_and_clean_images_in_an_image_out(study, tmp_path):
    folder, truth, affine = study
    out, record = tmp_path / "out", tmp_path / "run.json"
    words = [folder / "FLAIR.npy", out, "--modality", "FLAIR", "--with", folder / "bids", "--steps", "5", "--quiet"]
    assert main(["reconstruct", *map(str, words), "--report", str(record)]) == 0
    (path,) = out.glob("sub-*/anat/*_desc-synth_FLAIR.nii.gz")
    made = nib.load(path)
    assert made.shape == truth.shape and np.array_equal(made.affine, affine)
    assert bytes(made.header["descrip"]).startswith(b"SYNTHETIC")
    about = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert about["Description"].startswith("SYNTHETIC FLAIR, reconstructed")
    assert (
        0.05 < about["Synthetic"]["Residual"]["the model"] < 20 and "FLAIR k-space" in about["Synthetic"]["InputSHA256"]
    )
    assert nearness(path, truth) > 20  # half of k-space is there
    (page,) = out.glob("sub-*.html")
    text = page.read_text()
    assert all(
        name in text for name in ("CG-SENSE", "L1-wavelet", "zero-filled", "times the noise", "k-space of FLAIR")
    )
    assert json.loads(record.read_text())["subjects"][0]["status"] == "done"


def test_samples_kept_back_say_how_far_the_model_is_trusted(study, tmp_path):
    folder, truth, _ = study
    out = tmp_path / "out"
    words = [folder / "FLAIR.npy", out, "--modality", "FLAIR", "--with", folder / "bids", "--steps", "3", "--validate"]
    assert main(["reconstruct", *map(str, words), "--quiet"]) == 0
    (path,) = out.glob("sub-*/anat/*_desc-synth_FLAIR.nii.gz")
    kept = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["Synthetic"]["KeptBack"]
    assert min(kept["L1Wavelet"], kept["Model"]) > 0 and 0 < kept["Error"] < 1.1 * kept["L1Wavelet"]
    assert nearness(path, truth) > 20
    (page,) = out.glob("sub-*.html")
    assert "samples kept back" in page.read_text()


def test_complete_takes_kspace_beside_images(study, tmp_path):
    folder, truth, _ = study
    out = tmp_path / "out"
    words = [folder / "bids", out, "--measured", f"FLAIR={folder / 'FLAIR.npy'}", "--missing", "T2w", "--steps", "3"]
    assert main(["complete", *map(str, words), "--quiet"]) == 0
    assert len(list(out.glob("sub-*/anat/*_desc-synth_*.nii.gz"))) == 2
    (path,) = out.glob("sub-*/anat/*_desc-synth_FLAIR.nii.gz")
    assert nearness(path, truth) > 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.npy", "--modality", "FLAIR"], "no such file"),
        (["FLAIR.npy", "--modality", "CT"], "does not know CT"),
        (["whole.npy", "--modality", "FLAIR"], "must be complex"),
        (["nan.npy", "--modality", "FLAIR"], "NaN"),
        (["nothing.npy", "--modality", "FLAIR"], "nothing"),
        (["FLAIR.npy", "--modality", "FLAIR", "--voxel", "1", "0", "1"], "above 0"),
    ],
)
def test_what_cannot_be(study, tmp_path, capsys, words, said):
    folder, *_ = study
    some = np.load(folder / "FLAIR.npy", allow_pickle=False)[:1]
    np.save(folder / "whole.npy", some.real.astype(np.int16))
    np.save(folder / "nan.npy", np.where(np.arange(SIZE) == 32, np.nan, some).astype(np.complex64))
    np.save(folder / "nothing.npy", 0 * some)
    out = tmp_path / "out"
    assert main(["reconstruct", str(folder / words[0]), str(out), *words[1:]]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1
    assert not list(out.rglob("*.nii.gz"))
