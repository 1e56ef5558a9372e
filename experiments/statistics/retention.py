"""Retention: what a merged model keeps of an expert's skill on the expert's own task, so that tasks can be averaged.

It has three forms, and says which: `merged / expert`; where lower scores are better `expert / merged`; and where ratios
mean nothing, since scores are zero or negative, the share that is kept of what the expert gained over the pretrained
model. In each of them 1 is the expert's own skill.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

RATIO, INVERSE = "merged / expert", "expert / merged"
GAIN = "share of the expert's gain over the pretrained model"
NONE = "none: scores of 0 or less, and no pretrained model"
UNSURE = "none: scores of 0 or less, and no gain of the expert over the pretrained model that is told apart from 0"


def retention(
    expert: ArrayLike,
    merged: ArrayLike,
    pretrained: ArrayLike | None = None,
    *,
    higher_is_better: bool = True,
    form: str = "",
) -> np.ndarray:
    """Return the retention of merged scores, of the shape that the three kinds of scores have in common.

    `form` is RATIO, INVERSE or GAIN, by default the one that fits all these scores (`form_of`). NaN where the form
    needs a pretrained model and there is none, and where the expert gained nothing over it.

    >>> retention(0.8, [0.4, 0.8]).tolist(), retention(0.5, 2.0, higher_is_better=False).tolist()
    ([0.5, 1.0], 0.25)
    >>> retention(-1.0, -1.5, pretrained=-3.0).tolist()
    0.75
    """
    own, got = np.asarray(expert, dtype=np.float64), np.asarray(merged, dtype=np.float64)
    start = np.asarray(np.nan if pretrained is None else pretrained, dtype=np.float64)
    form = form or form_of(own, got, has_start=pretrained is not None, higher_is_better=higher_is_better)
    with np.errstate(divide="ignore", invalid="ignore"):
        if form == RATIO:
            return got / own
        if form == INVERSE:
            return own / got
        if form != GAIN:
            return np.broadcast_to(np.nan, np.broadcast_shapes(own.shape, got.shape))
        gained = own - start if higher_is_better else start - own
        kept = got - start if higher_is_better else start - got
        return np.where(gained > 0, kept / gained, np.nan)


def form_of(expert: ArrayLike, merged: ArrayLike, *, has_start: bool, higher_is_better: bool = True) -> str:
    """Choose the form that fits all scores of a task, by all of its experts and merged models.

    Ratios need experts above 0, and merged models at 0 or above (above 0 where lower is better). Where only a merged
    model fails that, and no pretrained model is known, the ratio stays: it is negative, and orders models as their
    scores do.
    """
    own, got = np.asarray(expert, dtype=np.float64), np.asarray(merged, dtype=np.float64)
    experts_fit = bool((own > 0).all())
    if experts_fit and bool((got >= 0).all() if higher_is_better else (got > 0).all()):
        return RATIO if higher_is_better else INVERSE
    if has_start:
        return GAIN
    return RATIO if experts_fit and higher_is_better else NONE
