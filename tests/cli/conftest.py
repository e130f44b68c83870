"""A tiny cohort and a tiny model trained on it for a few steps, made once, by the commands themselves."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amodal.cli import main

TINY = ["--preset", "tiny", "--steps", "3", "--batch", "2", "--crop", "32", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "raw"
    assert main(["phantom", str(out), "-n", "3", "--size", "32x32x12", "--spacing", "5", "--workers", "1", "-q"]) == 0
    return out


@pytest.fixture(scope="session")
def model(cohort, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    assert main(["train", "any2all", str(cohort), "--out", str(out), *TINY, "--set", "steps=2", "-q"]) == 0
    return out


@pytest.fixture
def study(cohort, tmp_path) -> Path:
    """A copy of one subject that lacks its FLAIR: to be damaged at will."""
    return _copy(cohort, tmp_path, ["sub-001"])


@pytest.fixture
def dataset(cohort, tmp_path) -> Path:
    """A copy of the cohort of which all subjects lack FLAIR."""
    return _copy(cohort, tmp_path, ["sub-001", "sub-002", "sub-003"])


def _copy(cohort: Path, folder: Path, subjects: list[str]) -> Path:
    out = folder / "raw"
    out.mkdir()
    shutil.copy(cohort / "dataset_description.json", out)
    for subject in subjects:
        shutil.copytree(cohort / subject, out / subject)
    for path in out.rglob("*FLAIR*"):
        path.unlink()
    return out


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command line as a user would: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call
