"""The support matrix: every cell gives eager's result or is refused by name; docs/support-matrix.md shows that.

Example: python -m pytest tests/test_support_matrix.py
"""

from pathlib import Path

import pytest

from benchmarks import support_matrix
from benchmarks.support_matrix import APART, COLUMNS, FEATURES, cell, table


# words that a refusal must have: which feature it is about
REFUSALS = {
    **{
        (feature, "flex", positions): "flex_attention cannot decode with a cache on a CPU"
        for feature in ("greedy", "sampling", "beams", "assisted")
        for positions in ("RoPE", "ALiBi")
    },
    **{("static_cache", "flex", positions): "static cache" for positions in ("RoPE", "ALiBi")},
    **{("exported", "flex", positions): "flex_attention cannot be exported" for positions in ("RoPE", "ALiBi")},
    **{("checkpointing", "flex", positions): "not support backward on CPU" for positions in ("RoPE", "ALiBi")},
    **{("peft", "flex", positions): "not support backward on CPU" for positions in ("RoPE", "ALiBi")},
    **{("continuous_batching", i, "ALiBi"): "ALiBi" for i in ("eager", "sdpa", "flex", "FA2")},
    ("continuous_batching", "flex", "RoPE"): "flex_attention is not supported for continuous batching",
}
SLOW = ("continuous_batching", "compiled", "exported", "peft")  # each needs seconds
MATRIX = (Path(__file__).parents[1] / "docs/support-matrix.md").read_text(encoding="utf-8")


def expected(feature, implementation, positions):
    """What the cell says: "yes", a reason why it cannot be, or words of its refusal."""
    if (feature, implementation) in APART:
        return APART[feature, implementation]
    return REFUSALS.get((feature, implementation, positions), "yes")


@pytest.mark.parametrize(
    "feature", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FEATURES]
)
def test_cells(feature):
    for column in COLUMNS:
        said, want = cell(feature, *column), expected(feature, *column)
        assert said == "yes" if want == "yes" else want in said, (feature, column, said)


def test_a_wrong_result_is_an_error(monkeypatch):
    """The comparison itself: a feature that ignores its positions must not pass."""
    label, _, reference, tolerance = FEATURES["forward"]

    def wrong(model):
        return support_matrix.forward(support_matrix.build("RoPE"))

    monkeypatch.setitem(FEATURES, "forward", (label, wrong, reference, tolerance))
    assert cell("forward", "sdpa", "RoPE") == "yes"
    with pytest.raises(AssertionError, match="differs from eager"):
        cell("forward", "sdpa", "ALiBi")


def test_the_page_shows_the_matrix():
    shown = MATRIX.split(support_matrix.MARKS[0])[1].split(support_matrix.MARKS[1])[0].strip()
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert lines[0] == table({}).splitlines()[0]
    for line, (feature, (label, *_)) in zip(lines[1:], FEATURES.items(), strict=True):
        words = [word.strip() for word in line.strip("|").split("|")]
        assert words[0] == label
        for word, column in zip(words[1:], COLUMNS, strict=True):
            want = expected(feature, *column)
            kind = "-" if (feature, column[0]) in APART else "yes" if want == "yes" else "refused"
            assert word.split(" ")[0] == kind, (feature, column)
            if kind != "yes":
                number = word[word.index("(") + 1 : -1]
                (note,) = [text for text in shown.splitlines() if text.startswith(f"{number}. ")]
                assert want in note
