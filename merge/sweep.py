"""Series of coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from merge.errors import MergeError
from merge.memory import interpolate
from merge.state_dict import Policy


def ratios(points: int) -> list[float]:
    """`points` ratios from 0 to 1, made as `i / n` so that results join on them.

        >>> ratios(5)
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Raises MergeError for fewer than two points.
    """
    if points < 2:
        raise MergeError(f"a sweep needs at least 2 points, not {points}")
    return [i / (points - 1) for i in range(points)]


def sweep(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], ratios: Iterable[float], policy: Policy | None = None
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield `(ratio, state_dict)` for every ratio, one at a time: only the point in hand is in memory."""
    for ratio in ratios:
        yield ratio, interpolate(first, second, ratio, policy)
