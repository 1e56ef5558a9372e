"""KnOTS: the changes of all adapters in one basis, in which TIES compares like with like (arXiv 2410.19735)."""

# torch.linalg has no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from merge.methods.matrices import decomposed, one_thread

CUTOFF = 1e-6  # singular values below this part of a module's largest are zero: the program's is 1e-5 of nothing


def knots(
    changes: Mapping[str, Callable[[], Sequence[Tensor]]],
    *,
    density: float,
    weights: Sequence[float],
    scale: float,
    normalize: bool,
    elect: str,
    side: str,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Give two factors of every module's merged change, whose product it is, in float64.

    `changes` give each adapter's change of a module as a matrix. Of n modules the coordinates of an adapter form one
    vector, of which the `density` part of largest magnitude is kept, and one entry more: those of at least the
    (d - floor(density * d))-th smallest. `elect` names what elects the sign of an entry: the sum of the values (zero
    means the sign of most entries), the sum of the signs (zero means minus), or nothing.
    """
    bases: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {}
    for module, matrices in changes.items():
        parts = [matrix if side == "outputs" else matrix.T for matrix in matrices()]
        whole = torch.cat(parts, 1)
        with one_thread():
            found = decomposed(whole, min(whole.shape), CUTOFF)
        bases[module] = found.left
        pieces[module] = list((found.right * found.values).T.split([part.shape[1] for part in parts], 1))
    count = len(weights)
    cuts = [_cut([own[index] for own in pieces.values()], density) for index in range(count)]
    kept = {
        module: torch.stack([value.where(value.abs() >= cut, 0.0) for value, cut in zip(own, cuts, strict=True)])
        for module, own in pieces.items()
    }
    signs = {module: _ballot(own, elect) for module, own in kept.items()}
    if elect == "sums":
        most = sum(float(sign.sum()) for sign in signs.values())
        signs = {module: sign.where(sign != 0, math.copysign(float(most != 0), most)) for module, sign in signs.items()}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    shares = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    for module, own in kept.items():
        agreeing = own if elect == "none" else own.where(torch.where(signs[module] > 0, own > 0, own < 0), 0.0)
        total = (agreeing * shares).sum(0) * scale
        if normalize:
            total /= (agreeing != 0).sum(0).clamp(min=1)
        factors[module] = (bases[module], total) if side == "outputs" else (total.T, bases[module].T)
    return factors


def _cut(parts: Sequence[Tensor], density: float) -> float:
    """The smallest magnitude that is kept of the entries of several tensors."""
    magnitudes = torch.cat([part.abs().reshape(-1) for part in parts])
    place = len(magnitudes) - math.floor(round(density * len(magnitudes), 6))
    return float(magnitudes.kthvalue(place).values) if density < 1 and place > 0 else 0.0


def _ballot(values: Tensor, elect: str) -> Tensor:
    return torch.sign((torch.sign(values) if elect == "signs" else values).sum(0))
