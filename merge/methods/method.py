"""What a merging method is: a pure function over the tensors of one name, and how its parameters are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """A method's parameter.

    Attributes:
        help: one line.
        default: value where the recipe gives none; None means that it must be given.
        low, high: the range; a coefficient may leave it with `extrapolate`.
        each: one value per input (a list in the order of the inputs, or a mapping by their names).
        simplex: the values per input sum to 1 (unless `extrapolate`); equal shares where none are given.
        relative: of the values per input only the proportions count, unless a parameter `normalize` is false.
        kind: float, int or bool.
    """

    help: str
    default: float | bool | None = None
    low: float = float("-inf")
    high: float = float("inf")
    each: bool = False
    simplex: bool = False
    relative: bool = False
    kind: type = float


def _no_single(count: int, parameters: Mapping[str, Any]) -> int | None:
    return None


@dataclass(frozen=True)
class Method:
    """A merging method.

    Attributes:
        function: `function(tensors, *, name, **parameters) -> Tensor`. The tensors of one name, the base first where
            the method takes one, all in the computing dtype; pure. With `elementwise` it may be called on blocks of
            them, and takes `out`, a tensor to write the result into.
        formula, source: for help texts and docs.
        parameters: by name.
        takes_base: the first tensor is the common ancestor's.
        elementwise: each element of the result depends on the same element of the inputs alone.
        inputs: least and greatest number of inputs besides the base.
        single: the index of the one input that these parameters mean (ratio 0 or 1), whose bytes are then copied:
            exact, and nothing leaks from the others. None where there is none.
        statistics: the second half of the inputs are statistics of the first (see `merge.tools.statistics`).
        edges: what happens at the edges (ties, zero vectors, vectors without a direction), for docs.
    """

    function: Callable[..., Tensor]
    formula: str
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    takes_base: bool = False
    elementwise: bool = False
    inputs: tuple[int, int | None] = (2, None)
    single: Callable[[int, Mapping[str, Any]], int | None] = _no_single
    statistics: bool = False
    edges: str = ""


Tensors = Sequence[Tensor]
