"""amodal inspect: what is there, what is missing, what can be made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import AmodalError, InputError
from ..core.modality import MODALITIES
from . import console, options

if TYPE_CHECKING:
    from ..data.volume import Source


def inspect(
    path: Annotated[Path, typer.Argument(help="A NIfTI file, a study, a dataset, or a model's folder.")],
    as_json: options.AsJson = False,
    model: options.ModelName = "default",
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Say what is there, what is missing, and what could be made."""
    from .. import model as models

    if not path.exists() and str(path) not in models.SHIPPED:
        raise InputError(f"{path}: no such file or folder; check the path.")
    if str(path) in models.SHIPPED or models.is_model(path):
        found, show = _model(str(path)), _show_model
    elif path.is_dir():
        found, show = _dataset(path, model), _show_dataset
    else:
        found, show = {"kind": "file", **_file(path)}, _show_file
    if perceives(model):
        found["perceived"] = _perceived(path, model)
    if as_json:
        print(json.dumps(found, indent=2, default=str))
    else:
        show(found, quiet)
        _show_perceived(found.get("perceived", []), quiet)
    return 1 if found.get("problems") else 0


def _file(path: Path) -> dict[str, Any]:
    """Where a file lies and what it holds; it is read whole, so that damage shows. InputError if it is no good."""
    from ..data import nifti

    volume = nifti.read(path)
    header = volume.header
    assert header is not None
    return {
        "path": str(path),
        "shape": list(volume.shape),
        "spacing": [round(s, 4) for s in volume.spacing],
        "orientation": volume.orientation,
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
        "type": str(header.get_data_dtype()),
        "range": [round(float(volume.data.min()), 4), round(float(volume.data.max()), 4)],
        "remarks": list(nifti.remarks(volume)),
    }


def _dataset(path: Path, model: str) -> dict[str, Any]:
    from ..data import layouts

    sources = layouts.find(path)
    known = _known(model)
    studies = [_study(source, known) for source in sources]
    problems = [p for study in studies for p in study["problems"]]
    kind = "study" if len(studies) == 1 else "dataset"
    return {"kind": kind, "path": str(path), "layout": sources[0].layout, "studies": studies, "problems": problems}


def _study(source: Source, known: Sequence[str]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    problems = [source.problem] if source.problem else []
    for name, path in source.files.items():
        try:
            files[name] = _file(path)
        except AmodalError as error:
            files[name] = {"path": str(path), "error": str(error)}
            problems.append(str(error))
    grids = {(*f["shape"], *f["spacing"], f["orientation"]) for f in files.values() if "error" not in f}
    usable = any(name in known for name in files)
    return {
        "subject": source.label,
        "files": files,
        "one_grid": len(grids) <= 1,
        "can_be_made": [name for name in known if name not in files] if usable else [],
        "problems": problems,
    }


def _known(model: str) -> tuple[str, ...]:
    """What the model can make; nothing where there is no such model, which is no reason not to look at data."""
    from .. import model as models

    try:
        return tuple(models.describe(model)["modalities"])
    except (AmodalError, OSError):
        return ()


def _model(where: str) -> dict[str, Any]:
    from .. import model as models

    return {"kind": "model", "path": where, **models.describe(where)}


def perceives(model: str) -> bool:
    """Whether a model can say what it sees; nothing is loaded for that."""
    from .. import model as models

    try:
        return models.describe(model)["method"] in models.PERCEIVING
    except (AmodalError, OSError):
        return False


def _perceived(path: Path, name: str) -> list[dict[str, Any]]:
    """What a model sees in a stack, or in each study of a dataset, without being told."""
    from .. import model as models
    from ..data import layouts, nifti
    from ..preprocess.align import prepare

    if models.is_model(path) or str(path) in models.SHIPPED:
        return []
    model = models.load(name)
    if path.is_file():
        return [vars(models.perceive_stack(model, nifti.read(path, gaps=True)))]
    out = []
    for source in layouts.find(path):
        try:
            out.append(vars(models.perceive(model, prepare(source))))
        except AmodalError as error:
            out.append({"subject": source.label, "error": str(error)})
    return out


def _show_perceived(found: Sequence[Mapping[str, Any]], quiet: bool) -> None:
    for one in found:
        console.say(f"{one['subject']}: {one.get('error') or one['words']}", quiet)
        for warning in one.get("warnings", ()):
            console.say(f"warning: {one['subject']}: {warning}", quiet)


def _show_file(found: Mapping[str, Any], quiet: bool) -> None:
    rows = [[key.replace("_", " "), _text(value)] for key, value in found.items() if key not in ("kind", "path")]
    console.table(found["path"], ["", ""], rows, quiet)


def _show_dataset(found: Mapping[str, Any], quiet: bool) -> None:
    studies = found["studies"]
    used = {name for study in studies for name in (*study["files"], *study["can_be_made"])}
    names = [name for name in MODALITIES if name in used]
    rows = [[study["subject"], *(_cell(study, name) for name in names)] for study in studies]
    console.table(f"{found['path']} ({found['layout']})", ["subject", *names], rows, quiet)
    different = sum(not study["one_grid"] for study in studies)
    if different:
        console.say(f"{different} of {len(studies)} studies lie on several grids and will be brought to one.", quiet)
    for problem in found["problems"]:
        console.say(f"problem: {problem}", quiet)


def _cell(study: Mapping[str, Any], name: str) -> console.Cell:
    file = study["files"].get(name)
    if file is None:
        return ("missing, can be made", "yellow") if name in study["can_be_made"] else "-"
    if "error" in file:
        return "damaged", "red"
    shape, spacing = ("x".join(f"{v:g}" for v in file[key]) for key in ("shape", "spacing"))
    return f"{shape}\n{spacing} mm\n{file['orientation']}, s{file['sform_code']} q{file['qform_code']}"


def _show_model(found: Mapping[str, Any], quiet: bool) -> None:
    card = {key: value for key, value in found["card"].items() if key != "baselines"}
    shown = {key: found[key] for key in ("method", "modalities", "grid", "windows")} | card
    shown |= {"sha256": found["sha256"], "folder": found["folder"], "format": found["format"]}
    console.table(
        found["path"], ["", ""], [[key.replace("_", " "), _text(value)] for key, value in shown.items()], quiet
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
