"""Accuracies of answers and of boxes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from unival_core.errors import UnivalError
from unival_core.metrics.scores import Scores, check_pairs, mean_scores

PUBLISHED_AREAS = (30_000.0, math.nextafter(30_000.0, math.inf), 100_000.0, math.nextafter(100_000.0, math.inf))
"""Areas in square pixels, as UnIVAL's scripts have them: small boxes lie below the first, medium ones from the second
to below the third, large ones from the last. A box of exactly a limit has no size."""

SIZES = ("small", "medium", "large")


def vqa_accuracy(predictions: Sequence[str], references: Sequence[Mapping[str, float]]) -> Scores:
    """Compute the confidence of the given answer among the weighted answers, 0 when it is not one of them.

    Answers are compared as written, without the white space around them.

    >>> vqa_accuracy(["red ", "two"], [{"red": 1.0, "pink": 0.3}, {"three": 1.0}]).value
    0.5
    """
    check_pairs(predictions, references)
    return mean_scores(
        np.array(
            [float(weights.get(answer.strip(), 0.0)) for answer, weights in zip(predictions, references, strict=True)]
        )
    )


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Compute the share of answers equal to the reference, without the white space around them."""
    check_pairs(predictions, references)
    return mean_scores(np.array([float(a.strip() == b.strip()) for a, b in zip(predictions, references, strict=True)]))


def code_accuracy(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> Scores:
    """Compute the share of places of the reference image where the predicted one has the same code."""
    check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return mean_scores(
        np.array([sum(a == b for a, b in zip(codes, wanted, strict=False)) / len(wanted) for codes, wanted in pairs])
    )


def box_iou(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Compute the intersection over union, (n,), of boxes (n, 4) given as x0, y0, x1, y1 in pixels; 0 without overlap.

    1e-6 is added to the union, as UnIVAL does.
    """
    a, b = _boxes(first), _boxes(second)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    return overlap / (_area(a) + _area(b) - overlap + 1e-6)


def box_accuracy(
    predictions: ArrayLike,
    references: ArrayLike,
    *,
    threshold: float = 0.5,
    size: str | None = None,
    areas: Sequence[float] = PUBLISHED_AREAS,
    of_all: bool = False,
) -> Scores:
    """Compute the share of boxes whose overlap with the reference box reaches `threshold` (Acc@IoU).

    Boxes are (n, 4): x0, y0, x1, y1 in pixels of one image; a prediction of NaN is a miss. `size` keeps only the
    examples whose reference box is small, medium or large by `areas` (as PUBLISHED_AREAS; of two bounds each belongs to
    the size above). With `of_all` they are a share of all examples, so that the sizes add up to the whole.
    """
    a, b = _boxes(predictions), _boxes(references)
    check_pairs(a, b)
    iou = box_iou(a, b)
    right = (iou >= threshold) & (iou > 0)
    if size is None:
        return mean_scores(right)
    if size not in SIZES:
        raise UnivalError(f"unknown box size {size!r}: choose from {', '.join(SIZES)}")
    sized = np.digitize(_area(b), areas) == SIZES.index(size) * len(areas) // 2
    if of_all:
        return mean_scores(right & sized)
    if not sized.any():
        return Scores(float("nan"), np.empty(0), 0, f"not computed: no {size} boxes among {len(b)}")
    return mean_scores(right[sized])


def _boxes(boxes: ArrayLike) -> np.ndarray:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UnivalError(f"boxes have shape {array.shape}, not (n, 4): give x0, y0, x1, y1 for each")
    return array


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
