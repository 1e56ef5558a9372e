"""How far models may be believed, and how far they differ, from the scores of single examples that rows keep.

UnIVAL's rows keep the `confidence` in the given answer where answers are limited, beside the score that says whether
it was right.

>>> round(calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 0, 1]), 6)
0.1
>>> disagreement([1, 1, 0, 0], [1, 0, 1, 0])
0.5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from experiments.errors import StudyError

BINS = 15
CONFIDENCE = "confidence"  # the metric of rows that hold it


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error (arXiv 1706.04599): how far confidence and accuracy are apart.

    Both (n,) are in 0..1 by example; answers may be right in part. Confidence is cut into `bins` of equal width, the
    upper end of each belonging to it; the gap between the means of a bin counts by the bin's examples. It grows a
    little as n falls, also for models that are calibrated.
    """
    sure, scored = _shares(confidence, right, "confidence", "score")
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=sure - scored, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def disagreement(first: ArrayLike, second: ArrayLike) -> float:
    """Return on what share of examples one of two models is right and the other is not (Kuncheva and Whitaker, 2003).

    Scores (n,) are in 0..1, of the same examples in one order; those that are right in part count by their difference.
    """
    one, other = _shares(first, second, "score", "score")
    return float(np.abs(one - other).mean())


def is_share(values: ArrayLike) -> bool:
    """Tell whether scores of examples lie in 0..1, so that they say how far an answer is right."""
    own = np.asarray(values, dtype=np.float64)
    return bool(own.size) and bool(((own >= 0) & (own <= 1)).all())


def _shares(first: ArrayLike, second: ArrayLike, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two lists of numbers in 0..1, one each an example."""
    found = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if found[0].ndim != 1 or found[0].shape != found[1].shape or not len(found[0]):
        shapes = " and ".join(str(values.shape) for values in found)
        raise StudyError(f"{' and '.join(names)} of shapes {shapes}: give one each for the same examples")
    for name, values in zip(names, found, strict=True):
        if not is_share(values):
            raise StudyError(f"a {name} of {values[~((values >= 0) & (values <= 1))][0]}: give numbers in 0..1")
    return found[0], found[1]
