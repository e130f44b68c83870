"""The papers' protocols: frozen, refused where the data do not fit, run small on other data under another id."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from amodal.core.contract import Grid
from amodal.core.errors import InputError
from amodal.data.intensity import Window
from amodal.data.volume import Source, Study, Volume
from amodal.evaluate import PROTOCOLS, TRUST, Plan, evaluate
from amodal.evaluate.protocols import BRATS, IXI, Split, about, chosen, named, published
from amodal.evaluate.results import next_to
from amodal.evaluate.space import FIT, KEEP, Space
from amodal.metrics.statistics import Score

IMAGES = [p for p in PROTOCOLS.values() if isinstance(p.patterns, tuple) or p.patterns in ("all", "each")]


def source(k, names, folder=None):
    files = {n: (folder / f"sub-{k}_{n}.nii.gz") for n in names} if folder else dict.fromkeys(names)
    return Source(f"sub-{k:04d}", None, files)


def study(label, names, shape=(60, 50, 40), spacing=(1.0, 1.0, 1.0)):
    """A ball whose contrasts are powers of one smooth function."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    r = sum(a**2 for a in axes)
    base = np.where(r < 0.8, 1.2 - r, 0)
    volumes = {n: Volume(100 * base ** (1 + 0.2 * k), np.diag([*spacing, 1.0])) for k, n in enumerate(names)}
    return Study(label, volumes)


class Mean:
    """Makes everything as the mean of what it is given."""

    grid, name, id, sha256, precision, card = Grid(), "mean", "mean", "ab12", "fp32", {}
    method = SimpleNamespace(steps_for=lambda samples: 1)

    def __init__(self, modalities):
        self.modalities = modalities

    def window(self, name, volume):
        return Window.of(volume.data)

    def complete(self, study, missing, samples=1, seed=0, steps=None):
        given = [(self.window(n, study[n]).enter(study[n].data) + 1) / 2 for n in study]
        return SimpleNamespace(scaled=dict.fromkeys(missing, np.mean(given, axis=0)))


def test_every_protocol_of_the_issue_is_there():
    assert set(PROTOCOLS) == {"copedit-brats", "copedit-ixi", "copedit-cardiac", "apt-brats", "apt-adni",
                              "cola-brats2018", "cola-ixi", "any2all", "wfdm-brainscape"}  # fmt: skip
    assert all(p.assumed and p.source and p.split for p in PROTOCOLS.values())
    with pytest.raises(InputError, match="apt-brats"):
        named("apt")


@pytest.mark.parametrize(
    ("name", "pattern", "modality", "metric", "mean", "sd"),
    [
        ("copedit-brats", "1 missing", "all", "psnr", 28.26, 1.24),
        ("copedit-brats", "3 missing", "all", "fvd", 323.19, None),
        ("copedit-ixi", "2 missing", "all", "ssim", 0.721, 0.020),
        ("copedit-cardiac", "24 slices", "cine", "psnr", 25.39, 0.86),
        ("apt-brats", "T1Gd", "T1Gd", "psnr", 24.54, None),
        ("apt-brats", "T1w+T2w+FLAIR", "FLAIR", "psnr", 22.25, None),  # T1Gd alone is given
        ("apt-brats", "T1Gd+FLAIR", "FLAIR", "ssim", 0.923, None),
        ("apt-adni", "T1w+T2w", "T1w", "psnr", 17.04, None),
        ("cola-brats2018", "FLAIR", "FLAIR", "ssim", 0.9189, 0.0311),
        ("cola-ixi", "PDw", "PDw", "psnr", 32.24, 2.95),
        ("wfdm-brainscape", "generate", "all", "fid", 0.00404259, None),
        ("wfdm-brainscape", "generate", "T1Gd", "mmd", 0.289871, None),
    ],
)
def test_numbers_of_the_papers(name, pattern, modality, metric, mean, sd):
    found = [p for p in published(name) if (p.pattern, p.modality, p.metric) == (pattern, modality, metric)]
    assert [(p.mean, p.sd) for p in found] == [(mean, sd)]


def test_numbers_fit_their_protocols():
    for name, protocol in PROTOCOLS.items():
        for p in published(name):
            assert p.metric in (*protocol.ruler.metrics, *protocol.more)
            assert p.modality in (*protocol.modalities, "all")
            hidden = set(p.pattern.split("+"))
            if protocol.pool == "pattern" and protocol.patterns in ("all", "each"):
                assert hidden < set(protocol.modalities) and p.modality in hidden
    assert len(published("apt-brats")) == 2 * (4 + 4 * 3 + 6 * 2)
    assert published("any2all") == ()


def test_a_split_depends_on_names_alone():
    labels = [f"sub-{k}" for k in range(100)]
    split = Split(100, 20)
    assert split.tested(labels) == split.tested(labels[::-1])
    assert len(set(split.tested(labels))) == 20
    assert set(split.tested(labels)) != set(Split(100, 20, seed=1).tested(labels))
    kept = [s for s in split.order(labels) if s in labels[:50]]
    assert kept == split.order(labels[:50])  # leaving some out does not reorder the others
    assert len(Split(100, 5, take=40).tested(labels)) == 5
    assert len(Split(100, 0).tested(labels)) == 100


def test_data_that_do_not_fit_are_refused():
    brats = PROTOCOLS["cola-brats2018"]
    with pytest.raises(InputError, match="needs subjects with T1w, T1Gd, T2w, FLAIR, these have at most T1w, T2w"):
        chosen(brats, [source(k, ("T1w", "T2w")) for k in range(300)])
    with pytest.raises(InputError, match="is of 285 subjects and 284 here have"):
        chosen(brats, [source(k, BRATS) for k in range(284)] + [source(999, ("T1w",))])
    exact, tested = chosen(brats, [source(k, BRATS) for k in range(285)])
    assert (exact.id, len(tested)) == ("cola-brats2018 v1", 55)
    with pytest.raises(InputError, match="60 x 50 x 40 voxels and cola-brats2018 is of data with 240 x 240 x 155"):
        exact.prepare(study("sub-1", BRATS))


def test_a_run_on_other_data_says_so_in_its_id():
    sources = [source(k, IXI) for k in range(5)]
    small, tested = chosen(PROTOCOLS["apt-adni"], sources, 2, other_data=True)
    assert (small.id, len(tested)) == ("apt-adni v1; other data; 2 subjects", 2)
    assert chosen(PROTOCOLS["apt-adni"], sources, 2, other_data=True)[1] == tested
    whole, tested = chosen(PROTOCOLS["apt-adni"], sources, None, other_data=True)
    assert (whole.id, len(tested)) == ("apt-adni v1; other data", 5)
    assert about(small)["id"] != about(whole)["id"]


@pytest.mark.parametrize(
    ("name", "shape", "spacing", "size", "after"),
    [
        ("copedit-brats", (240, 240, 155), (1, 1, 1), (192, 192, 64), (1, 1, 90 / 64)),
        ("copedit-ixi", (256, 256, 130), (0.9375, 0.9375, 1.25), (192, 192, 64), (0.9375, 0.9375, 1.5625)),
        ("copedit-cardiac", (150, 210, 10), (1.8, 1.8, 10), (192, 192, 32), (1.8, 1.8, 10 * 10 / 32)),
        ("apt-brats", (240, 240, 155), (1, 1, 1), (256, 256, 155), (0.9375, 0.9375, 1)),
        ("cola-brats2018", (240, 240, 155), (1, 1, 1), (224, 224, 155), (1, 1, 1)),
        ("wfdm-brainscape", (240, 240, 155), (1, 1, 1), (192, 224, 160), (1, 1, 1)),
    ],
)
def test_spaces(name, shape, spacing, size, after):
    reference = Volume(np.zeros(shape, np.float32), np.diag([*spacing, 1.0]))
    grid = PROTOCOLS[name].space.grid(reference)
    from amodal.data.frame import Frame

    frame = Frame.of(reference, grid)
    assert frame.shape == size
    assert frame.spacing == pytest.approx(after, rel=1e-5)


def test_a_space_that_only_crops_moves_no_voxel():
    whole = study("a", IXI)
    inside = Space((40, 40, 0), (KEEP,) * 3).enter(whole)
    assert (inside["T1w"].data == whole["T1w"].data[10:50, 5:45]).all()
    assert inside["T1w"].affine[:3, 3] == pytest.approx([10, 5, 0])
    assert Space().enter(whole) is whole
    squeezed = Space((30, 25, 20), (FIT,) * 3).enter(whole)
    assert squeezed["T1w"].shape == (30, 25, 20)
    assert squeezed["T1w"].spacing == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("protocol", IMAGES, ids=lambda p: p.name)
def test_protocols_run_small_on_other_data(protocol, tmp_path):
    sources = [source(k, protocol.modalities, tmp_path) for k in range(2)]
    for s in sources:
        for path in s.files.values():
            path.write_bytes(b"data")
    small, tested = chosen(protocol, sources, 1, other_data=True)
    small = replace(small, space=replace(small.space, size=tuple(min(n, 48) for n in small.space.size)))
    table = evaluate(
        tested,
        Mean(protocol.modalities),
        tmp_path / "out",
        prepare=lambda s: study(s.label, protocol.modalities),
        plan=Plan(protocol=small),
    )
    assert not table.failed
    assert {s.metric for s in table.scores} == set(protocol.ruler.metrics)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["protocol"]["id"] == f"{protocol.name} v1; other data; 1 subjects"
    beside = [b for b in table.beside if b.metric in protocol.ruler.metrics]
    assert all(b.mine is not None and b.n == 1 for b in beside)
    assert len(table.beside) == len(published(protocol.name))
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("Beside the paper" in page) == bool(table.beside)


def test_what_a_protocol_hides_is_not_asked():
    with pytest.raises(InputError, match="says itself what is hidden"):
        evaluate([], Mean(IXI), "x", prepare=None, patterns="each", plan=Plan(protocol=PROTOCOLS["apt-adni"]))
    with pytest.raises(InputError, match="needs a model of T1w, T2w, PDw and this one knows T1w"):
        evaluate([], Mean(("T1w",)), "x", prepare=None, plan=Plan(protocol=PROTOCOLS["apt-adni"]))


def test_numbers_are_pooled_as_the_paper_does():
    """Two subjects, one hidden modality each time or two: means over patterns, then over subjects."""
    rows = [("a", "T1w", "T1w", 20), ("a", "T2w", "T2w", 30), ("b", "T1w", "T1w", 40), ("b", "PDw", "PDw", 10)]
    rows += [("a", "T1w+T2w", "T1w", 99)]
    scores = [Score(s, p, m, "psnr", "model", v) for s, p, m, v in rows]
    found = {b.pattern: b for b in next_to(PROTOCOLS["copedit-ixi"], scores) if b.metric == "psnr"}
    assert (found["1 missing"].mine, found["1 missing"].n) == (25, 2)
    assert (found["2 missing"].mine, found["2 missing"].n) == (99, 1)
    assert found["1 missing"].theirs == 24.34
    assert next_to(TRUST, scores) == ()


def test_percentiles_are_those_of_the_whole_truth():
    data = np.arange(1000.0).reshape(10, 10, 10)
    assert PROTOCOLS["copedit-brats"].ruler.bounds("T1w", data) == pytest.approx((4.995, 994.005))
    assert PROTOCOLS["apt-brats"].ruler.bounds("T1w", data) == (0, 999)
    with pytest.raises(InputError, match="nearly constant"):
        PROTOCOLS["apt-brats"].ruler.bounds("T1w", np.ones((3, 3, 3)))
