"""Series between two experts: their order, their ends, and what is kept of both skills."""

import numpy as np
import pytest

from experiments.grid.rows import records
from experiments.statistics.curves import barrier, chord, lines_between


def point(share, value, **fields):
    return (
        {"shares": {"vqa": 1 - share, "caption": share}, "value": value, "lo": value - 1, "hi": value + 1}
        | {
            "task": "vqa",
            "split": "test",
            "metric": "accuracy",
            "experts": "vanilla",
            "method": "linear",
        }
        | fields
    )


def test_lines_are_sorted_averaged_over_seeds_and_share_their_ends():
    other = {"shares": {"joint": 1.0}, "value": 9}
    ends = [point(1, 4), point(0, 2)]
    rows = [*ends, point(0.5, 6), point(0.5, 8), point(0.5, 5, method="ensemble"), point(0.5, 0) | other]
    rows.append(point(0, 7, experts="ratatouille", method="slerp"))
    lines = lines_between(records(rows), ("vqa", "caption"), by="method")
    assert list(lines) == ["linear", "ensemble", "slerp"]
    assert lines["linear"].share.tolist() == [0, 0.5, 1]
    assert lines["linear"].value.tolist() == [2, 7, 4]
    assert lines["linear"].lo.tolist() == [1, 6, 3]
    assert lines["linear"].seeds == [[2], [6, 8], [4]]
    assert lines["ensemble"].value.tolist() == [2, 5, 4]
    assert lines["slerp"].value.tolist() == [7]  # the ends are of other experts
    mirrored = lines_between(records(rows), ("caption", "vqa"), by="method")
    assert mirrored["linear"].value.tolist() == [4, 7, 2]


def test_chord_by_hand():
    scores = np.array([[8, 6, 5, 7, 4], [0, 2, 3, 3.5, 4]])
    assert chord([0, 0.25, 0.5, 0.75, 1], scores) == pytest.approx(np.array([[8, 7, 6, 5, 4], [0, 1, 2, 3, 4]]))


def test_barriers_of_scores_and_losses():
    shares, score = [0, 0.25, 0.5, 1], np.array([[1.0, 1.0, 1.0], [0.7, 0.6, 0.8], [0.6, 0.5, 0.7], [0.8, 0.8, 0.8]])
    found = barrier(shares, score)
    assert found.midpoint.value == pytest.approx(0.9 - 0.6)
    assert (found.highest, found.place) == (pytest.approx(0.3), 2)
    assert found.lo < 0.3 < found.hi
    loss = barrier(shares, -score, rises=False)
    assert (loss.highest, loss.p) == (pytest.approx(found.highest), found.p)
    assert barrier([0, 0.3, 1], score[[0, 1, 3]]).midpoint is None
