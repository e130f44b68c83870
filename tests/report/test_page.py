"""Pages: self-contained, nothing left out, what is synthetic marked as such, and nothing of a file's name can run."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.metrics.statistics import Score
from amodal.report import figures
from amodal.report.evaluation import Evaluation, evaluation_page
from amodal.report.page import (
    Item,
    Page,
    Panel,
    flatten,
    methods_text,
    number,
    subject_page,
)

SHAPE = (28, 32, 20)


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all that was opened was closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def image(seed=0):
    head = sum(a**2 for a in np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]) < 0.8
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 1)
    return ((0.3 + 0.7 * (x - x.min()) / np.ptp(x)) * head).astype(np.float32)


def page(**changes):
    panels = (
        Panel("T1w", image(0), "acquired"),
        Panel("T2w", image(1), "acquired"),
        Panel("FLAIR", image(2), "synthetic"),
    )
    provenance = {
        "Tool": "amodal 0.1.0",
        "Method": "any2all",
        "Weights": {"Id": "default", "SHA256": "0123456789abcdef" * 4, "Licence": None},
        "Sampler": {"Name": "mds-ddim", "Steps": 25, "Seed": 0, "Samples": 8},
        "InputSHA256": {"T1w": "aa", "T2w": "bb"},
    }
    items = (Item("T1w", "acquired", SHAPE, (1, 1, 2.5), "LAS", "sub-01_T1w.nii.gz"),)
    return Page(
        **{
            "title": "sub-01",
            "panels": panels,
            "spacing": (1, 1, 2.5),
            "items": items,
            "provenance": provenance,
            **changes,
        }
    )


def written(tmp_path, **changes):
    return subject_page(tmp_path / "sub-01.html", page(**changes)).read_text(encoding="utf-8")


def self_contained(text):
    addresses = re.findall(r"url\(([^)]*)\)", text) + [
        a[k] for _, a in Tags(text).found for k in ("src", "href") if k in a
    ]
    return all(address.startswith("data:") for address in addresses) and "@import" not in text and "<script" not in text


def test_a_page_says_all_it_knows_and_needs_nothing_else(tmp_path):
    text = written(
        tmp_path,
        scores={"FLAIR": {"model": {"psnr": 24.125, "ssim": 0.8612}, "regression": {"psnr": 18.9}}},
        protocol="inside the head, data range 1",
        checks={"one grid": "pass", "voxel size": "warn: outside the range trained on"},
        notes=("T2w was resampled.",),
    )
    assert self_contained(text)
    assert not Tags(text).open
    said = ["SYNTHETIC", "FLAIR on this page was made by a model", "not a medical device", "Radiological"]
    said += ["sub-01_T1w.nii.gz", "28 × 32 × 20", "1 × 1 × 2.5", "LAS", "24.12", "0.861", "data range 1"]
    said += ["<td>this model</td>", "<td>regression</td>"]
    said += [
        "outside the range trained on",
        "T2w was resampled.",
        "0123456789abcdef" * 4,
        "arXiv:2602",
        "FLAIR: stripes",
    ]
    assert [words for words in said if words not in text] == []
    assert "{&#39;" not in text  # a table printed as Python
    assert len(text) < 3e6
    assert list(tmp_path.iterdir()) == [tmp_path / "sub-01.html"]


def test_synthetic_images_are_framed_and_acquired_ones_are_not(tmp_path):
    tiles = [a for tag, a in Tags(written(tmp_path)).found if a.get("class", "").startswith("tile ")]
    made = [a for a in tiles if "FLAIR" in a["aria-label"]]
    assert made
    assert all(a["class"] == "tile synthetic" for a in made)
    assert all(a["class"] == "tile acquired" for a in tiles if "FLAIR" not in a["aria-label"])
    assert {a["aria-label"].split(", ")[2] for a in tiles} == {"axial", "coronal", "sagittal"}


def test_aspect_is_that_of_the_millimetres(tmp_path):
    box = figures.bounds(image(0) > 0)
    mm = [(s.stop - s.start) * d for s, d in zip(box, (1, 1, 2.5))]
    tiles = [a for _, a in Tags(written(tmp_path)).found if a.get("aria-label") == "T1w, acquired, coronal"]
    aspect = float(re.search(r"aspect-ratio:([\d.]+)", tiles[0]["style"])[1])
    assert aspect == pytest.approx(mm[0] / mm[2], abs=1e-3)


def test_truth_brings_an_error_map_and_a_histogram(tmp_path):
    panels = (*page().panels, Panel("FLAIR", image(3), "truth"), Panel("FLAIR", 0.1 * image(4), "spread"))
    text = written(tmp_path, panels=panels)
    labels = [a["aria-label"] for _, a in Tags(text).found if "aria-label" in a]
    assert {"FLAIR, truth, axial", "FLAIR, error, axial", "FLAIR, spread, axial"} <= set(labels)
    assert "curve truth" in text
    assert "its truth" in text
    assert "FLAIR, error, axial" not in written(tmp_path)


def test_the_error_map_is_synthetic_minus_truth(tmp_path):
    def shown(*more):
        tags = Tags(written(tmp_path, panels=(*page().panels, *more))).found
        (tile,) = [a["style"] for _, a in tags if a.get("aria-label") == "FLAIR, error, axial"]
        content = base64.b64decode(re.search(r"base64,([^)]*)", tile)[1])
        return np.asarray(Image.open(io.BytesIO(content))).reshape(-1, 3).mean(axis=0)

    red, _, blue = shown(Panel("FLAIR", 0.7 * image(2), "truth"))
    assert red > 3 * blue  # brighter than the truth is orange
    assert shown(Panel("FLAIR", image(2), "truth")).max() < 1
    given = Panel("FLAIR", np.full(SHAPE, -0.3, np.float32), "error")
    red, _, blue = shown(Panel("FLAIR", 0.7 * image(2), "truth"), given)  # what is given is taken
    assert blue > 3 * red


def test_stripes_are_warned_of(tmp_path):
    striped = image(2) * (1 + 0.6 * np.random.default_rng(0).random(SHAPE[2])).astype(np.float32)
    panels = (*page().panels[:2], Panel("FLAIR", striped, "synthetic"), Panel("FLAIR", image(2), "truth"))
    assert 'badge warn">warn</span></td><td><b>FLAIR: stripes' in written(tmp_path, panels=panels)
    smooth = (*page().panels, Panel("FLAIR", image(2), "truth"))
    assert 'badge pass">pass</span></td><td><b>FLAIR: stripes' in written(tmp_path, panels=smooth)


def test_several_synthetic_images(tmp_path):
    panels = (page().panels[0], Panel("T2w", image(1), "synthetic"), Panel("FLAIR", image(2), "synthetic"))
    assert "T2w and FLAIR on this page were made by a model" in written(tmp_path, panels=panels)


def test_names_cannot_carry_markup(tmp_path):
    bad = "<script>alert(1)</script>"
    text = written(tmp_path, title=bad, notes=(bad,), checks={bad: f"warn: {bad}"}, provenance={bad: bad}, protocol=bad,
                   scores={bad: {bad: {bad: 1.0}}})  # fmt: skip
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 8


def test_a_page_replaces_and_says_where_it_cannot(tmp_path):
    assert "sub-01" in written(tmp_path)
    assert "sub-99" in written(tmp_path, title="sub-99")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose a folder"):
        subject_page(tmp_path / "file" / "sub-01.html", page())


def test_methods_text_names_what_matters():
    text = methods_text(page())
    for words in (
        "Missing FLAIR",
        "T1w and T2w",
        "any2all",
        "0123456789ab,"[:12],
        "mds-ddim",
        "25 steps",
        "seed 0",
        "8",
    ):
        assert words in text
    assert "None" not in methods_text(dataclasses.replace(page(), provenance={}))


def test_flatten_keeps_paths_and_drops_nothing_known():
    assert flatten({"A": {"B": 1, "C": None}, "D": [1, 2]}) == [("A · B", "1"), ("D", "1, 2")]
    assert flatten({"patterns": [["T1w"], ("T1w", "FLAIR")]}) == [("patterns", "T1w, T1w + FLAIR")]


@pytest.mark.parametrize(("value", "text"), [(0.86123, "0.861"), (24.1251, "24.13"), (None, "–"), (float("nan"), "–")])
def test_numbers_are_read_easily(value, text):
    assert number(value) == text


def scores():
    rng = np.random.default_rng(0)
    for subject in range(6):
        for pattern, modality in (("FLAIR", "FLAIR"), ("T2w+FLAIR", "FLAIR"), ("T2w+FLAIR", "T2w")):
            for method, base in (("model", 30), ("regression", 25), ("single", 20)):
                yield Score(f"sub-{subject}", pattern, modality, "psnr", method, base + rng.normal())
                yield Score(f"sub-{subject}", pattern, modality, "ssim", method, base / 40)


def test_evaluation_page_has_every_part(tmp_path):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(figures.strip(image(0), image(1), (1, 1, 1), image(0) > 0))
    found = list(scores())
    mine = [s for s in found if (s.modality, s.method, s.metric) == ("T2w", "model", "psnr")]
    worst = min(mine, key=lambda s: s.value)
    evaluation = Evaluation(
        found,
        failed={"sub-8": "its <T1w> is truncated"},
        skipped={"sub-9": "it has T1w only"},
        protocol={"data_range": 1.0, "model": {"sha256": "ab12"}},
        pictures={(worst.subject, worst.pattern, "T2w"): picture},
    )
    text = evaluation_page(tmp_path / "report.html", evaluation).read_text(encoding="utf-8")
    assert self_contained(text)
    assert not Tags(text).open
    said = ["In 6 subjects", "its &lt;T1w&gt; is truncated", "it has T1w only", "ab12", "this model", "best single"]
    said += [f"<b>T2w</b> of {worst.subject}, hidden: T2w+FLAIR", "FLAIR (T2w+FLAIR)"]
    assert [words for words in said if words not in text] == []
    assert text.count("<img") == 1
    assert text.count("<svg") == 4


def test_an_evaluation_of_nothing_still_has_a_page(tmp_path):
    text = evaluation_page(tmp_path / "report.html", Evaluation((), failed={"sub-1": "broken"})).read_text()
    assert "Nothing could be measured" in text
    assert "broken" in text
