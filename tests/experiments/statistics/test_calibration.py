"""Calibration error and disagreement against closed forms and made models."""

import numpy as np
import pytest

from experiments.errors import StudyError
from experiments.statistics.calibration import calibration_error, disagreement


def test_by_hand():
    # Bins (0.5, 1] and [0, 0.5]: |(0.9 + 0.7) - 1| and |(0.5 + 0.2) - 2|, of four.
    assert calibration_error([0.9, 0.7, 0.5, 0.2], [1, 0, 1, 1], bins=2) == pytest.approx((0.6 + 1.3) / 4)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0
    assert calibration_error([1.0, 1.0], [0.5, 0.3], bins=1) == pytest.approx(0.6)


def test_a_constant_gap_is_found_and_a_calibrated_model_has_none():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.2, 0.8, 200_000)
    right = generator.random(len(truth)) < truth
    assert calibration_error(truth, right) < 0.01
    assert calibration_error(truth + 0.2, right) == pytest.approx(0.2, abs=0.005)
    assert calibration_error(truth - 0.1, right) == pytest.approx(0.1, abs=0.005)


def test_disagreement_of_independent_models():
    generator = np.random.default_rng(1)
    one, other = (generator.random(200_000) < share for share in (0.7, 0.4))
    assert disagreement(one, other) == pytest.approx(0.7 * 0.6 + 0.3 * 0.4, abs=0.005)
    assert disagreement(one, one) == 0
    assert disagreement([0.3, 1.0], [1.0, 1.0]) == pytest.approx(0.35)


def test_what_fits_no_examples_is_refused():
    for first, second, message in (
        ([0.5], [1, 0], r"shapes \(1,\) and \(2,\)"),
        ([], [], r"shapes \(0,\)"),
        ([1.5], [1], "a confidence of 1.5: give numbers in 0..1"),
        ([0.5], [np.nan], "a score of nan"),
    ):
        with pytest.raises(StudyError, match=message):
            calibration_error(first, second)
