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


def tails_of_mixed(distance: float, guessed: float, known: float, freedom: int) -> float:
    """Return how likely a sum of two errors is as far from 0 as `distance`: of one the variance was `guessed` with so
    many degrees of freedom, of the other it is `known` (Behrens and Fisher: what the guess may be is averaged over).

    Alone the first is Student's t, the second normal. An approximate number of degrees of freedom for the sum fits its
    middle, and not its tails: nine tests of nothing with Holm's correction then call one in up to 13 % of studies of
    three seeds, with this in 5 % at most.

    >>> round(tails_of_mixed(4.303, 1.0, 0.0, 2), 3), round(tails_of_mixed(1.96, 0.0, 1.0, 2), 3)
    (0.05, 0.05)
    """
    if not guessed or freedom < 1:
        return math.erfc(abs(distance) / math.sqrt(2 * known))
    spreads, weights = _spreads(freedom)
    with np.errstate(divide="ignore"):
        errors = np.sqrt(2 * (guessed / spreads**2 + known))
    return float(sum(weight * math.erfc(abs(distance) / error) for weight, error in zip(weights, errors, strict=True)))


@lru_cache(maxsize=64)
def _spreads(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a standard deviation of 1 may be guessed to be, and how likely each is."""
    roots = np.linspace(0, math.sqrt(1 + 8 / math.sqrt(freedom)), 301)  # denser near 0, where errors are largest
    spreads = roots**2
    density = roots * spreads ** (freedom - 1) * np.exp(-freedom * spreads**2 / 2)
    return spreads, density / density.sum()


@lru_cache(maxsize=64)
def _angles_of_t(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Return angles from 0 to a right one and how often t = sqrt(freedom) tan(angle) lies beyond each, of |t|."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    beyond = np.concatenate([np.cumsum((density[1:] + density[:-1])[::-1])[::-1], [0]])
    return angles, beyond / beyond[0]
