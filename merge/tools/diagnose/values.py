"""Findings from the values of single tensors: infinities, constants, BatchNorm statistics, frozen ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from merge.plan.findings import Facts, Finding, finding
from merge.plan.findings.kinds import chosen, counted, listed
from merge.plan.policy import dtype_name
from merge.tools.diagnose.measure import LARGE, Measured, is_large_matrix

MEAN, VARIANCE = "running_mean", "running_var"
# Statistics are far apart where channels lie half a standard deviation from each other (root mean square), or where
# the typical variance differs by 2: their average then fits neither input. A convention, not a measured bound.
SHIFT = 0.5
SPREAD = 2.0
SHORTER = (torch.bfloat16, torch.float16)


def value_findings(
    facts: Facts, measured: Mapping[str, Measured], sources: Sequence[Mapping[str, Tensor]], *, weights: bool = True
) -> list[Finding]:
    """Give what the tensors themselves tell; where not all are `weights`, BatchNorm statistics are not compared."""
    return [
        *_nonfinite(facts, measured),
        *_constant(facts, measured),
        *(_batchnorm(facts, measured, sources) if weights else []),
        *_rounded(facts, measured, sources),
        *_frozen(measured),
    ]


def _nonfinite(facts: Facts, measured: Mapping[str, Measured]) -> list[Finding]:
    bad = {name: item.nonfinite for name, item in measured.items() if not item.finite}
    if not bad:
        return []
    parts: list[str] = []
    for index, label in enumerate(facts.labels):
        here = [f"{name} ({counts[index]:,})" for name, counts in bad.items() if counts[index]]
        if here:
            parts.append(f"{label} has infinite or NaN values in {counted(len(here), 'tensor')}: {listed(here)}")
    allowed = facts.policy.allow_nonfinite
    carried = "allow_nonfinite=True carries them into every merge"
    advice = f"take an earlier checkpoint; {carried}"
    return [finding("not-finite-allowed" if allowed else "not-finite", "; ".join(parts), advice, tuple(bad))]


def _constant(facts: Facts, measured: Mapping[str, Measured]) -> list[Finding]:
    """Tensors that have one value everywhere in some inputs and not in others. A base may be untrained."""
    found: list[Finding] = []
    mixed = {
        name: [facts.labels[index] for index in facts.experts if item.constant[index]]
        for name, item in measured.items()
        if item.floating and len({item.constant[index] for index in facts.experts}) > 1
    }
    matrices = [name for name in mixed if is_large_matrix(measured[name].shape)]
    vectors = [name for name in mixed if name not in matrices]
    for code, names in (("constant-matrices", matrices), ("constant-vectors", vectors)):
        if names:
            seen = listed([f"{name} in {' and '.join(mixed[name])}" for name in names])
            glob = chosen("keep", names, facts.wanted)
            advice = f"still as initialised? put the input that trained them first and keep them with {glob}"
            found.append(finding(code, f"all elements equal: {seen}", advice, names))
    return found


def _frozen(measured: Mapping[str, Measured]) -> list[Finding]:
    floating = {name: item for name, item in measured.items() if item.floating}
    equal = [name for name, item in floating.items() if all(contrast.equal for contrast in item.contrasts.values())]
    if not equal or len(equal) == len(floating):
        return []
    seen = f"{len(equal):,} of {counted(len(floating), 'tensor')} are equal in all: {listed(equal)}"
    return [finding("frozen-tensors", seen, "nothing to do: they stay as they are, bit by bit", tuple(equal))]


def _rounded(facts: Facts, measured: Mapping[str, Measured], sources: Sequence[Mapping[str, Tensor]]) -> list[Finding]:
    """Float32 matrices of some inputs that hold 16-bit numbers, while others have all their digits."""
    names = _full(facts, measured)
    shorter = {index: _shorter([sources[index][name] for name in names]) for index in facts.experts if names}
    found = {facts.labels[index]: dtype for index, dtype in shorter.items() if dtype is not None}
    if not found or len(found) == len(facts.experts):
        return []
    seen = "; ".join(
        f"{label} has {dtype_name(dtype)} numbers in all its float32 matrices" for label, dtype in found.items()
    )
    advice = (
        "finetuning below their last digit is lost: take the checkpoint from before the conversion, if there is one"
    )
    return [finding("rounded-weights", seen, advice, tuple(names))]


def _full(facts: Facts, measured: Mapping[str, Measured]) -> list[str]:
    """Large matrices that are float32 everywhere and constant nowhere."""
    return [
        name
        for name, item in measured.items()
        if is_large_matrix(item.shape)
        and item.finite
        and not any(item.constant)
        and all(spec[name].dtype == torch.float32 for spec in facts.specs)
    ]


def _shorter(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """The 16-bit dtype that holds the first numbers of all tensors exactly, as many as tell; None where none does."""
    samples = [tensor.detach().reshape(-1)[:LARGE].cpu() for tensor in tensors]
    held = [dtype for dtype in SHORTER if all(torch.equal(each.to(dtype).float(), each) for each in samples)]
    return held[0] if held else None


# -- BatchNorm ---------------------------------------------------------------------------------------------------------


def _batchnorm(
    facts: Facts, measured: Mapping[str, Measured], sources: Sequence[Mapping[str, Tensor]]
) -> list[Finding]:
    """Statistics that differ; those of the same layers are small, and are read once more."""
    layers = [
        name.removesuffix(VARIANCE)
        for name, item in measured.items()
        if name.endswith(VARIANCE) and item.finite and name.removesuffix(VARIANCE) + MEAN in measured
    ]
    layers = [layer for layer in layers if not _settled(layer, measured)]
    if not layers or facts.policy.batchnorm != "average":
        return []
    gaps = {layer: _widest(layer, [sources[index] for index in facts.experts]) for layer in layers}
    far = [layer for layer, (shift, spread) in gaps.items() if shift > SHIFT or spread > SPREAD]
    if not far:
        seen = f"{counted(len(layers), 'layer')} with running statistics, averaged like weights: {_layers(layers)}"
        advice = "if the merged model does worse than both ends, recalibrate it: merge.recalibrate_batchnorm"
        return [finding("batchnorm-averaged", seen, advice, tuple(layers))]
    worst = max(far, key=lambda layer: gaps[layer])
    shift, spread = gaps[worst]
    seen = (
        f"{len(far)} of {counted(len(layers), 'layer')}: {_layers(far)}; in {_layers([worst])} means are {shift:.2f} "
        f"standard deviations apart and variances differ by a factor of {spread:.2f}"
    )
    advice = (
        "their average fits no input: recalibrate the merged model on unlabelled inputs, or take one input's with "
        "batchnorm='from:NAME'"
    )
    return [finding("batchnorm-apart", seen, advice, tuple(far))]


def _layers(layers: Sequence[str]) -> str:
    return listed([layer.rstrip(".") for layer in layers])


def _settled(layer: str, measured: Mapping[str, Measured]) -> bool:
    return all(c.equal for kind in (MEAN, VARIANCE) for c in measured[layer + kind].contrasts.values())


def _widest(layer: str, sources: Sequence[Mapping[str, Tensor]]) -> tuple[float, float]:
    """The largest shift of the means in standard deviations, and the largest median ratio of variances, over pairs."""
    means = [source[layer + MEAN].detach().cpu().double() for source in sources]
    variances = [source[layer + VARIANCE].detach().cpu().double().clamp_min(1e-12) for source in sources]
    shift, spread = 0.0, 0.0
    for i in range(len(sources)):
        for j in range(i):
            squared = (means[i] - means[j]) ** 2 / ((variances[i] + variances[j]) / 2)
            shift = max(shift, math.sqrt(squared.mean().item()))
            spread = max(spread, torch.median((variances[i] / variances[j]).log().abs()).exp().item())
    return shift, spread
