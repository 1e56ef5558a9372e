"""Units: shares in %, losses as they are, whatever old rows say or leave out."""

import pytest

from experiments.grid.units import unit_of


def rows(metric, *values, **fields):
    return [{"metric": metric, "value": value, **fields} for value in values]


@pytest.mark.parametrize(
    ("given", "shown", "words", "text"),
    [
        (rows("accuracy", 0.5, 1.0), 50, "%", "50.0"),
        (rows("accuracy", 0.5, float("nan")), 50, "%", "50.0"),
        (rows("reward", 0.5, 37.2), 0.5, "", "0.500"),
        (rows("reward", 0.5, -0.1), 0.5, "", "0.500"),
        (rows("nll", 0.5, higher_is_better=False, unit="nats"), 0.5, "nats, lower is better", "0.500"),
        (rows("error", 0.5, higher_is_better=False), 0.5, "lower is better", "0.500"),
        (rows("CIDEr-D", 0.5, 5.9), 50, "× 100", "50.0"),
        (rows("likeness", 0.5, unit="× 100"), 50, "× 100", "50.0"),
        (rows("accuracy", 0.5, unit="%"), 0.5, "%", "0.5"),
    ],
)
def test_scores_are_shown_in_their_unit(given, shown, words, text):
    unit = unit_of(given)
    assert unit.factor * given[0]["value"] == shown
    assert unit.words == words
    assert unit.text(given[0]["value"]) == text


def test_the_best_is_the_lowest_where_lower_is_better():
    assert unit_of(rows("nll", 1.0, higher_is_better=False)).best([3, 1, 2]) == 1
    assert unit_of(rows("accuracy", 1.0)).best([3, 1, 2]) == 0
