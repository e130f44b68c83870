"""The page of an audit: every part there, self-contained, closed tags, names escaped."""

import numpy as np
import pytest
from scipy import ndimage

from amodal.core.errors import InputError
from amodal.metrics.extractors import Extractor
from amodal.metrics.privacy import audit
from amodal.report.privacy import privacy_page

from .test_page import Tags, self_contained

TOY = Extractor("toy", "ab" * 32, "blocks", lambda x: ndimage.zoom(x, 0.25, order=1).reshape(1, -1))


def people(first, count, prefix="sub"):
    for s in range(first, first + count):
        x = ndimage.gaussian_filter(np.random.default_rng(s).standard_normal((20, 24, 16)), 2)
        yield f"{prefix}-{s}", ((x - x.min()) / np.ptp(x)).astype(np.float32)


@pytest.fixture(scope="module")
def audits():
    training, held_out = list(people(0, 10)), list(people(50, 8))
    losses = (np.linspace(0, 1, 12), np.linspace(0.1, 1.1, 12))
    honest = audit(people(90, 6, "made"), training, held_out, extractor=TOY, losses=losses)
    copies = [(f"<b>copy</b>-{k}", x + 0.001 * k) for k, (_, x) in enumerate(training[:6])]
    return {"FLAIR": honest, "T1w": audit(copies, training, extractor=TOY)}


def test_every_part_is_there(audits, tmp_path):
    text = privacy_page(tmp_path / "privacy.html", audits, {"model": {"sha256": "cd12"}, "seed": 0}).read_text()
    assert self_contained(text)
    assert not Tags(text).open
    for words in ("6 generated volumes against 10 training volumes", "8 held-out", "sha256 abababababab", "cd12",
                  "by the model&#39;s loss", "Advantage", "4 findings to look at", "SYNTHETIC", ">copy<"):  # fmt: skip
        assert words in text
    assert "<b>copy</b>-" not in text
    assert text.count("<svg") == 8
    assert text.count("<img") == 2 * sum(len(a.shown) for a in audits.values())
    assert [p.name for p in tmp_path.iterdir()] == ["privacy.html"]


def test_a_clean_audit_promises_nothing(audits, tmp_path):
    text = privacy_page(tmp_path / "privacy.html", {"FLAIR": audits["FLAIR"]}).read_text()
    assert "no proof that there is none" in text
    assert "look at it" not in text


def test_no_audit_no_page(tmp_path):
    with pytest.raises(InputError, match="at least"):
        privacy_page(tmp_path / "privacy.html", {})
    assert not list(tmp_path.iterdir())
