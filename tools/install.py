#!/usr/bin/env python3
"""Install amodal and an extra into .venv: `python3 tools/install.py phantom|dev`. Started by any Python 3, uses 3.11+.

Where there is no GPU it takes a CPU build of torch if one can be had, instead of gigabytes of CUDA.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)
COVERS = {"phantom": ("phantom", "dev"), "dev": ("dev",)}  # an extra is there if one that contains it is there

ANY_TORCH = ["torch>=2.6"]
CPU_TORCH = [  # tried in order
    ["--only-binary=:all:", "torch==2.13.0+cpu"],  # where pip's own configuration offers a CPU build
    ["--index-url", "https://download.pytorch.org/whl/cpu", "--timeout", "10", "--retries", "0", *ANY_TORCH],
    ANY_TORCH,
]


def main(extra):
    wanted = fingerprint()
    if any(stamp(name).is_file() and stamp(name).read_text() == wanted for name in COVERS[extra]):
        return
    if not PYTHON.exists():
        say("creating .venv")
        complaint = "python could not create .venv (on Debian and Ubuntu: apt install python3-venv)"
        run([suitable_python(), "-m", "venv", str(VENV)], complaint)
    if not run([str(PYTHON), "-c", "import importlib.metadata as m; m.version('torch')"]):
        install_torch()
    say(f"installing amodal[{extra}]")
    pip(["-e", f"{ROOT}[{extra}]"], last=True)
    stamp(extra).write_text(wanted)


def install_torch():
    cpu = sys.platform == "linux" and not has_gpu()  # elsewhere the plain package is the right one
    say("installing torch, no GPU found: a CPU build if there is one" if cpu else "installing torch")
    choices = CPU_TORCH if cpu else [ANY_TORCH]
    for arguments in choices:
        if pip(arguments, last=arguments is choices[-1]):
            return


def has_gpu():
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def suitable_python():
    if sys.version_info[:2] >= OLDEST:
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11", "python3.14"):
        if shutil.which(name):
            return shutil.which(name)
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: found Python {found}; amodal needs 3.11 or newer: install one and run make again.")


def pip(arguments, last):
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    return run(command, "pip could not install " + arguments[-1] if last else None)


def run(command, complaint=None):
    """Run quietly; on failure show what was said and stop with `complaint`, or return False where there is none."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode and complaint:
        sys.exit(f"{done.stdout}\nerror: {complaint}.")
    return done.returncode == 0


def stamp(extra):
    return VENV / f".amodal-{extra}"


def fingerprint():
    """Changes when the requirements do, or when the checkout has moved (the install is editable)."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()


def say(text):
    print(text + " ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COVERS:
        sys.exit("usage: python3 tools/install.py " + "|".join(COVERS))
    main(sys.argv[1])
