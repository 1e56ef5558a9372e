"""Barriers of lines whose sag is known, beside what weights say."""

import math

import numpy as np
import pytest

from experiments.pages.pairs import pair_table, pairings
from experiments.pages.views import with_geometry
from experiments.statistics.barriers import barriers, rank_correlation
from experiments.statistics.weights import Geometry, read_pairs, write_lines

SCORES = {"a": (0.8, 0.5, 0.5, 0.2), "b": (0.1, 0.4, 0.3, 0.5)}  # at shares 0, 0.25, 0.5 and 1 of b
LOSSES = {"a": (1.0, 1.3, 2.0, 2.0), "b": (3.0, 2.0, 2.2, 1.0)}


def rows(values, seed=0, kind="plain", **about):
    made = []
    for task, own in values.items():
        for share, value in zip((0, 0.25, 0.5, 1), own, strict=True):
            held = {name: part for name, part in (("a", 1 - share), ("b", share)) if part}
            made.append({
                "shares": held, "experts": kind, "method": "interpolate" if len(held) > 1 else "single", "value": value,
                "task": task, "seed": seed, "owner": task, "split": "test", "metric": "score", "batchnorm": "average",
                **about,
            })  # fmt: skip
    return made


def test_barriers_are_how_far_the_line_sags():
    # a sags by .15 and .0 of .8; b by -.2 and .0 of .5
    (found,) = barriers(rows(SCORES), relative=True)
    assert found[:3] == ("plain", ("a", "b"), 0)
    assert found.greatest == pytest.approx((0.15 / 0.8 + 0.0) / 2)
    assert found.midpoint == pytest.approx(0.0)
    (found,) = barriers(rows(LOSSES, higher_is_better=False), relative=False)
    assert (found.greatest, found.midpoint) == pytest.approx(((0.5 + 0.2) / 2, (0.5 + 0.2) / 2))
    assert barriers([row for row in rows(SCORES) if row["shares"] != {"b": 1}], relative=True) == []
    assert barriers(rows({**SCORES, "b": (0.1, 0.4, 0.3, 0.0)}), relative=True) == []  # no share of nothing


def test_a_table_sets_barriers_beside_weights(tmp_path):
    about = {"first": "b", "second": "a", "first_length": 1.0, "second_length": 2.0}
    lines = [Geometry("plain", seed, **about, distance=2.0, cosine=0.25, agreement=0.5) for seed in (0, 1)]
    write_lines(tmp_path / "weights.csv", lines, Geometry)
    assert read_pairs(tmp_path) == lines
    losses = {"metric": "nll", "unit": "nats", "higher_is_better": False}
    made = [row for seed in (0, 1) for row in rows(SCORES, seed) + rows(LOSSES, seed, **losses)]
    known = with_geometry(made, lines)
    assert next(row["geometry"]["first"] for row in known if len(row["shares"]) > 1) == 2.0
    line = "| a + b | plain | 2 | 0.25 | 2 | 0.5 | 9.4 [9.4, 9.4] | 0.0 [0.0, 0.0] | 0.350 [0.350, 0.350] |"
    assert line in pair_table(known).to_markdown()
    assert "| a + b | plain | 2 | 9.4 [9.4, 9.4] |" in pair_table(made).to_markdown()
    assert pair_table(made[:2]) is None


def test_barriers_have_intervals_of_examples_and_experts_disagree():
    """Ten thousand answers: half of those that b gives on a's task are wrong where a is right."""
    made = [{**row, "key": str(i), "n": 400} for i, row in enumerate(rows(SCORES))]
    scores = {
        row["key"]: np.repeat([1.0, 0.0], [round(400 * row["value"]), round(400 * (1 - row["value"]))]) for row in made
    }
    (one,) = pairings(made, scores)
    assert one.apart == {0: pytest.approx((0.6 + 0.4) / 2)}
    draws = one.score[0].draws
    assert draws.mean(axis=0) == pytest.approx([0.15 / 0.8 / 2, 0.0], abs=0.01)
    text = pair_table(made, scores).to_markdown()
    lo, hi = np.quantile(100 * draws[:, 0], [0.025, 0.975])
    assert f"| 9.4 [{lo:.1f}, {hi:.1f}] |" in text
    assert "| 50.0 |" in text


def test_ranks_of_equal_values_are_shared():
    assert rank_correlation([1, 2, 2, 4], [1, 3, 3, 9]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
