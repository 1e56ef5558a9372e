"""Sums of low-rank adapters: exactly, as averages of their factors, or at a smaller rank.

An adapter changes the weight W of a module to W + s B A (LoRA, arXiv 2106.09685), s = alpha / rank, or alpha /
sqrt(rank) (rsLoRA, arXiv 2312.03732). A weighted sum of such changes has at most the sum of the ranks, and is written
exactly by putting the factors side by side; the average of the factors is something else.
"""

# torch.linalg has no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.engine.memory import average
from merge.errors import MergeError
from merge.plan.policy import Policy
from merge.tools.adapters.folder import Adapter, Factors


@dataclass(frozen=True)
class Part:
    """One adapter's factors of a module, and its weight."""

    share: float
    factors: Factors


# -- what is added up ------------------------------------------------------------------------------------------------


def shares_of(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    """Give the weight of every adapter, checked. Raises MergeError also for adapters that cannot belong together."""
    names = [adapter.name for adapter in adapters]
    if not names or len(set(names)) < len(names):
        raise MergeError(f"adapters need names that differ (name=...): {', '.join(names) or 'none were given'}")
    shares = [1 / len(names)] * len(names) if weights is None else list(weights)
    if len(shares) != len(names):
        raise MergeError(f"{len(shares)} weights were given for {len(names)} adapters ({', '.join(names)})")
    if not all(map(math.isfinite, shares)) or not any(shares):
        raise MergeError(f"weights {', '.join(f'{x:g}' for x in shares)}: must be finite and not all 0")
    transposed = {adapter.name: bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters}
    if len(set(transposed.values())) > 1:
        raise MergeError(f"fan_in_fan_out differs: {transposed}; these adapters belong to different bases")
    return shares


def notes_on(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Give a warning where the adapters name different bases."""
    if len({adapter.base for adapter in adapters}) < 2:
        return ()
    told = ", ".join(f"{adapter.base or 'none'} ({adapter.name})" for adapter in adapters)
    return (f"the adapters name different bases, {told}: their sum has a meaning only if these are the same weights",)


def parts_of(adapters: Sequence[Adapter], shares: Sequence[float]) -> dict[str, list[Part]]:
    """Give every module with the factors of the adapters that have it and whose share is not 0.

    Raises MergeError where their shapes differ beyond the rank.
    """
    found: dict[str, list[Part]] = {}
    first: dict[str, str] = {}
    for adapter, share in zip(adapters, shares, strict=True):
        for module, factors in adapter.modules.items() if share else ():
            parts = found.setdefault(module, [])
            before = _outer(parts[0].factors) if parts else _outer(factors)
            if before != _outer(factors):
                told = f"{before} in {first[module]} and {_outer(factors)} in {adapter.name}"
                raise MergeError(
                    f"{module}: (outputs, inputs, kind) is {told}; these adapters belong to different bases"
                )
            first.setdefault(module, adapter.name)
            parts.append(Part(share, factors))
    return found


def _outer(factors: Factors) -> tuple[list[int], list[int], str]:
    return [factors.b.shape[0], *factors.b.shape[2:]], list(factors.a.shape[1:]), factors.ends[0]


def saved_of(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> dict[str, Tensor]:
    """Give the weighted average of what the adapters trained whole (peft's `modules_to_save`).

    Infinite and NaN values are looked for where the result is used. Raises MergeError where some adapters lack what
    others have, and for weights that do not sum to 1.
    """
    if not any(adapter.saved for adapter in adapters):
        return {}
    shares = shares_of(adapters, weights)
    if not math.isclose(math.fsum(shares), 1, abs_tol=1e-6):
        name = next(name for adapter in adapters for name in adapter.saved)
        raise MergeError(f"{name} was trained whole and is averaged: weights must sum to 1, not {math.fsum(shares):g}")
    for name in sorted({name for adapter in adapters for name in adapter.saved}):
        having = [adapter.name for adapter in adapters if name in adapter.saved]
        lacking = [adapter.name for adapter in adapters if name not in adapter.saved]
        if lacking:
            raise MergeError(
                f"{name} was trained whole in {having[0]} and is not in {lacking[0]}: merge each adapter into its base "
                "first (base=..., weight 1), and merge the models"
            )
    if len(adapters) == 1:  # there is nothing to average
        return dict(adapters[0].saved)
    return average(
        {adapter.name: adapter.saved for adapter in adapters},
        weights=shares,
        policy=Policy(extrapolate=True, allow_nonfinite=True),
    )


# -- factors ---------------------------------------------------------------------------------------------------------


def concatenated(module: str, parts: Sequence[Part]) -> Factors:
    """`sum_i w_i s_i B_i A_i` as one pair of factors in float32: the A below each other, w_i s_i B_i side by side."""
    a = torch.cat([part.factors.a.float() for part in parts])
    b = torch.cat([part.factors.b.float() * (part.share * part.factors.scale) for part in parts], dim=1)
    return _finite(module, Factors(a, b, 1.0, parts[0].factors.ends, bias_of(parts)))


def bias_of(parts: Sequence[Part]) -> Tensor | None:
    """`sum_i w_i s_i bias_i` of those that have one, in float32."""
    having = [(part, part.factors.bias) for part in parts]
    sums = [bias.float() * (part.share * part.factors.scale) for part, bias in having if bias is not None]
    return _summed(sums) if sums else None


def averaged(module: str, parts: Sequence[Part]) -> Factors:
    """`(sum_i w_i s_i B_i)(sum_i w_i A_i)`. Raises MergeError for ranks that differ."""
    ranks = sorted({part.factors.rank for part in parts})
    if len(ranks) > 1:
        told = " and ".join(map(str, ranks))
        raise MergeError(f"{module} has ranks {told}: factors can be averaged at one rank only; choose mode 'exact'")
    a = _summed(part.factors.a.float() * part.share for part in parts)
    b = _summed(part.factors.b.float() * (part.share * part.factors.scale) for part in parts)
    return _finite(module, Factors(a, b, 1.0, parts[0].factors.ends, bias_of(parts)))


def _summed(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _finite(module: str, factors: Factors) -> Factors:
    tensors = [tensor for tensor in (factors.a, factors.b, factors.bias) if tensor is not None]
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise MergeError(f"{module}: infinite or NaN values in its factors")
    return factors


def recompressed(exact: Mapping[str, Factors], rank: int) -> tuple[dict[str, Factors], float]:
    """Give every module's best approximation of a rank (Eckart and Young 1936), and the share of energy left out.

    With B = Q_b R_b and A^T = Q_a R_a, the singular values of B A are those of the small matrix R_b R_a^T.
    """
    result: dict[str, Factors] = {}
    kept = lost = 0.0
    for module, factors in exact.items():
        qa, ra = torch.linalg.qr(factors.a.flatten(1).T.double())
        qb, rb = torch.linalg.qr(factors.b.flatten(1).double())
        u, values, vt = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        kept += values[:rank].square().sum().item()
        lost += values[rank:].square().sum().item()
        root = values[:rank].sqrt()
        a = (root[:, None] * (vt[:rank] @ qa.T)).reshape(-1, *factors.a.shape[1:])
        b = (qb @ u[:, :rank] * root).reshape(factors.b.shape[0], -1, *factors.b.shape[2:])
        result[module] = Factors(a, b, 1.0, factors.ends, factors.bias)
    return result, lost / (kept + lost) if kept + lost else 0.0


def distance_of(modules: Mapping[str, Factors], exact: Mapping[str, Factors]) -> float:
    """Give ||modules - exact|| / ||exact||, Frobenius, over all modules, without forming a whole matrix."""
    whole = apart = 0.0
    for module, factors in exact.items():
        other = modules[module]
        whole += _norm(factors.a, factors.b) ** 2
        apart += _norm(torch.cat([other.a, factors.a]), torch.cat([other.b, -factors.b], dim=1)) ** 2
    return math.sqrt(apart / whole) if whole else 0.0


def _norm(a: Tensor, b: Tensor) -> float:
    """||B A||: orthogonal factors change no norm, so the two small triangles are enough."""
    _, ra = torch.linalg.qr(a.flatten(1).T.double(), mode="r")
    _, rb = torch.linalg.qr(b.flatten(1).double(), mode="r")
    return torch.linalg.norm(rb @ ra.T).item()


def stored(factors: Factors, parts: Sequence[Part], rank: int) -> Factors:
    """Give the factors filled up with zeros to `rank`, in the dtype of the adapters."""
    kinds = [tensor.dtype for part in parts for tensor in (part.factors.a, part.factors.b)]
    dtype = functools.reduce(torch.promote_types, kinds)
    blank = rank - factors.rank
    a = torch.cat([factors.a, factors.a.new_zeros(blank, *factors.a.shape[1:])])
    b = torch.cat([factors.b, factors.b.new_zeros(factors.b.shape[0], blank, *factors.b.shape[2:])], dim=1)
    bias = None if factors.bias is None else factors.bias.to(dtype)
    return Factors(a.to(dtype), b.to(dtype), 1.0, factors.ends, bias)
