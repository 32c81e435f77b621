"""A share of the models of the `onnx` package's own tests; `python tests/zoo.py` judges them all."""

from collections import Counter

import zoo

SHARE = 12


def test_models_of_the_onnx_package_are_scored_or_refused_for_a_reason() -> None:
    """Of every twelfth model most are scored, to the bit; rows that mix are found; nothing is unexplained."""
    counts = zoo.run(SHARE)

    assert zoo.shortfalls(counts, SHARE) == []


def test_a_bar_that_is_missed_is_told() -> None:
    """A model with other bits, one without a reason, and too few that are scored are each a line."""
    counts = Counter({zoo.EQUAL: 3, zoo.OTHER: 2, "scored, but tensor(float) differs": 1, zoo.MIXED: 30})

    assert zoo.shortfalls(counts) == [
        "3 models are scored, 650 are wanted",
        "2 models: other",
        "1 models: scored, but tensor(float) differs",
    ]
