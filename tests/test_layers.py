"""The house keeps its shape: imports point down, files stay short, and nothing dangerous is called."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "amodal"
FILES = sorted(SRC.rglob("*.py"))
LONGEST = 400

MAY_IMPORT = {  # layer -> the layers it may use besides itself
    "core": set(),
    "data": {"core"},
    "nn": {"core"},
    "diffusion": {"core"},
    "metrics": {"core"},
    "train": {"core"},
    "physics": {"core", "diffusion"},
    "codecs": {"core", "nn"},
    "methods": {"core", "nn", "diffusion", "physics", "codecs"},
    "preprocess": {"core", "data"},
    "model": {"core", "data", "methods", "nn", "physics"},  # nn: layout of weights, at load; physics: coils, operators
    "report": {"core", "data", "metrics"},
    "evaluate": {"core", "data", "metrics", "model", "report"},
    "": {"core", "data", "preprocess", "model"},  # amodal/__init__.py, the public surface
}
MAY_IMPORT["cli"] = set(MAY_IMPORT) | {"benchmark"}

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load"}


def module_of(file: Path) -> tuple[str, ...]:
    """("data", "nifti") for src/amodal/data/nifti.py; a package's __init__ is the package, () for amodal itself."""
    parts = file.relative_to(SRC).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(tree: ast.AST, file: Path) -> list[tuple[str, ...]]:
    """The modules of ours that a file imports, as paths below amodal; relative imports are resolved."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file)[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [tuple(n[1:]) for n in names if n[0] == "amodal"]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = package[: len(package) - (node.level - 1)]
                found += _targets((*base, *module), node.names)
            elif module and module[0] == "amodal":
                found += _targets(tuple(module[1:]), node.names)
    return found


def _targets(base: tuple[str, ...], names: list[ast.alias]) -> list[tuple[str, ...]]:
    if base:
        return [(*base, alias.name) for alias in names]
    return [(alias.name,) for alias in names if alias.name != "__version__"]  # the version is everyone's


def layer(module: tuple[str, ...]) -> str:
    return module[0] if module else ""


def wrong_arrows(source: str, file: Path) -> list[str]:
    here = module_of(file)
    out = []
    for target in imports(ast.parse(source), file):
        if layer(target) != layer(here) and layer(target) not in MAY_IMPORT[layer(here)]:
            out.append(f"{'.'.join(here)} imports {'.'.join(target)}")
        siblings = layer(here) == "methods" == layer(target) and len(here) > 1 and len(target) > 1
        if siblings and here[1] != target[1] and (SRC / "methods" / target[1]).is_dir():
            out.append(f"{'.'.join(here)} imports its sibling {'.'.join(target)}")
    return out


def dangers(source: str) -> list[str]:
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            out += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            out += [called] if called in FORBIDDEN_CALLS else []
            out += [f"{called}(shell=True)"] if keywords.get("shell", "False") != "False" else []
            if called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                out.append(f"{called} without allow_pickle=False")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                out.append(f"{called} without weights_only=True")
    return out


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SRC)))
def test_file(file):
    source = file.read_text()
    assert layer(module_of(file)) in MAY_IMPORT, "a new layer: write it into ARCHITECTURE and into this table"
    assert wrong_arrows(source, file) == []
    assert dangers(source) == []
    assert len(source.splitlines()) <= LONGEST


def test_there_is_something_to_look_at():
    assert len(FILES) > 10


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/x.py", "from ..data import nifti"),
        ("data/x.py", "from .. import nn"),
        ("nn/x.py", "import amodal.train.engine"),
        ("methods/any2all/x.py", "def f():\n    from ...data.volume import Study"),
        ("model.py", "from .report import page"),
        ("evaluate.py", "from .cli import app"),
        ("data/phantom/x.py", "from ...preprocess import align"),
        ("methods/copedit/x.py", "from ..any2all import system"),
    ],
)
def test_a_wrong_arrow_is_seen(file, source):
    assert wrong_arrows(source, SRC / file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/phantom/x.py", "from ..volume import Study\nfrom ...core.errors import InputError\nfrom . import warp"),
        ("report/page.py", "from .. import __version__\nfrom ..data.volume import Study"),
        ("methods/__init__.py", "from . import any2all"),
        ("methods/any2all/system.py", "from ...nn.unet import UNet\nfrom .config import Config"),
    ],
)
def test_a_right_arrow_is_allowed(file, source):
    assert wrong_arrows(source, SRC / file) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "os.system('ls')",
        "subprocess.run(c, shell=True)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_a_danger_is_seen(source):
    assert dangers(source)


def test_what_only_looks_dangerous_is_allowed():
    safe = "np.load(p, allow_pickle=False)\ntorch.load(p, weights_only=True)\nsubprocess.run(['ls'])"
    assert dangers(f"net.eval()\n{safe}\njson.load(f)") == []
