"""C code of ours, compiled for the processor it runs on: in a second, once, and kept.

The machine's own C compiler is asked (`cc`, gcc or clang; Linux). Where there is none, or it fails, or AMODAL_NATIVE=0,
nothing is said and torch does the same work in two to three times the time. Compiled files lie in the user's cache
folder (XDG_CACHE_HOME, else ~/.cache) under a hash of source, compiler and processor; only the user may write there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = "-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp"


@functools.cache
def library(name: str, half: bool, before: str = "") -> ctypes.CDLL | None:
    """`name`.c of this folder, behind vectors.c and what is to stand `before` it; None where it cannot be had."""
    program = compiler()
    if program is None:
        return None
    vectors, own = ((Path(__file__).parent / f"{part}.c").read_text() for part in ("vectors", name))
    try:
        return ctypes.CDLL(str(compiled(f"#define HALF {int(half)}\n{vectors}\n{before}\n{own}", program)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # (no home, a full disk, a compiler that cannot)
        return None


@functools.cache
def compiler() -> str | None:
    """The path of a C compiler that may be used."""
    if platform.system() != "Linux" or os.environ.get("AMODAL_NATIVE") == "0":
        return None
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


@functools.cache
def machine(program: str) -> str:
    """What a compiled file depends on besides its source."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    info = Path("/proc/cpuinfo")
    about = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    processor = [line for line in about if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([*FLAGS, said, platform.machine(), *processor])


def folder() -> Path:
    """Where compiled files lie; only the user may write there (PermissionError otherwise)."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amodal" / "native"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = place.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{place} belongs to somebody else, or others may write there.")
    return place


def compiled(text: str, program: str) -> Path:
    """The shared library of this C, made if it is not there."""
    place, key = folder(), hashlib.sha256((text + machine(program)).encode()).hexdigest()[:32]
    library = place / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=place) as own:
            files = [Path(own) / name for name in ("code.c", "code.o", "code.so")]
            files[0].write_text(text)
            # OpenMP's functions are found in the process, where torch has brought its own: two would fight for cores
            compile_ = (*FLAGS, "-c", files[0], "-o", files[1])
            link = ("-shared", "-Wl,-z,now", files[1], "-o", files[2], "-lm")
            for command in (compile_, link):
                subprocess.run([program, *command], check=True, capture_output=True, timeout=120)
            files[2].replace(library)
    return library
