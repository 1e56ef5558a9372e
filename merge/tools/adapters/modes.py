"""How adapters are merged: as they are, by any method of task vectors, or in a basis that they share.

The change of a module, `s_i B_i A_i`, is a task vector: all methods that take a base merge adapters, over zeros.
"""

from __future__ import annotations

from merge.errors import MergeError, nearest
from merge.methods import METHODS, Method, Parameter

EXACT = ("exact", "factors")
KNOTS = Method(
    "merge.tools.adapters.knots:knots",
    "Trim, elect and average coordinates in a basis that the changes of all adapters share.",
    "U * ties(S V_1^T, ..., S V_T^T), U S [V_1 ... V_T]^T = [W_1 ... W_T], W_i = s_i B_i A_i",
    "KnOTS, arXiv 2410.19735",
    {
        "density": Parameter("part of an adapter's coordinates, of all modules, that is kept", 1.0, 0.0, 1.0),
        "weights": Parameter("multiplier of what is kept of each adapter", 1.0, each=True),
        "scale": Parameter("multiplier of the merged change", 1.0),
        "normalize": Parameter("divide by the number of entries that are kept and agree", True, kind=bool),
        "elect": Parameter(
            "the sign of the sum, of the signs, or none", "sums", kind=str, words=("sums", "signs", "none")
        ),
        "side": Parameter("which vectors form the basis", "outputs", kind=str, words=("outputs", "inputs")),
    },
    takes_base=True,
    inputs=(1, None),
    edges="of equal magnitudes at the cut all are kept, one more than the density says; a sum of exactly 0 elects the "
    "sign that most entries of the model have, an equal count of signs -",
    group="adapters",
)


def modes() -> list[str]:
    """Give the names of all modes."""
    return [*EXACT, "knots", *(name for name, method in METHODS.items() if method.takes_base)]


def method_of(mode: str) -> Method:
    """Give the method that a mode beyond `EXACT` is. Raises MergeError with the nearest known one."""
    known = modes()
    if mode not in known:
        raise MergeError(f"mode {mode!r}: must be one of {', '.join(known)}{nearest(mode, known)}")
    return KNOTS if mode == "knots" else METHODS[mode]
