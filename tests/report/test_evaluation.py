"""The page of an evaluation: what SD maps are worth, models compared, a paper's numbers, and one sentence for all."""

import pytest

from amodal.evaluate.paired import compare_all
from amodal.metrics.statistics import Score, Verdict
from amodal.report.evaluation import Beside, Coverage, Evaluation, evaluation_page, in_a_sentence

ROWS = [
    Score(f"sub-{k}", "FLAIR", "FLAIR", "psnr", who, base + 0.1 * k)
    for who, base in (("model", 30), ("other <b>", 28), ("single", 20))
    for k in range(6)
]


def coverage(**values):
    given = {"raw": 0.6, "stated": None, "least": None, "left_out": None, "factor": None, "floor": None, **values}
    return Coverage("FLAIR", 0.9, 6, **given)


def test_what_counts_is_the_latest_interval():
    assert not coverage().holds
    assert coverage(stated=0.88, least=0.7).holds
    assert coverage(stated=0.8, least=0.7, left_out=0.91).holds
    assert coverage(left_out=0.931).best == 0.931 and not coverage(left_out=0.931).holds


def test_of_few_subjects_nothing_is_claimed():
    few, many = {"low": 0.82, "high": 0.98}, {"low": 0.885, "high": 0.915}
    assert coverage(stated=0.9, **few).words == coverage(stated=0.86, **few).words == "too few subjects to say"
    assert coverage(stated=0.9, **many).words == "holds"
    assert coverage(stated=0.86, low=0.84, high=0.88).words == "does not hold"
    said = in_a_sentence(Evaluation(ROWS, coverage=[coverage(stated=0.9, **few), coverage(stated=0.9, **many)]))
    assert said == "There are too few subjects to say whether its intervals hold."


@pytest.mark.parametrize(
    ("good", "said"),
    [
        (True, "On these data the model adds something for FLAIR and T1w."),
        (False, "It earns no trust for FLAIR and T1w: a baseline does as well or better."),
        (None, "Nothing can be said yet of FLAIR and T1w."),
    ],
)
def test_one_sentence_for_all(good, said):
    verdicts = [Verdict(m, good, "") for m in ("FLAIR", "T1w")]
    assert in_a_sentence(Evaluation(ROWS, verdicts)) == said
    held = in_a_sentence(Evaluation(ROWS, verdicts, coverage=[coverage(stated=0.9, least=0.8)]))
    assert held.endswith("its intervals hold.")
    assert "do not hold" in in_a_sentence(Evaluation(ROWS, verdicts, coverage=[coverage()]))


def test_every_part_is_on_the_page(tmp_path):
    beside = [Beside("1 missing", "all", "psnr", 28.26, 1.24, "Table 1", 27.1, 26.0, 28.0, 6),
              Beside("1 missing", "all", "fid", 12.67, None, "Table 1", None, None, None, 0)]  # fmt: skip
    shown = Evaluation(
        ROWS, comparisons=compare_all(ROWS, "model", "other <b>"), beside=beside, others=("other <b>",),
        coverage=[coverage(left_out=0.9, factor=1.8, floor=0.01)], notes=("all: a <note>",),
        protocol={"protocol": {"id": "x v1", "paper": "", "ruler": {"scale": [0, 99.5], "mask": "head", "dims": 2}},
                  "models": {"model": {"id": "default", "sha256": "", "steps": 8}}},
    )  # fmt: skip
    text = evaluation_page(tmp_path / "report.html", shown).read_text(encoding="utf-8")
    said = ["the acquired image&#39;s percentiles 0 and 99.5", "the head, mean over axial slices", "default, 8 steps"]
    said += ["Beside each other", "other &lt;b&gt;", "Beside the paper", "28.26 ± 1.240", "not measured"]
    said += [
        "26.00 to 28.00",
        "What the SD maps are worth",
        "60.0 %",
        "90.0 %",
        "1.800",
        "holds",
        "all: a &lt;note&gt;",
    ]
    assert [words for words in said if words not in text] == []
    assert "other <b>" not in text and "protocol · paper" not in text  # what is empty is not listed
