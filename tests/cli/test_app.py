"""The frame around the commands: help, version, exit codes, errors of one sentence."""

import subprocess
import sys

import pytest

from amodal import __version__
from amodal.cli import completion
from amodal.cli.app import spread
from amodal.core.errors import AmodalError

COMMANDS = ("demo", "inspect", "methods", "phantom", "train", "complete", "evaluate")


def test_help_names_every_command_and_waits_for_nothing_heavy():
    code = (
        "import sys; from amodal.cli import main; main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'scipy', 'nibabel', 'SimpleITK', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert all(f" {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and "--debug" in out and "Usage" in out


def test_version(run):
    assert run("--version") == (0, f"amodal {__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["complete"], ["methods", "--nonsense"], ["phantom", "x"], ["inspect", "a", "b"]]
)
def test_wrong_usage_is_one_sentence_and_2(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (AmodalError("the disk is full."), 1, "the disk is full."),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
        (RuntimeError("two\nlines"), 1, "two lines"),
    ],
)
def test_what_goes_wrong_later(run, monkeypatch, study, tmp_path, failure, code, says):
    def fail(job):
        raise failure

    monkeypatch.setattr(completion, "check", fail)
    found, _, err = run("complete", study, tmp_path / "out")
    assert found == code and says in err
    assert err.startswith("error: ") and err.count("\n") == 1
    _, _, err = run("complete", study, tmp_path / "out", "--debug")
    assert "Traceback" in err and says.split()[0] in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("complete in out --missing FLAIR", "complete in out --missing FLAIR"),
        ("complete in out --missing FLAIR t1ce", "complete in out --missing FLAIR --missing t1ce"),
        ("complete --missing FLAIR T1Gd in out", "complete --missing FLAIR --missing T1Gd in out"),
        ("complete --missing FLAIR in out", "complete --missing FLAIR in out"),
        ("complete --missing FLAIR --seed 1 in", "complete --missing FLAIR --seed 1 in"),
        ("train m d --set a=1 b.c=[2] --steps 3", "train m d --set a=1 --set b.c=[2] --steps 3"),
        ("train --set a=1 m d", "train --set a=1 m d"),
        ("complete in --missing", "complete in --missing"),
    ],
)
def test_flags_with_several_values(words, meant):
    assert spread(words.split()) == meant.split()
