"""Put the units of one network into the order of another's, so that the two can be averaged (Git Re-Basin, 2209.04836).

spec = permutation_spec(patterns.chain(["0", "2", "4"]), b)            # which axes of which tensors move together
aligned = apply_permutation(spec, weight_matching(spec, a, b), b)
align_checkpoint("a.pt", "b.pt", "aligned.pt", groups="groups.json")   # from files to a file
"""

from __future__ import annotations

from merge.tools.align import patterns
from merge.tools.align.activations import activation_matching
from merge.tools.align.checkpoints import Alignment, align_checkpoint
from merge.tools.align.groups import derive_groups, read_groups
from merge.tools.align.spec import Permutation, PermutationSpec, apply_permutation, permutation_spec, random_permutation
from merge.tools.align.weights import weight_matching

__all__ = [
    "Alignment",
    "Permutation",
    "PermutationSpec",
    "activation_matching",
    "align_checkpoint",
    "apply_permutation",
    "derive_groups",
    "patterns",
    "permutation_spec",
    "random_permutation",
    "read_groups",
    "weight_matching",
]
