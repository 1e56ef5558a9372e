"""Put the units of one network into the order of another's, so that the two can be averaged (Git Re-Basin, 2209.04836).

spec = permutation_spec(chain(["0", "2", "4"]), b)            # which axes of which tensors move together
aligned = apply_permutation(spec, weight_matching(spec, a, b), b)
"""

from __future__ import annotations

from merge.tools.align.activations import activation_matching
from merge.tools.align.patterns import attention, bottleneck, chain, linear, norm
from merge.tools.align.spec import Permutation, PermutationSpec, apply_permutation, permutation_spec, random_permutation
from merge.tools.align.weights import weight_matching

__all__ = [
    "Permutation",
    "PermutationSpec",
    "activation_matching",
    "apply_permutation",
    "attention",
    "bottleneck",
    "chain",
    "linear",
    "norm",
    "permutation_spec",
    "random_permutation",
    "weight_matching",
]
