"""Effective robustness: what lies on the line of single models is not beyond it, and what lies above it is."""

import numpy as np
import pytest

from experiments.statistics.contrasts import draws_of
from experiments.statistics.robustness import beyond, trend_of


def pair(name, skill, more=0.0, scores=None):
    """Rows of a model on both splits, with 400 answers each: half as far from chance, in logits, on shifted data."""
    rows = []
    for split, logit in (("test", skill), ("novel", 0.5 * skill - 0.3)):
        value = 1 / (1 + np.exp(-logit)) + more * (split == "novel")
        key = f"{name} {split}"
        scores[key] = (np.arange(400) * 7919 % 400 < round(400 * value)).astype(float)
        rows.append({"key": key, "value": scores[key].mean(), "task": "vqa", "split": split, "metric": "accuracy"})
    return tuple(rows)


def test_averages_on_the_line_and_beyond_it():
    scores = {}
    singles = [pair(f"single {i}", skill, scores=scores) for i, skill in enumerate((-1.0, 0.0, 1.0, 2.0))]
    line = trend_of(singles)
    assert (line.slope, line.height, line.models) == pytest.approx((0.5, -0.3, 4), abs=0.02)
    models = {more: {s: pair(f"{more} {s}", 1.5 + s / 10, more, scores) for s in range(3)} for more in (0.0, 0.1, -0.1)}
    rows = [row for one in [*singles, *(p for m in models.values() for p in m.values())] for row in one]
    draws = draws_of(rows, scores)
    found = {more: beyond(model, singles, draws) for more, model in models.items()}
    assert [found[more].value for more in found] == pytest.approx([0, 0.1, -0.1], abs=0.01)
    assert [found[more].lo < 0 < found[more].hi for more in found] == [True, False, False]
    assert len(found[0.1].seeds) == 3


def test_too_few_single_models_make_no_line():
    scores = {}
    singles = [pair(f"single {i}", i, scores=scores) for i in range(2)]
    assert trend_of(singles) is None
    assert beyond({0: singles[0]}, singles, {}) is None
    assert trend_of([singles[0]] * 3) is None
