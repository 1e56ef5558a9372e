"""Student's t, without tables: quantiles and tails at any degrees of freedom from 1 on."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
_NORMAL = 1e4  # degrees of freedom from which on t is normal


def quantile_of_t(freedom: float, level: float = LEVEL) -> float:
    """Return the half-width of a two-sided interval in standard errors: Student's t of `freedom` >= 1 degrees.

    >>> round(quantile_of_t(2), 3), round(quantile_of_t(float("inf")), 3)
    (4.303, 1.96)
    """
    if freedom > _NORMAL:
        return NormalDist().inv_cdf((1 + level) / 2)
    angles, beyond = _angles_of_t(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(level - 1, -beyond, angles)))


def tails_of_t(t: float, freedom: float) -> float:
    """Return how likely Student's t of `freedom` >= 1 degrees is as far from 0 as `t`.

    >>> round(tails_of_t(4.303, 2), 3), round(tails_of_t(-1.96, float("inf")), 3)
    (0.05, 0.05)
    """
    if freedom > _NORMAL:
        return math.erfc(abs(t) / math.sqrt(2))
    angles, beyond = _angles_of_t(freedom)
    return float(np.interp(math.atan(abs(t) / math.sqrt(freedom)), angles, beyond))


@lru_cache(maxsize=64)
def _angles_of_t(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Return angles from 0 to a right one and how often t = sqrt(freedom) tan(angle) lies beyond each, of |t|."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    beyond = np.concatenate([np.cumsum((density[1:] + density[:-1])[::-1])[::-1], [0]])
    return angles, beyond / beyond[0]
